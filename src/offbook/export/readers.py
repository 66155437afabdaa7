"""Programs that read an export as its users will: llama.cpp, or transformers with plain PEFT.

Both answer the same questions; nothing of offbook's own loading or templates is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, zip_longest
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import peft
import torch
import transformers
from numpy.typing import NDArray

from offbook.data.messages import Message
from offbook.export.held_out import Sample
from offbook.inference.llamacpp import Ids, LlamaCpp, reader_name
from offbook.libraries import quiet_transformers

Float64 = NDArray[np.float64]

DISTRIBUTIONS = 8  # places at which the probabilities of all tokens are compared
REPLIES = 20  # of at most
NEW_TOKENS = 64


class Question(NamedTuple):
    """What is asked about a row.

    Attributes:
        ids: its tokens.
        positions: where the probability of the token is asked for.
        whole: those positions where that of every other token is asked for, too.
    """

    ids: list[int]
    positions: list[int]
    whole: list[int]


class Scores(NamedTuple):
    """The answer to a question.

    Attributes:
        tokens: the logarithm of the probability of the token at each position.
        distributions: of each token's probability [V] at the positions in `whole`.
    """

    tokens: list[float]
    distributions: list[Float64]


class Reader(Protocol):
    """A program with an export loaded."""

    name: str

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """The prompt of a conversation, by the export's own chat template and tokenizer."""

    def scores(self, question: Question) -> Scores:
        """How probable the tokens of a row are, each given those before it."""

    def generate(self, ids: Sequence[int], most: int) -> Ids:
        """The likeliest reply of at most so many tokens."""


@dataclass(frozen=True)
class Answers:
    """What a reader says of a sample.

    Attributes:
        reader: its name and version.
        prompts: the ids of each conversation's prompt.
        replies: the likeliest reply to each of the first conversations.
        scores: of each row's tokens.
    """

    reader: str
    prompts: list[list[int]]
    replies: list[Ids]
    scores: list[Scores]


def questions(sample: Sample) -> list[Question]:
    """What is asked about the rows; all tokens are compared at places that are evenly spread."""
    step = max(1, len(sample.places) // DISTRIBUTIONS)
    compared = set(sample.places[::step][:DISTRIBUTIONS])
    asked = []
    for row, group in groupby(sample.places, attrgetter("row")):
        places = list(group)
        whole = [place.at for place in places if place in compared]
        asked.append(Question(sample.examples[row], [place.at for place in places], whole))
    return asked


def ask(reader: Reader, sample: Sample, prompts: Sequence[list[int]]) -> Answers:
    """All that is compared.

    Args:
        reader: with the export.
        sample: the rows.
        prompts: ours, of each conversation; replies are generated for the first.
    """
    replies, scores = [], []
    # A row begins with its prompt, which llama.cpp does not compute again.
    for prompt, question in zip_longest(prompts[:REPLIES], questions(sample)):
        if prompt:
            replies.append(reader.generate(prompt, NEW_TOKENS))
        if question:
            scores.append(reader.scores(question))
    return Answers(
        reader.name,
        [reader.prompt_ids(c.messages[:-1]) for c in sample.conversations],
        replies,
        scores,
    )


def torch_scores(model: torch.nn.Module, question: Question) -> Scores:
    """A PyTorch model's answer."""
    ids = torch.tensor([question.ids])
    chosen = torch.tensor(question.positions) - 1
    with torch.no_grad():
        logits_TV = model(ids.to(next(model.parameters()).device)).logits[0]
    values = logits_TV[chosen].cpu().double().log_softmax(-1).numpy()
    tokens = values[range(len(values)), [question.ids[at] for at in question.positions]]
    rows = [question.positions.index(at) for at in question.whole]
    return Scores(tokens.tolist(), [values[row] for row in rows])


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

    def scores(self, question: Question) -> Scores:
        tokens, distributions = [], []
        for at in question.positions:
            before, target = question.ids[:at], question.ids[at]
            if at in question.whole:
                values = self._engine.log_probabilities(before, self._vocabulary, self._letter)
                distributions.append(values)
                tokens.append(float(values[target]))
            else:
                tokens.append(
                    self._engine.log_probability(before, target, self._vocabulary, self._letter)
                )
        return Scores(tokens, distributions)

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

    def scores(self, question: Question) -> Scores:
        return torch_scores(self._model, question)

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
