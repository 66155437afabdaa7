"""A conversation with a model, and with its base for comparison. Nothing here prints."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

from offbook.data.messages import Message
from offbook.data.saved import append_row
from offbook.engine.machine import limit_threads, refuse_forked_child
from offbook.errors import ConfigError, ModelError
from offbook.inference import MAX_STRENGTH
from offbook.inference.generate import Sampling
from offbook.inference.model import find_model
from offbook.inference.pytorch import TorchEngine
from offbook.inference.reply import ReplyEngine


class Chat:
    """A multi-turn chat.

    Attributes:
        messages: the conversation so far.
        system: system text for the conversation, if any.
        sampling: how replies are chosen.
        template: turns the conversation into tokens.
        finish_reason: why the last reply ended. `stop`: the model ended it; `length`: it has
            `sampling.max_new_tokens` tokens; `context`: it reached the end of the context; None: it
            was interrupted.
        reply_tokens: how many tokens the last reply has.
        left_out: how many of the oldest exchanges were not in the last prompt, for lack of room.
    """

    def __init__(
        self, engine: ReplyEngine, system: str | None = None, sampling: Sampling | None = None
    ) -> None:
        self.messages: list[Message] = []
        self.system = system
        self.sampling = sampling or Sampling()
        self._engine, self.template = engine, engine.template
        self.finish_reason: Literal["stop", "length", "context"] | None = None
        self.reply_tokens = self.left_out = 0

    @classmethod
    def open(
        cls,
        path: str | Path,
        sampling: Sampling | None = None,
        announce: Callable[[str], None] = lambda text: None,
        *,
        base: str | None = None,
        checkpoint: str | int | None = None,
    ) -> Chat:
        """A chat with a run, finished or not; with an adapter on its base; or with a whole model.

        Args:
            path: a run directory, a PEFT folder, a model's folder or a `.gguf` file.
            sampling: how replies are chosen.
            announce: receives a line when something is not as expected, or something slow begins.
            base: of an adapter: a folder, `.gguf` file or hub id. Of a run: where its base is now.
            checkpoint: of a run: the one to use, `best`, `last` or a step.

        Raises:
            CheckpointError: when there is no run, adapter or model, or it does not fit its base.
            ConfigError: when an adapter has no `base`, or `base` or `checkpoint` has no meaning.
            ModelError: when the base, its tokenizer or its template cannot be used.
            EngineError: in a forked process.
        """
        refuse_forked_child()
        limit_threads()
        found = find_model(path, announce, base=base, checkpoint=checkpoint)
        seed = sampling.seed if sampling else None
        engine = TorchEngine(found.load(), found.template, seed)
        return cls(engine, found.system, sampling)

    @property
    def context(self) -> int | None:
        """Most tokens of prompt and reply together; None where the base does not say."""
        return self._engine.context

    @property
    def has_adapter(self) -> bool:
        """Whether there is a base without it to compare with."""
        return self._engine.has_adapter

    @property
    def strength(self) -> float:
        """What the adapter adds to its base is multiplied by it."""
        return self._engine.strength

    def set_strength(self, strength: float) -> None:
        """Change the strength of the adapter, for the replies that follow.

        Args:
            strength: from 0, which is the base, over 1, which was trained, to `MAX_STRENGTH`.

        Raises:
            ConfigError: when it is out of range, or there is no adapter that has another strength.
        """
        if not self.has_adapter:
            raise ConfigError("this is a whole model, with no adapter that has a strength")
        if not 0 <= strength <= MAX_STRENGTH:
            what = f"the strength of an adapter cannot be {strength:g}"
            raise ConfigError(what, fix=f"give a number from 0 to {MAX_STRENGTH:g}")
        self._engine.set_strength(strength)

    def ask(self, question: str, base: bool = False) -> str:
        """The whole reply to a question; see `stream`."""
        return "".join(self.stream(question, base))

    def stream(self, question: str, base: bool = False) -> Iterator[str]:
        """Yield a reply in pieces of text; with its question, it is added to the conversation.

        If it is interrupted, what there is of it is added. A question whose reply has no text is
        forgotten with the next one.

        Args:
            question: what the user says.
            base: ask the base without its adapter, outside the conversation: it does not see the
                earlier turns, and its reply is not added to them.

        Raises:
            ConfigError: when the question is too long or is no text, or there is no adapter.
            ModelError: when the base has no embedding for a token of the prompt.
        """
        if base and not self.has_adapter:
            raise ConfigError("this is a whole model, with no adapter that could be left out")
        earlier = [] if base else self._answered()
        asked = [*earlier, Message("user", question)]
        self.finish_reason, self.reply_tokens = None, 0
        prompt = self._prompt(asked)
        pieces = []
        try:
            for piece in self._reply(prompt, base):
                pieces.append(piece)
                yield piece
        finally:
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

        A last question whose reply has no text is left out: no row may have an empty reply.

        Raises:
            ConfigError: when there is nothing to save, or it cannot be added to this file.
        """
        if not (messages := self._answered()):
            raise ConfigError("there is no reply yet")
        append_row(Path(path).expanduser(), self._opening() + messages)

    def _answered(self) -> list[Message]:
        """The conversation, without a last question whose reply has no text."""
        has_text = not self.messages or self.messages[-1].content.strip()
        return self.messages if has_text else self.messages[:-2]

    def _opening(self) -> list[Message]:
        return [Message("system", self.system)] if self.system else []

    def _reply(self, prompt: list[int], base: bool) -> Iterator[str]:
        most = self.sampling.max_new_tokens
        if self.context is not None:
            most = min(most, self.context - len(prompt))
        sampling = self.sampling.model_copy(update={"max_new_tokens": most})
        reply = self._engine.reply(prompt, sampling, base)
        try:
            yield from reply
        finally:
            self.reply_tokens = reply.tokens
        if reply.stopped:
            self.finish_reason = "stop"
        else:
            self.finish_reason = "length" if most == self.sampling.max_new_tokens else "context"

    def _prompt(self, asked: list[Message]) -> list[int]:
        """The ids of a prompt, without the oldest turns where all would exceed the context."""
        require_text(self.system or "", "system text")
        require_text(asked[-1].content, "question")
        limit = None
        if self.context is not None:  # leaves room to reply
            limit = self.context - min(self.sampling.max_new_tokens, self.context // 2)
        before = len(asked)
        while True:
            ids = self.template.build_prompt([*self._opening(), *asked])
            if limit is None or len(ids) <= limit:
                self._require_embeddings(ids)
                self.left_out = (before - len(asked)) // 2
                return ids
            if len(asked) == 1:
                raise ConfigError(
                    f"the question has {len(ids)} tokens; this model takes {limit}",
                    fix="shorten it",
                )
            asked = asked[2:]

    def _require_embeddings(self, ids: list[int]) -> None:
        rows = self._engine.vocabulary
        if beyond := [index for index in ids if index >= rows]:
            token = self.template.tokenizer.convert_ids_to_tokens(beyond[0])
            raise ModelError(
                f"{token!r} is token {beyond[0]:,} of the tokenizer, but the base has embeddings "
                f"for {rows:,}",
                fix="ask without it, or use the tokenizer that was published with the base",
            )


def require_text(text: str, what: str) -> None:
    """Refuse text with half a character: a lone surrogate, or a byte that is not UTF-8.

    Args:
        text: to check.
        what: it is, for the message.

    Raises:
        ConfigError: naming the first.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        is_byte = 0xDC80 <= code <= 0xDCFF  # as Python reads bytes of a file or a command line
        name = f"byte 0x{code - 0xDC00:02x}" if is_byte else f"half a character, U+{code:04X},"
        raise ConfigError(
            f"the {what} is not text: {name} at character {error.start + 1:,}",
            fix="write it in UTF-8" if is_byte else "leave that out",
        ) from None
