"""Programs that read an export as its users will: llama.cpp, or transformers with plain PEFT.

Both answer the same questions; nothing of offbook's own loading or templates is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import peft
import torch
import transformers
from numpy.typing import NDArray

from offbook.data.conversations import Message
from offbook.export.held_out import Place, Sample
from offbook.inference.llamacpp import Ids, LlamaCpp, reader_name
from offbook.libraries import quiet_transformers

DISTRIBUTIONS = 24  # places at which the probabilities of all tokens are compared
REPLIES = 20  # of at most
NEW_TOKENS = 64


class Reader(Protocol):
    """A program with an export loaded."""

    name: str

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """The prompt of a conversation, by the export's own chat template and tokenizer."""

    def log_probabilities(self, ids: Sequence[int]) -> NDArray[np.float64]:
        """The logarithm of each token's probability [V] after a prompt."""

    def scores(self, ids: Sequence[int], positions: Sequence[int]) -> list[float]:
        """The logarithm of the probability of the token at each position, given those before."""

    def generate(self, ids: Sequence[int], most: int) -> Ids:
        """The likeliest reply of at most so many tokens."""


@dataclass(frozen=True)
class Answers:
    """What a reader says of a sample.

    Attributes:
        reader: its name and version.
        prompts: the ids of each conversation's prompt.
        replies: the likeliest reply to each of the first conversations.
        distributions: log-probabilities [V] at places that are evenly spread.
        scores: the log-probability of the token at each place.
    """

    reader: str
    prompts: list[list[int]]
    replies: list[Ids]
    distributions: list[NDArray[np.float64]]
    scores: NDArray[np.float64]


def spread(places: Sequence[Place]) -> list[Place]:
    """The places at which the probabilities of all tokens are compared."""
    step = max(1, len(places) // DISTRIBUTIONS)
    return list(places[::step][:DISTRIBUTIONS])


def ask(reader: Reader, sample: Sample, prompts: Sequence[list[int]]) -> Answers:
    """All that is compared.

    Args:
        reader: with the export.
        sample: the rows.
        prompts: ours, of each conversation; replies are generated for the first.
    """
    return Answers(
        reader.name,
        [reader.prompt_ids(c.messages[:-1]) for c in sample.conversations],
        [reader.generate(ids, NEW_TOKENS) for ids in prompts[:REPLIES]],
        [reader.log_probabilities(sample.examples[row][:at]) for row, at in spread(sample.places)],
        np.array(
            [
                score
                for row, places in groupby(sample.places, attrgetter("row"))
                for score in reader.scores(sample.examples[row], [place.at for place in places])
            ]
        ),
    )


class LlamaCppReader:
    """A GGUF in llama.cpp.

    Args:
        engine: with the model loaded.
        vocabulary: the number of tokens.
        letter: the id of a token that is one whole character.
    """

    def __init__(self, engine: LlamaCpp, vocabulary: int, letter: int) -> None:
        self.name = reader_name()
        self._engine, self._vocabulary, self._letter = engine, vocabulary, letter

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        return self._engine.tokenize(self._engine.render(messages))

    def log_probabilities(self, ids: Sequence[int]) -> NDArray[np.float64]:
        return self._engine.log_probabilities(ids, self._vocabulary, self._letter)

    def scores(self, ids: Sequence[int], positions: Sequence[int]) -> list[float]:
        return [
            self._engine.log_probability(ids[:at], ids[at], self._vocabulary, self._letter)
            for at in positions
        ]

    def generate(self, ids: Sequence[int], most: int) -> Ids:
        return self._engine.generate(ids, most)


class TransformersReader:
    """A whole model in transformers, or an adapter with plain PEFT; in float32 on a processor.

    Args:
        folder: of the model or the adapter.
        base: the folder of the adapter's base; None for a whole model.
        stop_ids: the tokens that end a reply.
    """

    def __init__(self, folder: Path, base: Path | None, stop_ids: Sequence[int]) -> None:
        used = (transformers, peft) if base else (transformers,)
        self.name = " and ".join(f"{library.__name__} {library.__version__}" for library in used)
        options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        with quiet_transformers():
            self._tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder), **options)
            model: Any = transformers.AutoModelForCausalLM.from_pretrained(
                str(base or folder), dtype=torch.float32, **options
            )
            if base:
                model = peft.PeftModel.from_pretrained(model, str(folder))
        self._model = model.eval()
        self._stop_ids = list(stop_ids)

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        turns = [{"role": m.role, "content": m.content} for m in messages]
        ids: Any = self._tokenizer.apply_chat_template(
            turns, add_generation_prompt=True, return_dict=False
        )
        return list(ids)

    def log_probabilities(self, ids: Sequence[int]) -> NDArray[np.float64]:
        with torch.no_grad():
            logits = self._model(torch.tensor([list(ids)])).logits[0, -1]
        values: NDArray[np.float64] = logits.double().log_softmax(-1).numpy()
        return values

    def scores(self, ids: Sequence[int], positions: Sequence[int]) -> list[float]:
        with torch.no_grad():
            logits_TV = self._model(torch.tensor([list(ids)])).logits[0]
        values_TV = logits_TV.double().log_softmax(-1)
        return [float(values_TV[at - 1, ids[at]]) for at in positions]

    def generate(self, ids: Sequence[int], most: int) -> Ids:
        with torch.no_grad(), quiet_transformers():
            whole = self._model.generate(
                torch.tensor([list(ids)]),
                attention_mask=torch.ones(1, len(ids), dtype=torch.long),
                do_sample=False,
                max_new_tokens=most,
                eos_token_id=self._stop_ids,
                pad_token_id=self._stop_ids[0],
            )
        reply = whole[0, len(ids) :].tolist()
        stopped = bool(reply) and reply[-1] in self._stop_ids
        return Ids(reply[:-1] if stopped else reply, stopped)
