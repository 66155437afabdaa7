"""A conversation cut into parts, each of which becomes one example.

Most conversations are one part. A long one is cut, and one whose earlier turns the template
rewrites has a part for each reply. Each reply is supervised in one part; the turns before it are
its context.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from offbook.data.messages import Conversation, Message


@dataclass(frozen=True, slots=True)
class Part:
    """Messages that become one example.

    Attributes:
        messages: system text, if any, then user and assistant turns.
        supervised: the positions in `messages` of the replies to train on.
        source: the `file:line` of the row.
        number: which reply of the row the first supervised one is, from 1.
        total: how many replies of the row are supervised.
        truncated: whether the beginning of the user text was removed.
        divided: whether it is not the whole conversation because that was too long.
    """

    messages: tuple[Message, ...]
    supervised: tuple[int, ...]
    source: str
    number: int = 1
    total: int = 1
    truncated: bool = False
    divided: bool = False

    @property
    def place(self) -> str:
        """The row, and which of its replies this is if it is one of several."""
        if self.total == 1 or len(self.supervised) > 1:
            return self.source
        return f"{self.source} (reply {self.number} of {self.total})"


def whole(conversation: Conversation) -> Part:
    """A conversation as one part."""
    replies = conversation.replies
    return Part(conversation.messages, replies, conversation.source, total=len(replies))


def each_reply(part: Part) -> list[Part]:
    """A part for each reply, with all turns before it as context."""
    return [
        replace(part, messages=part.messages[: k + 1], supervised=(k,), number=part.number + i)
        for i, k in enumerate(part.supervised)
    ]


def cut(
    part: Part,
    sizes: Sequence[int],
    max_length: int,
    count: Callable[[Sequence[Message]], int],
    single: bool = False,
) -> Iterator[Part]:
    """Parts that fit, each with as many of the turns before it as fit.

    The first part begins where the conversation begins. In the others, the turns that are new take
    about half of the tokens, so that each reply has context. A part of one turn may still be too
    long. The time is linear in the number of turns, because no part is longer than `max_length`.

    Args:
        part: a whole conversation.
        sizes: about how many tokens each message has, or `max_length` where all must be counted.
        max_length: most tokens of a part.
        count: the exact number of tokens of messages.
        single: whether each part has one supervised reply.
    """
    messages, replies = part.messages, part.supervised
    first = int(messages[0].role == "system")
    opening, head = messages[:first], sum(sizes[:first])

    def tokens(begin: int, end: int) -> int:
        return count((*opening, *messages[begin : end + 1]))

    done = 0
    while done < len(replies):
        begin = replies[done] - 1
        room = (max_length if begin == first else max_length // 2) - head
        last = done
        while (
            not single
            and last + 1 < len(replies)
            and sum(sizes[begin : replies[last + 1] + 1]) <= room
        ):
            last += 1
        end, expected = replies[last], sum(sizes[begin : replies[last] + 1]) + head
        question = begin
        while begin > first and expected + sizes[begin - 2] + sizes[begin - 1] <= max_length:
            expected += sizes[begin - 2] + sizes[begin - 1]
            begin -= 2
        # Counting takes most of the time. One that only seems to fit is cut again when it is built.
        fits = single and begin == first and expected + 64 <= max_length
        too_long = not fits and tokens(begin, end) > max_length
        while too_long and (begin < question or last > done):
            if begin < question:
                begin += 2
            else:
                last -= 1
                end = replies[last]
            too_long = tokens(begin, end) > max_length
        while not too_long and begin > first and tokens(begin - 2, end) <= max_length:
            begin -= 2
        shift = first - begin
        # Where each part has one reply, it is the length only that takes turns from its beginning.
        lost = begin > first or (not single and last + 1 - done < len(replies))
        yield Part(
            (*opening, *messages[begin : end + 1]),
            tuple(k + shift for k in replies[done : last + 1]),
            part.source,
            part.number + done,
            part.total,
            divided=part.divided or lost,
        )
        done = last + 1
