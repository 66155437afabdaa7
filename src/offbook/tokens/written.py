"""A part of a conversation as text: where each prompt ends, and the reply after it."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from offbook.data.messages import Message
from offbook.tokens.encoding import TextEncoder


@dataclass(frozen=True, slots=True)
class Reply:
    """A supervised reply in a text.

    Attributes:
        control: how many control tokens come before it.
        stop: the number of the control token that ends it.
        text: what is between its prompt and that token.
    """

    control: int
    stop: int
    text: str


@dataclass(frozen=True)
class Written:
    """A part as text.

    Tokenizers split text at control tokens before they do anything else. So the ids of a prompt are
    those of the whole text up to the prompt's last control token, and then those of the rest of
    the prompt. Only this rest is encoded again, which takes linear time for all prompts together.

    Attributes:
        texts: the whole text; then the end of each prompt, from its last control token on.
        prompts: the prompt of each supervised reply; or its length, where the text begins with it.
        replies: the supervised replies, with the text of control tokens masked.
        marks: the start, end and text of each control token in the whole text.
        originals: what each masking character stands for; see `TextEncoder.mask`.
    """

    texts: tuple[str, ...]
    prompts: tuple[str | int, ...]
    replies: tuple[Message, ...]
    marks: tuple[tuple[int, int, str], ...]
    originals: Mapping[int, str]

    @classmethod
    def of(
        cls,
        text: str,
        prompts: Sequence[str | int],
        replies: Sequence[Message],
        originals: Mapping[int, str],
        encoder: TextEncoder,
    ) -> Written:
        """Find the control tokens of a text, and the end of each prompt."""
        marks = tuple((*m.span(), m[0]) for m in encoder.pattern.finditer(text))
        ends = [end for _, end, _ in marks]
        tails = []
        for prompt in prompts:
            source, length = (text, prompt) if isinstance(prompt, int) else (prompt, len(prompt))
            before = bisect_right(ends, length)
            tails.append(source[marks[before - 1][0] if before else 0 : length])
        return cls((text, *tails), tuple(prompts), tuple(replies), marks, originals)

    def find(self, reply: int, stop_text: str) -> Reply | None:
        """Where a reply is; None if its prompt is not in the text, or no stop token follows."""
        prompt, text = self.prompts[reply], self.texts[0]
        if isinstance(prompt, str) and not text.startswith(prompt):
            return None
        length = prompt if isinstance(prompt, int) else len(prompt)
        control = bisect_right(self.marks, length, key=lambda mark: mark[1])
        for stop in range(control, len(self.marks)):
            start, _, token = self.marks[stop]
            if token == stop_text:
                return Reply(control, stop, text[length:start])
        return None
