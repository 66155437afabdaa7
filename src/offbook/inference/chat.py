"""A conversation with a trained model, and with its base for comparison. Nothing here prints."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import torch
from peft import PeftModel

from offbook.data.conversations import Message
from offbook.engine.machine import limit_threads, refuse_forked_child
from offbook.errors import ConfigError
from offbook.inference.generate import Sampling, generate
from offbook.runs.trained import open_run
from offbook.tokens.template import ChatTemplate


class Chat:
    """A multi-turn chat.

    Attributes:
        messages: the conversation so far.
        system: system text for the conversation, if any.
        sampling: how replies are chosen.
        template: turns the conversation into tokens.
    """

    def __init__(
        self,
        model: PeftModel,
        template: ChatTemplate,
        system: str | None = None,
        sampling: Sampling | None = None,
    ) -> None:
        self.messages: list[Message] = []
        self.system = system
        self.sampling = sampling or Sampling()
        self._model, self.template = model, template
        self._generator = torch.Generator()
        if self.sampling.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(self.sampling.seed)
        eos = model.generation_config.eos_token_id if model.generation_config else None
        self._stop_ids = {template.stop_id, *(eos if isinstance(eos, list) else [eos])} - {None}

    @classmethod
    def open(
        cls,
        path: str | Path,
        sampling: Sampling | None = None,
        announce: Callable[[str], None] = lambda text: None,
    ) -> Chat:
        """A chat with the adapter of a run directory, finished or not; see `open_run`.

        Raises:
            CheckpointError: when there is no run or adapter, or its base has changed.
            EngineError: in a forked process.
        """
        refuse_forked_child()
        limit_threads()
        run = open_run(path, announce)
        return cls(run.load_model(), run.template, run.config.data.system, sampling)

    def ask(self, question: str, base: bool = False) -> str:
        """The whole reply to a question; see `stream`."""
        return "".join(self.stream(question, base))

    def stream(self, question: str, base: bool = False) -> Iterator[str]:
        """Yield a reply in pieces of text; when it is complete, it is added to the conversation.

        Args:
            question: what the user says.
            base: ask the base without its adapter, outside the conversation: it does not see the
                earlier turns, and its reply is not added to them.
        """
        asked = [*([] if base else self.messages), Message("user", question)]
        pieces = []
        for piece in self._reply(asked, base):
            pieces.append(piece)
            yield piece
        if not base:
            self.messages = [*asked, Message("assistant", "".join(pieces))]

    def last_question(self) -> str | None:
        """What the user said last."""
        return self.messages[-2].content if self.messages else None

    def undo(self) -> None:
        """Forget the last question and its reply."""
        del self.messages[-2:]

    def reset(self) -> None:
        """Forget the conversation, but not the system text."""
        self.messages.clear()

    def save(self, path: str | Path) -> None:
        """Append the conversation to a JSONL file that `train` can read.

        Raises:
            ConfigError: when there is nothing to save, or the file cannot be written.
        """
        if not self.messages:
            raise ConfigError("nothing has been said yet")
        turns = [{"role": m.role, "content": m.content} for m in self._opening() + self.messages]
        line = json.dumps({"messages": turns}, ensure_ascii=False)
        try:
            with Path(path).expanduser().open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError as error:
            raise ConfigError(f"cannot write ({error.strerror})", where=str(path)) from None

    def _opening(self) -> list[Message]:
        return [Message("system", self.system)] if self.system else []

    def _reply(self, asked: list[Message], base: bool) -> Iterator[str]:
        with self._model.disable_adapter() if base else nullcontext():
            ids = generate(
                self._model, self._prompt(asked), self._stop_ids, self.sampling, self._generator
            )
            yield from self.template.stream_reply(ids)

    def _prompt(self, asked: list[Message]) -> list[int]:
        """The ids of a prompt, without the oldest turns where all would exceed the context."""
        context = self._model.config.max_position_embeddings
        limit = context - min(self.sampling.max_new_tokens, context // 2)  # leaves room to reply
        while True:
            ids = self.template.build_prompt([*self._opening(), *asked])
            if len(ids) <= limit:
                return ids
            if len(asked) == 1:
                raise ConfigError(
                    f"the question has {len(ids)} tokens; this model takes {limit}",
                    fix="shorten it",
                )
            asked = asked[2:]
