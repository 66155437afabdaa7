"""Replies from PyTorch: the model as it was trained, on the same device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from offbook.inference.batch import greedy_replies
from offbook.inference.generate import Remembered, Sampling, generate
from offbook.inference.merged import Merged
from offbook.models.adapter import set_strength
from offbook.models.load import base_of
from offbook.tokens.template import ChatTemplate


class WholeReply(NamedTuple):
    """A reply that has been written.

    Attributes:
        text: of the reply.
        stopped: whether the model has ended it, rather than the limit.
    """

    text: str
    stopped: bool


class TorchEngine:
    """A model of transformers, with or without an adapter; a `ReplyEngine`.

    Args:
        model: in evaluation mode.
        template: its chat template.
        seed: of the sampling; by default, another one each time.
    """

    def __init__(
        self,
        model: PeftModel | PreTrainedModel,
        template: ChatTemplate,
        seed: int | None = None,
    ) -> None:
        self.model, self.template = model, template
        self._merged = Merged(model) if isinstance(model, PeftModel) else None
        self.has_adapter, self.strength = self._merged is not None, 1.0
        self._remembered = Remembered()
        self._generator = torch.Generator(model.device)
        if seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(seed)
        base = base_of(model)
        eos = base.generation_config.eos_token_id if base.generation_config else None
        self.stop_ids = {template.stop_id, *(eos if isinstance(eos, list) else [eos])} - {None}
        text_config = base.config.get_text_config()
        self.context: int | None = getattr(text_config, "max_position_embeddings", None)
        embedding: Any = base.get_input_embeddings()
        self.vocabulary = int(embedding.weight.shape[0])

    def set_strength(self, strength: float) -> None:
        """Change the strength of the adapter; see `ReplyEngine`. 0 is the base."""
        model = self.model
        assert isinstance(model, PeftModel)
        set_strength(model, strength)
        self.strength, self._remembered = strength, Remembered()

    def reply(self, prompt: Sequence[int], sampling: Sampling, base: bool = False) -> TorchReply:
        """Begin a reply; see `ReplyEngine`."""
        remembered = Remembered() if base else self._remembered
        ids = generate(
            *(self.model, prompt, self.stop_ids, sampling, self._generator, remembered),
            answering=lambda: self.answering(base),
        )
        return TorchReply(self.template, ids, sampling.max_new_tokens)

    def replies(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        base: bool = False,
        progress: Callable[[int], None] = lambda replies: None,
    ) -> list[WholeReply]:
        """The likeliest replies to several prompts, written together; see `greedy_replies`."""
        with self.answering(base):
            written = greedy_replies(self.model, prompts, self.stop_ids, max_new_tokens, progress)
        return [
            WholeReply(
                "".join(self.template.stream_reply(iter(tokens))), len(tokens) < max_new_tokens
            )
            for tokens in written
        ]

    def answering(self, base: bool) -> AbstractContextManager[None]:
        """The model, or its base alone, answers while the context lasts."""
        if self._merged is None:
            return nullcontext()
        return self._merged.without_adapter() if base else self._merged.used()


class TorchReply:
    """A reply that is being written; see `Reply`. `TorchEngine.reply` makes it."""

    def __init__(self, template: ChatTemplate, ids: Iterator[int], most: int) -> None:
        self.tokens, self.stopped = 0, False
        self._template, self._ids, self._most = template, ids, most

    def __iter__(self) -> Iterator[str]:
        yield from self._template.stream_reply(self._counted())
        self.stopped = self.tokens < self._most

    def _counted(self) -> Iterator[int]:
        for index in self._ids:
            self.tokens += 1
            yield index
