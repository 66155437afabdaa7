"""A chat with llama.cpp in place of PyTorch: the same prompts, and faster on a processor."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from offbook.engine.machine import refuse_forked_child
from offbook.inference.chat import Chat
from offbook.inference.generate import Sampling
from offbook.inference.model import find_model
from offbook.serve.engine import Engine, EngineReply, Role, start


@contextmanager
def open_chat(
    path: str | Path,
    sampling: Sampling | None = None,
    announce: Callable[[str], None] = lambda text: None,
    *,
    base: str | None = None,
    checkpoint: str | int | None = None,
) -> Iterator[Chat]:
    """A chat, until the end of the `with` statement; see `Chat.open` for the arguments.

    Raises:
        OffbookError: as `Chat.open` and `start` do.
    """
    refuse_forked_child()
    found = find_model(path, announce, base=base, checkpoint=checkpoint)
    with start([found], announce=announce) as engine:
        role = next(iter(engine.roles.values()))
        seed = sampling.seed if sampling else None
        yield Chat(LlamaEngine(engine, role, seed), found.system, sampling)


class LlamaEngine:
    """One role, and its base; a `ReplyEngine`.

    Args:
        engine: with the role.
        role: that answers.
        seed: of the sampling; by default, another one each time.
    """

    def __init__(self, engine: Engine, role: Role, seed: int | None = None) -> None:
        self.template = role.template
        self.context: int | None = engine.context
        self.vocabulary, self.has_adapter = engine.vocabulary, role.adapter is not None
        self.strength = 1.0
        self._engine, self._role, self._seeds = engine, role, np.random.default_rng(seed)

    def set_strength(self, strength: float) -> None:
        """Change the strength of the adapter; see `ReplyEngine`."""
        self.strength = strength

    def reply(self, prompt: Sequence[int], sampling: Sampling, base: bool = False) -> EngineReply:
        """Begin a reply; see `ReplyEngine`."""
        # With one seed for all replies, a second try would be the first one again.
        seed = int(self._seeds.integers(2**32))
        sampling = sampling.model_copy(update={"seed": seed})
        strengths = self._engine.strengths(self._role, 0.0 if base else self.strength)
        return self._engine.reply(self._role, prompt, sampling, strengths)
