"""Conversations to token ids and labels, and a reply's ids back to text: the only code for both.

Training and chat both use `ChatTemplate`. It renders with the tokenizer's own
chat template, of which this project has no copy. For each reply, it renders the messages before it
as a prompt, `p = render(messages[:k], add_generation_prompt=True)`, and the whole conversation,
`f = render(messages)`. The ids of f must begin with those of p; what follows them, up to and
including the stop token, is supervised.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np
from transformers import PreTrainedTokenizerBase

from offbook.data.conversations import Conversation, Message
from offbook.errors import DataError
from offbook.tokens.encoding import TextEncoder
from offbook.tokens.examples import IGNORED, Example
from offbook.tokens.probe import probe
from offbook.tokens.render import Renderer, move_system_text
from offbook.tokens.sandbox import within_limits
from offbook.tokens.verify import verify


class ChatTemplate:
    """A tokenizer's chat template, verified.

    Args:
        tokenizer: the tokenizer that the template belongs to.
        date: the day that the template prints, if it prints one; today by default.

    Attributes:
        tokenizer: the tokenizer that the template belongs to.
        renderer: writes conversations as text.
        encoder: turns that text into ids, and ids into text.
        traits: what the template does.

    Raises:
        ModelError: when the template cannot be trained on; see `probe` and `verify`.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, date: datetime.date | None = None
    ) -> None:
        self.tokenizer = tokenizer
        self.renderer = Renderer(tokenizer, date)
        self.encoder = TextEncoder(tokenizer)
        self.traits = probe(self.renderer, self.encoder)
        self._control_counts: dict[tuple[str, ...], int] = {}
        verify(self)

    @property
    def stop_id(self) -> int:
        """The token that ends a reply."""
        return self.traits.stop_id

    @property
    def date(self) -> datetime.date | None:
        """The day that the template prints; None when it prints none."""
        return self.renderer.date if self.traits.prints_date else None

    @property
    def notes(self) -> list[str]:
        """What a user should know about this template."""
        notes = []
        if not self.traits.takes_system:
            notes.append(
                "the chat template takes no system text; it goes before the first user turn"
            )
        if not self.traits.keeps_turns:
            notes.append(
                "the chat template rewrites earlier turns; rows of several turns are refused"
            )
        if self.date:
            notes.append(
                f"the chat template prints the date; a run keeps its first day, {self.date}, "
                "when it is resumed and in chats"
            )
        return notes

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = False) -> str:
        """The text of a conversation; system text is moved where the template has no place for it.

        Raises:
            DataError: see `Renderer.render`.
        """
        if not self.traits.takes_system:
            messages = move_system_text(messages)
        return self.renderer.render(messages, add_generation_prompt)

    def build_examples(
        self, conversations: Sequence[Conversation], max_length: int | None = None
    ) -> list[Example | None]:
        """Tokenize a batch of conversations, with every reply supervised.

        Args:
            conversations: each ends with a reply.
            max_length: largest number of tokens of an example. A longer one is truncated: it loses
                its oldest turns, then the beginning of its user text, but never system text or any
                part of the last reply.

        Returns:
            An example for each conversation, or None where the last reply alone is too long.

        Raises:
            DataError: naming a row that the template refuses, or whose prompt is not a prefix.
        """
        # First all text, then all ids: memory is limited while templates run, and tokenizers, which
        # are not written in Python, abort when they get none.
        texts = within_limits(lambda: [t for c in conversations for t in self._render_turns(c)])
        # One call for the whole batch lets the tokenizer use every core.
        ids = iter(self.encoder.encode(texts))
        examples: list[Example | None] = []
        for conversation in conversations:
            *prompts, whole = [next(ids) for _ in range(len(conversation.replies) + 1)]
            if self._spells_control(whole, conversation.messages):
                *prompts, whole = self._encode_turns_as_text(conversation)
            example = self._supervise(conversation.source, prompts, whole)
            if max_length is None or len(example) <= max_length:
                examples.append(example)
            else:
                examples.append(self._truncate(conversation, max_length))
        return examples

    def build_example(self, conversation: Conversation) -> Example:
        """Tokenize one conversation, whatever its length."""
        (example,) = self.build_examples([conversation])
        assert example is not None, "nothing is dropped without a max_length"
        return example

    def build_prompt(self, messages: Sequence[Message]) -> list[int]:
        """The token ids after which the model replies to the last user turn."""
        (ids,) = self.encoder.encode([self.render(messages, add_generation_prompt=True)])
        if self._spells_control(ids, messages, prompt=True):
            ids = self._encode_as_text(messages, prompt=True)
        return ids

    def stream_reply(self, ids: Iterable[int]) -> Iterator[str]:
        """Yield the text of a reply while its ids arrive, without the template's lead and tail.

        Args:
            ids: read up to the stop token, or to their end.
        """
        lead, tail = self.traits.reply_lead, self.traits.reply_tail
        held = ""  # text that may be the lead or the tail
        for piece in self.encoder.decode_stream(ids, self.stop_id):
            held += piece
            if len(held) < len(lead) and lead.startswith(held):
                continue
            held, lead = held.removeprefix(lead), ""
            ready = len(held) - len(tail)
            if ready > 0:
                yield held[:ready]
                held = held[ready:]
        if rest := held.removesuffix(tail):
            yield rest

    def parse_reply(self, ids: Iterable[int]) -> str:
        """The text of a reply: the inverse of what `build_example` supervises of one turn."""
        return "".join(self.stream_reply(ids))

    # Text to ids and labels.

    def _render_turns(self, conversation: Conversation) -> list[str]:
        """The prompt of each reply, then the whole conversation."""
        messages = conversation.messages
        try:
            if len(conversation.replies) > 1 and not self.traits.keeps_turns:
                raise DataError("several replies, but this chat template rewrites earlier turns")
            prompts = [
                self.render(messages[:k], add_generation_prompt=True) for k in conversation.replies
            ]
            return [*prompts, self.render(messages)]
        except DataError as error:
            raise DataError(
                error.what, where=conversation.source, fix="change or remove it"
            ) from None

    def _supervise(self, source: str, prompts: Sequence[list[int]], whole: list[int]) -> Example:
        """The example in which each reply, from its prompt to its stop token, is supervised."""
        input_ids = np.array(whole, dtype=np.int32)
        labels = np.full_like(input_ids, IGNORED)
        for prompt in prompts:
            start = len(prompt)
            if whole[:start] != prompt or self.stop_id not in whole[start:]:
                raise DataError(
                    "its tokens do not begin with those of its prompt",
                    where=source,
                    fix="change or remove the row",
                )
            end = whole.index(self.stop_id, start) + 1
            labels[start:end] = input_ids[start:end]
        return Example(input_ids, labels, source)

    def _truncate(self, conversation: Conversation, max_length: int) -> Example | None:
        """The longest recent part of a conversation that fits, or None.

        It is rendered again after each cut, so BOS, system text and headers stay whole.
        """
        messages = list(conversation.messages)
        opening = [messages.pop(0)] if messages[0].role == "system" else []
        while True:
            shorter = replace(conversation, messages=(*opening, *messages))
            example = self.build_example(shorter)
            excess = len(example) - max_length
            if excess <= 0:
                return replace(example, truncated=True)
            if len(messages) > 2:
                del messages[:2]
                continue
            question = messages[0].content
            starts = self.encoder.token_starts(question)
            if excess >= len(starts):
                return None
            messages[0] = replace(messages[0], content=question[max(starts[excess], 1) :])

    # Text that spells a control token, such as "</s>", stays text.

    def _spells_control(
        self, ids: Sequence[int], messages: Sequence[Message], prompt: bool = False
    ) -> bool:
        """Whether ids hold another number of control tokens than the template writes by itself."""
        shape = (*(m.role for m in messages), "prompt" if prompt else "whole")
        if shape not in self._control_counts:
            plain = [replace(message, content="x") for message in messages]
            (plain_ids,) = self.encoder.encode([self.render(plain, add_generation_prompt=prompt)])
            self._control_counts[shape] = len(self.encoder.control_in(plain_ids))
        return len(self.encoder.control_in(ids)) != self._control_counts[shape]

    def _encode_turns_as_text(self, conversation: Conversation) -> list[list[int]]:
        """The ids of `_render_turns`, with the control tokens that messages spell kept as text."""
        messages = conversation.messages
        try:
            prompts = [
                self._encode_as_text(messages[:k], prompt=True) for k in conversation.replies
            ]
            return [*prompts, self._encode_as_text(messages)]
        except DataError as error:
            raise DataError(error.what, where=conversation.source, fix=error.fix) from None

    def _encode_as_text(self, messages: Sequence[Message], prompt: bool = False) -> list[int]:
        contents, originals = self.encoder.mask([message.content for message in messages])
        masked = [replace(m, content=c) for m, c in zip(messages, contents, strict=True)]
        text = self.render(masked, add_generation_prompt=prompt)
        ids = self.encoder.encode_masked(text, originals)
        if self._spells_control(ids, messages, prompt) or not self.traits.encodes_in_pieces:
            raise DataError(
                "it spells a control token of this model",
                fix=f"remove it; the control tokens are {', '.join(self.encoder.control)}",
            )
        return ids
