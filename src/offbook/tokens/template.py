"""Conversations to token ids and labels, and a reply's ids back to text: the only code for both.

Training and chat both use `ChatTemplate`. It renders with the tokenizer's own
chat template, of which this project has no copy. For each reply, it renders the messages before it
as a prompt, `p = render(messages[:k], add_generation_prompt=True)`, and the whole conversation,
`f = render(messages)`. The ids of f must begin with those of p; what follows them, up to and
including the stop token, must be the reply, and is supervised.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np
from transformers import PreTrainedTokenizerBase

from offbook.data.messages import Conversation, Message
from offbook.errors import DataError
from offbook.tokens.encoding import TextEncoder
from offbook.tokens.examples import IGNORED, Example, RowExamples, joined_row
from offbook.tokens.parts import Part, cut, each_reply, whole
from offbook.tokens.probe import probe, sample, turn_tokens
from offbook.tokens.reasoning import CLOSE, after_opening, has_reasoning, same_words, without_text
from offbook.tokens.render import Renderer, move_system_text
from offbook.tokens.sandbox import within_limits
from offbook.tokens.verify import verify
from offbook.tokens.written import Written

FEW = 4  # replies up to which each prompt is rendered
CHANGED = "the chat template writes something else than its reply"


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
        self.encoder = TextEncoder(tokenizer, sample(self.renderer))
        self.traits = probe(self.renderer, self.encoder)
        self._control_counts: dict[tuple[object, ...], int] = {}
        verify(self)

    @property
    def stop_id(self) -> int:
        """The token that ends a reply."""
        return self.traits.stop_id

    @cached_property
    def _turn_tokens(self) -> int:
        return turn_tokens(self.renderer, self.encoder)

    @cached_property
    def _encodes_in_pieces(self) -> bool:
        """Whether the template's text, cut at its control tokens, has the same ids."""
        text = sample(self.renderer)
        return self.encoder.encode_masked(text, {}) == self.encoder.encode([text])[0]

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
                "the chat template rewrites earlier turns; a row of several turns becomes one "
                "example per reply, each as chat would see it"
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
    ) -> list[RowExamples]:
        """Tokenize a batch of conversations, with every reply supervised in one example.

        Args:
            conversations: each ends with a reply.
            max_length: largest number of tokens of an example. A longer conversation is cut into
                several; see `parts.cut`. If one reply and its question are too long, the question
                loses its beginning; if the reply alone is too long, it is left out.

        Raises:
            DataError: naming a row that the template refuses or changes, or whose prompt is not a
                prefix.
        """
        planned = [self._plan(whole(c), max_length) for c in conversations]
        built = iter(self._build([part for parts in planned for part in parts], max_length))
        return [joined_row([next(built) for _ in parts]) for parts in planned]

    def build_example(self, conversation: Conversation) -> Example:
        """Tokenize one conversation, whatever its length."""
        (row,) = self.build_examples([conversation])
        (example,) = row.examples
        return example

    def build_prompt(self, messages: Sequence[Message]) -> list[int]:
        """The token ids after which the model replies to the last user turn."""
        messages, originals = self._masked(messages)
        text = self.render(messages, add_generation_prompt=True)
        if originals:
            return self.encoder.encode_masked(text, originals)
        (ids,) = self.encoder.encode([text])
        return ids

    def stream_reply(self, ids: Iterable[int]) -> Iterator[str]:
        """Yield the text of a reply while its ids arrive, without the template's lead and tail.

        Args:
            ids: read up to the stop token, or to their end.
        """
        return self.trim_reply(self.encoder.decode_stream(ids, self.stop_id))

    def trim_reply(self, pieces: Iterable[str]) -> Iterator[str]:
        """Yield what a model writes after a prompt, without the template's lead and tail.

        Args:
            pieces: its text, without the stop token, while it arrives.
        """
        lead, tail, opening = self.traits.reply_lead, self.traits.reply_tail, self.traits.opening
        held = ""  # text that may be the lead or the tail
        for piece in pieces:
            held += piece
            if len(held) < len(lead) and lead.startswith(held):
                continue
            # A reply that does not close the prompt's block of reasoning continues it.
            held = held[len(lead) :] if held.startswith(lead) else opening + held
            lead = opening = ""
            ready = len(held) - len(tail)
            if ready > 0:
                yield held[:ready]
                held = held[ready:]
        if rest := held.removesuffix(tail):
            yield rest

    def parse_reply(self, ids: Iterable[int]) -> str:
        """The text of a reply: the inverse of what `build_example` supervises of one turn."""
        return "".join(self.stream_reply(ids))

    # A conversation to parts.

    def _plan(self, part: Part, max_length: int | None, single: bool = False) -> list[Part]:
        """The parts of a conversation; one if it may fit and the template allows it."""
        single = single or not self.traits.keeps_turns
        if max_length is not None and len(part.messages) > 3:
            contents = self.encoder.encode([m.content for m in part.messages])
            sizes = [len(ids) for ids in contents]
            if single or sum(sizes) > max_length:
                return self._cut(part, sizes, max_length, single)
        return each_reply(part) if single else [part]

    def _cut(self, part: Part, sizes: list[int], max_length: int, single: bool) -> list[Part]:
        def count(messages: Sequence[Message]) -> int:
            last = Part(tuple(messages), (len(messages) - 1,), part.source)
            if not self.traits.writes_replies or has_reasoning(messages[-1]):
                ((example,),) = (row.examples for row in self._build([last], None))
                return len(example)
            written = self._write(replace(last, supervised=()))
            if written.originals:
                return len(self.encoder.encode_masked(written.texts[0], written.originals))
            return len(self.encoder.encode([written.texts[0]])[0])

        sizes = [size + self._turn_tokens for size in sizes]
        return list(cut(part, sizes, max_length, count, single))

    def _truncate(self, part: Part, example: Example, max_length: int) -> RowExamples:
        """The example of a question and a reply, without the beginning of the question.

        It is rendered again after each cut, so BOS, system text and headers stay whole.
        """
        while (excess := len(example) - max_length) > 0:
            *opening, question, reply = part.messages
            starts = self.encoder.token_starts(question.content)
            if excess >= len(starts):
                return RowExamples(dropped=[part.place])
            shorter = replace(question, content=question.content[max(starts[excess], 1) :])
            part = replace(part, messages=(*opening, shorter, reply), truncated=True)
            (row,) = self._build([part], None)
            (example,) = row.examples
        return row

    # Parts to ids and labels.

    def _build(self, parts: Sequence[Part], max_length: int | None) -> list[RowExamples]:
        """The examples of each part: one, if it fits and the template does not rewrite turns."""
        # First all text, then all ids: memory is limited while templates run, and tokenizers, which
        # are not written in Python, abort when they get none.
        texts = within_limits(lambda: [self._write(part) for part in parts])
        # One call for the whole batch lets the tokenizer use every core.
        plain = [text for written in texts if not written.originals for text in written.texts]
        ids = iter(self.encoder.encode(plain))
        rows = []
        for part, written in zip(parts, texts, strict=True):
            encoded = [
                self.encoder.encode_masked(text, written.originals)
                if written.originals
                else next(ids)
                for text in written.texts
            ]
            rows.append(self._fit(part, self._supervise(part, written, encoded), max_length))
        return rows

    def _fit(self, part: Part, row: RowExamples | None, max_length: int | None) -> RowExamples:
        """What was built from a part, cut where it is too long or could not be built as one."""
        if row is None:
            return joined_row(self._build(self._plan(part, max_length, single=True), max_length))
        (example,) = row.examples
        if max_length is None or len(example) <= max_length:
            return row
        turns = [m for m in part.messages if m.role != "system"]
        if len(turns) == 2:
            return self._truncate(part, example, max_length)
        single = not self.traits.keeps_turns or len(part.supervised) == 1
        sizes = [max_length] * len(part.messages)  # the estimate was wrong
        if not single:
            sizes = [len(ids) for ids in self.encoder.encode([m.content for m in part.messages])]
        cuts = self._cut(part, sizes, max_length, single)
        return joined_row(self._build(cuts, max_length))

    def _write(self, part: Part) -> Written:
        """The text of a part and of the prompt of each supervised reply."""
        try:
            messages, originals = self._masked(part.messages)
            text = self.render(messages) if self.traits.writes_replies else ""
            prompts = self._prompts(messages, part.supervised, text)
        except DataError as error:
            raise DataError(error.what, where=part.place, fix="change or remove it") from None
        if not self.traits.ends_replies:
            text += self.traits.stop_text
        if not self.traits.writes_replies:
            text = self._reply_after(prompts[0], messages[part.supervised[0]])
        replies = tuple(messages[k] for k in part.supervised)
        return Written.of(text, prompts, replies, originals, self.encoder)

    def _prompts(
        self, messages: list[Message], replies: Sequence[int], text: str
    ) -> list[str | int]:
        """The prompt of each reply; or its length, where the text is known to begin with it."""
        known: dict[int, int] = {}
        moved = 0  # messages that are not there any more when system text is moved
        if len(replies) > FEW:
            own = messages if self.traits.takes_system else move_system_text(messages)
            moved = len(messages) - len(own)
            known = self.renderer.prompt_lengths(own, text)
        return [
            known.get(k - moved) or self.render(messages[:k], add_generation_prompt=True)
            for k in replies
        ]

    def _reply_after(self, prompt: str | int, reply: Message) -> str:
        assert isinstance(prompt, str)
        return prompt + self._expected(reply) + self.traits.stop_text

    def _expected(self, reply: Message) -> str:
        """The text of a reply between its prompt and its stop token."""
        lead, content, tail = self.traits.reply_lead, reply.content, self.traits.reply_tail
        if not has_reasoning(reply):
            return lead + content + tail
        if self.traits.opening:
            return after_opening(content, self.traits.opening) + tail
        return (content if CLOSE in lead else lead + content) + tail

    def _supervise(
        self, part: Part, written: Written, encoded: list[list[int]], rewritten: bool = False
    ) -> RowExamples | None:
        """The example in which each reply, from its prompt to its stop token, is supervised.

        Returns:
            None where the template rewrites earlier turns of this conversation.
        """
        ids, *ends = encoded
        at = self.encoder.control_positions(ids)
        found = [written.find(reply, self.traits.stop_text) for reply in range(len(ends))]
        input_ids = np.array(ids, dtype=np.int32)
        labels = np.full_like(input_ids, IGNORED)
        trimmed, fault = 0, ""
        for place, end, reply in zip(found, ends, written.replies, strict=True):
            if place is None or len(at) != len(written.marks):
                fault = "its tokens do not begin with those of its prompt"
                break
            start = at[place.control - 1] if place.control else 0
            if ids[start : start + len(end)] != end:
                fault = "its tokens do not begin with those of its prompt"
                break
            expected = self._expected(reply)
            if not same_words(place.text, expected):
                fault = CHANGED
                break
            trimmed += place.text != expected
            span = slice(start + len(end), at[place.stop] + 1)
            labels[span] = input_ids[span]
        if not fault and len(written.marks) != self._control_count(part, rewritten):
            fault = "its text and the chat template's together spell a control token"
        if not fault:
            example = Example(input_ids, labels, part.source, part.truncated, part.number)
            return RowExamples([example], trimmed=trimmed, divided=part.divided)
        if len(part.supervised) > 1:
            return None
        (reply,), (prompt,) = written.replies, written.prompts
        if not has_reasoning(reply) or rewritten:
            keeps = "change the reply, or train a base whose template keeps it"
            fix = keeps if fault == CHANGED else "change or remove the row"
            raise DataError(fault, where=part.place, fix=fix)
        # The template drops or moves the reasoning; the model has to write it after the prompt.
        text = self._reply_after(prompt, reply)
        again = Written.of(text, [prompt], [reply], written.originals, self.encoder)
        encoded = [self.encoder.encode_masked(text, again.originals) for text in again.texts]
        return self._supervise(part, again, encoded, rewritten=True)

    # Text that spells a control token, such as "</s>", stays text.

    def _masked(self, messages: Sequence[Message]) -> tuple[list[Message], Mapping[int, str]]:
        if not self.encoder.spells_control(messages):
            return list(messages), {}
        if not self._encodes_in_pieces:
            raise DataError("it spells a control token, which this tokenizer cannot keep as text")
        contents, originals = self.encoder.mask(messages)
        masked = [replace(m, content=c) for m, c in zip(messages, contents, strict=True)]
        return masked, originals

    def _control_count(self, part: Part, rewritten: bool) -> int:
        """The number of control tokens that the template writes by itself."""
        plain = [without_text(message) for message in part.messages]
        shape = (*plain, part.supervised, rewritten)
        if shape not in self._control_counts:
            plain_part = replace(part, messages=tuple(plain))
            if not rewritten and self.traits.writes_replies:
                plain_part = replace(plain_part, supervised=())  # without the prompts
            written = self._write(plain_part)
            text = written.texts[0]
            if rewritten:
                text = self._reply_after(written.prompts[0], written.replies[0])
            self._control_counts[shape] = len(self.encoder.pattern.findall(text))
        return self._control_counts[shape]
