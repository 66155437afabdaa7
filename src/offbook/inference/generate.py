"""Generate the tokens of a reply, one by one."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import takewhile
from typing import Any

import torch
from pydantic import Field, ValidationError, field_validator
from torch import nn
from transformers import (
    Cache,
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from offbook.errors import ConfigError
from offbook.inference.cache import make_cache
from offbook.inference.threads import FasterThreads
from offbook.models.load import backbone, head
from offbook.settings.sections import Section

LEAST_TEMPERATURE = 1e-6  # below, scores that are divided by it may not be finite


class Sampling(Section):
    """How the next token is chosen, with the names that transformers uses."""

    temperature: float = Field(default=0.7, ge=0)
    """Randomness; with 0, always the likeliest token. Below `LEAST_TEMPERATURE` it becomes 0."""

    top_p: float = Field(default=0.9, gt=0, le=1)
    """Choose among the likeliest tokens that together have this probability."""

    top_k: int = Field(default=0, ge=0, lt=2**31)
    """Choose among this many likeliest tokens; 0 for all."""

    repetition_penalty: float = Field(default=1.0, ge=1)
    """Divides the scores of tokens that are already in the prompt or the reply."""

    max_new_tokens: int = Field(default=256, ge=1)
    """Longest reply, in tokens."""

    seed: int | None = Field(default=None, ge=0, lt=2**32)
    """Makes replies repeatable."""

    @field_validator("temperature")
    @classmethod
    def _greedy(cls, temperature: float) -> float:
        return temperature if temperature >= LEAST_TEMPERATURE else 0.0


def make_sampling(options: dict[str, Any]) -> Sampling:
    """Sampling from a user's options.

    Raises:
        ConfigError: naming each option that is out of range.
    """
    try:
        return Sampling(**options)
    except ValidationError as error:
        problems = [f"{detail['loc'][0]}: {detail['msg']}" for detail in error.errors()]
        raise ConfigError("\n".join(problems)) from None


class Remembered:
    """What was computed of the tokens of a conversation so far, by one model with one adapter."""

    def __init__(self) -> None:
        self._ids: list[int] = []
        self._cache: Cache | None = None

    def take(self, prompt_ids: Sequence[int]) -> tuple[Cache, int]:
        """What is known of this prompt, which is forgotten here, and how many tokens it is.

        At least one token of the prompt is left.
        """
        pairs = zip(self._ids, prompt_ids[:-1], strict=False)
        shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        cache, beyond = self._cache, len(self._ids) - shared
        self._ids, self._cache = [], None
        if cache is None or not shared:
            return make_cache(), 0
        if beyond:
            cache.crop(-beyond)
        return cache, shared

    def put(self, cache: Cache, ids: Sequence[int]) -> None:
        """Remember what was computed of these tokens."""
        self._ids, self._cache = list(ids), cache


def generate(
    model: nn.Module,
    prompt_ids: Sequence[int],
    stop_ids: Collection[int],
    sampling: Sampling,
    generator: torch.Generator,
    remembered: Remembered | None = None,
    answering: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Iterator[int]:
    """Yield the tokens of a reply, without the stop token.

    Args:
        model: in evaluation mode.
        prompt_ids: the tokens before the reply.
        stop_ids: the tokens that end it.
        sampling: how tokens are chosen.
        generator: of random numbers, on the model's device.
        remembered: of the conversation that the prompt goes on with; it is used and changed.
        answering: makes a context in which the model computes; each token has its own, as other
            replies may be written between two tokens.
    """
    remembered = remembered or Remembered()
    cache, known = remembered.take(prompt_ids)
    seen, computed = list(prompt_ids), known
    processors = _processors(sampling)
    faster = FasterThreads() if sampling.seed is None else None
    try:
        for number in range(sampling.max_new_tokens):
            ids = torch.tensor([seen[computed:]], device=generator.device)
            threads = faster.token(number) if faster else nullcontext()
            with torch.no_grad(), answering(), threads:
                out = backbone(model)(input_ids=ids, past_key_values=cache, use_cache=True)
                scores = head(model)(out.last_hidden_state[:, -1]).float()
            computed = len(seen)
            before = torch.tensor([seen], device=generator.device)
            scores = processors(before, scores)  # type: ignore[arg-type]
            token = _choose(scores, sampling, generator)
            if token in stop_ids:
                return
            yield token
            seen.append(token)
    finally:  # also where the reply is stopped; after an error, the cache may be in pieces
        if cache.get_seq_length() == computed:
            remembered.put(cache, seen[:computed])


def _processors(sampling: Sampling) -> LogitsProcessorList:
    chosen = LogitsProcessorList()
    if sampling.repetition_penalty != 1:
        chosen.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    if sampling.temperature == 0:  # the others leave the likeliest token where it is
        return chosen
    if sampling.temperature != 1:
        chosen.append(TemperatureLogitsWarper(sampling.temperature))
    if sampling.top_k:
        chosen.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        chosen.append(TopPLogitsWarper(sampling.top_p))
    return chosen


def _choose(scores: torch.Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    if sampling.temperature == 0:
        return int(scores.argmax())
    return int(torch.multinomial(scores.softmax(-1), 1, generator=generator))
