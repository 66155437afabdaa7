"""Conversations to token ids and back: the only code that does either.

Training rows, chat prompts and exports all come through `ChatTemplate`, which renders with the
tokenizer's own chat template and keeps no copy of any. For each assistant turn k it renders the
prompt `p = render(messages[:k], add_generation_prompt=True)` and the whole `f = render(messages)`,
requires that f begin with p token by token, and supervises what follows p up to and including the
token that stops the turn. `verify` proves these properties for the model in hand.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np
from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from offbook.data.conversations import Conversation, Message
from offbook.errors import DataError, ModelError
from offbook.tokens.encoding import TextEncoder
from offbook.tokens.examples import IGNORED, Example, supervised_spans
from offbook.tokens.sandbox import check_source, within_limits

RENDERING_ERRORS = (
    TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
)

_SYSTEM = Message("system", "You are 三娘, who keeps an inn.")
_PROBE = (
    Message("user", "Hello world: 你好?"),
    Message("assistant", "Yes, it's 3.14.\n\n臣妾谢皇上！"),
    Message("user", "And  then"),
    Message("assistant", "No."),
)


class ChatTemplate:
    """A tokenizer's chat template, verified.

    Attributes:
        tokenizer: whose template it is.
        encoder: turns rendered text into ids.
        stop_id: the token that ends an assistant turn.
        reply_lead: what stands between the prompt and the reply's own text, such as the space
            after `Assistant:`. It is supervised, for the model has to produce it.
        reply_tail: likewise, what stands between the reply's own text and `stop_id`.
        takes_system: whether the template has a place for system text. Where it has none, the
            text goes before the first user turn.
        takes_turns: whether a finished turn stays as it was when more turns follow.

    Raises:
        ModelError: when the template fails `verify`.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        if not tokenizer.chat_template:
            raise self._refusal("it does not exist")
        try:
            check_source(tokenizer.get_chat_template())
        except RENDERING_ERRORS as error:
            raise self._refusal(str(error)) from None
        self.encoder = TextEncoder(tokenizer)
        self._expected: dict[tuple[str, ...], int] = {}
        self.takes_system = self._takes_system()
        self.reply_lead, self.reply_tail, self.stop_id = self._probe_reply()
        self.takes_turns = self._takes_turns()
        self.verify()

    @property
    def notes(self) -> list[str]:
        """What a user should know of this template."""
        notes = []
        if not self.takes_system:
            notes.append(
                "the chat template takes no system text; it goes before the first user turn"
            )
        if not self.takes_turns:
            notes.append(
                "the chat template rewrites earlier turns; rows of several turns are refused"
            )
        return notes

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = False) -> str:
        """The conversation as the tokenizer's own template writes it.

        Raises:
            DataError: when the template refuses it, or does not end; see `sandbox`.
        """
        if not self.takes_system and messages and messages[0].role == "system":
            system, first, *rest = messages
            messages = [replace(first, content=f"{system.content}\n\n{first.content}"), *rest]
        turns = [{"role": m.role, "content": m.content} for m in messages]

        def work() -> str:
            return str(
                self.tokenizer.apply_chat_template(
                    turns, tokenize=False, add_generation_prompt=add_generation_prompt
                )
            )

        try:
            return within_limits(work)
        except DataError:
            raise
        except RENDERING_ERRORS as error:
            raise DataError(f"the chat template refuses it: {error}") from None

    def build_examples(
        self, conversations: Sequence[Conversation], max_length: int | None = None
    ) -> list[Example | None]:
        """Tokenize a batch of conversations, every assistant turn supervised.

        Args:
            conversations: each ending with an assistant turn.
            max_length: most tokens an example may have. A longer one loses its oldest turns, then
                the beginning of its user text; never system text, nor the end of a reply.

        Returns:
            An example for each conversation, or None where the last reply alone is too long.

        Raises:
            DataError: naming a row that cannot be rendered as this class promises.
        """
        texts = within_limits(lambda: [text for c in conversations for text in self._texts(c)])
        # One call for the whole batch lets the tokenizer use every core.
        ids = iter(self.encoder.encode(texts))
        examples: list[Example | None] = []
        for conversation in conversations:
            replies = sum(m.role == "assistant" for m in conversation.messages)
            *prompts, whole = [next(ids) for _ in range(replies + 1)]
            if self._spells_control(whole, conversation.messages):
                *prompts, whole = self._encode_as_text(conversation)
            example = self._supervise(conversation.source, prompts, whole)
            if max_length is None or len(example) <= max_length:
                examples.append(example)
            else:
                examples.append(self._shortened(conversation, max_length))
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
            ids = self._encode_one_as_text(messages, prompt=True)
        return ids

    def parse_reply(self, ids: Iterable[int]) -> str:
        """The text of a reply: the inverse of what `build_example` supervises of one turn."""
        reply = []
        for index in ids:
            if index == self.stop_id:
                break
            reply.append(index)
        text = self.tokenizer.decode(reply, clean_up_tokenization_spaces=False)
        return str(text).removeprefix(self.reply_lead).removesuffix(self.reply_tail)

    def verify(self) -> None:
        """Prove the template, and this class, on probe conversations.

        At most one BOS opens a conversation; each reply is supervised whole, with its lead and one
        stop token; ids are the tokenizer's own; `parse_reply` is the inverse of `build_example`.

        Raises:
            ModelError: naming the property that does not hold.
        """
        probes = [_PROBE[:2], (_SYSTEM, *_PROBE[:2])]
        if self.takes_turns:
            probes += [_PROBE, (_SYSTEM, *_PROBE)]
        for messages in probes:
            try:
                example = self.build_example(Conversation(messages))
                own = ChatTemplate.render(self, messages)
            except DataError as error:
                raise self._refusal(error.what) from None
            ids = example.input_ids.tolist()
            if ids != self.tokenizer.encode(own, add_special_tokens=False):
                raise self._refusal("a training row differs from what the chat template writes")
            if ids[:2] == [self.tokenizer.bos_token_id] * 2:
                raise self._refusal("it begins with BOS twice")
            replies = [m.content for m in messages if m.role == "assistant"]
            spans = supervised_spans(example.labels)
            if len(spans) != len(replies):
                raise self._refusal(f"{len(spans)} of {len(replies)} replies are supervised")
            for (start, end), reply in zip(spans, replies, strict=True):
                if ids[end - 1] != self.stop_id:
                    raise self._refusal("the token that ends a reply is not supervised")
                read_back = self.parse_reply(ids[start:end])
                if read_back != reply:
                    raise self._refusal(f"{reply!r} reads back as {read_back!r}")
            if ids[spans[-1][0] :].count(self.stop_id) != 1:
                raise self._refusal("its stop token stands more than once after a reply")

    # What the template does, found by trying.

    def _takes_system(self) -> bool:
        self.takes_system = True  # or `render` would move the text that is looked for
        try:
            return _SYSTEM.content in self.render((_SYSTEM, *_PROBE[:2]))
        except DataError:
            return False

    def _probe_reply(self) -> tuple[str, str, int]:
        question, reply = _PROBE[:2]
        try:
            prompt = self.render([question], add_generation_prompt=True)
            whole = self.render([question, reply])
        except DataError as error:
            raise self._refusal(error.what) from None
        if not whole.startswith(prompt) or reply.content not in whole[len(prompt) :]:
            raise self._refusal("a training row does not begin with the prompt given at chat time")
        lead, _, tail = whole[len(prompt) :].partition(reply.content)
        if not lead and (prompt[-1:].isalnum() or prompt[-1:] in ":："):
            raise self._refusal(
                f"the reply is glued to its header, {prompt[-12:] + reply.content[:3]!r}"
            )
        stops = self.encoder.control_in(self.encoder.encode([tail])[0])
        if not stops:
            raise self._refusal("no token ends a reply, so the model would never learn to stop")
        stop = str(self.tokenizer.convert_ids_to_tokens(stops[0]))
        return lead, tail.partition(stop)[0], stops[0]

    def _takes_turns(self) -> bool:
        try:
            finished, prompt, whole = self.encoder.encode(
                [
                    self.render(_PROBE[:2]),
                    self.render(_PROBE[:3], add_generation_prompt=True),
                    self.render(_PROBE),
                ]
            )
        except DataError:
            return False
        finished = finished[: _last(finished, self.stop_id) + 1]
        return prompt[: len(finished)] == finished and whole[: len(prompt)] == prompt

    def _refusal(self, reason: str) -> ModelError:
        return ModelError(
            f"the chat template cannot be trained on: {reason}",
            where=self.tokenizer.name_or_path or None,
            fix="use a chat model whose template is intact",
        )

    # Text to ids.

    def _texts(self, conversation: Conversation) -> list[str]:
        """The prompt of each assistant turn, then the whole."""
        messages = conversation.messages
        replies = [k for k, message in enumerate(messages) if message.role == "assistant"]
        try:
            if len(replies) > 1 and not self.takes_turns:
                raise DataError("several replies, but this chat template rewrites earlier turns")
            prompts = [self.render(messages[:k], add_generation_prompt=True) for k in replies]
            return [*prompts, self.render(messages)]
        except DataError as error:
            raise DataError(
                error.what, where=conversation.source, fix="change or remove it"
            ) from None

    def _supervise(self, source: str, prompts: Sequence[list[int]], whole: list[int]) -> Example:
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

    def _shortened(self, conversation: Conversation, max_length: int) -> Example | None:
        """The longest recent part of a conversation that fits, its beginning cut off."""
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
            starts = self.encoder.starts(question)
            if excess >= len(starts):
                return None
            messages[0] = replace(messages[0], content=question[max(starts[excess], 1) :])

    # Text that spells a control token, such as "</s>", stays text.

    def _spells_control(
        self, ids: Sequence[int], messages: Sequence[Message], prompt: bool = False
    ) -> bool:
        """Whether ids hold another number of control tokens than the template itself writes."""
        shape = (*(m.role for m in messages), "prompt" if prompt else "whole")
        if shape not in self._expected:
            plain = [replace(message, content="x") for message in messages]
            (plain_ids,) = self.encoder.encode([self.render(plain, add_generation_prompt=prompt)])
            self._expected[shape] = len(self.encoder.control_in(plain_ids))
        return len(self.encoder.control_in(ids)) != self._expected[shape]

    def _encode_as_text(self, conversation: Conversation) -> list[list[int]]:
        """The ids of `_texts`, with every control token in the messages kept as text."""
        messages, source = conversation.messages, conversation.source
        replies = [k for k, message in enumerate(messages) if message.role == "assistant"]
        try:
            prompts = [self._encode_one_as_text(messages[:k], prompt=True) for k in replies]
            return [*prompts, self._encode_one_as_text(messages)]
        except DataError as error:
            raise DataError(error.what, where=source, fix=error.fix) from None

    def _encode_one_as_text(self, messages: Sequence[Message], prompt: bool = False) -> list[int]:
        contents, meanings = self.encoder.mask([message.content for message in messages])
        masked = [replace(m, content=c) for m, c in zip(messages, contents, strict=True)]
        text = self.render(masked, add_generation_prompt=prompt)
        ids = self.encoder.encode_masked(text, meanings)
        if self._spells_control(ids, messages, prompt) or not self._pieces_are_exact:
            raise DataError(
                "it spells a control token of this model",
                fix=f"remove it; the control tokens are {', '.join(self.encoder.control)}",
            )
        return ids

    @cached_property
    def _pieces_are_exact(self) -> bool:
        """Whether encoding piece by piece gives the ids of encoding at once."""
        text = self.render(_PROBE[:2])
        return self.encoder.encode_masked(text, {}) == self.encoder.encode([text])[0]


def _last(ids: Sequence[int], token: int) -> int:
    return max(k for k, index in enumerate(ids) if index == token)
