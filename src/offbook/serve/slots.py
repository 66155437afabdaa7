"""Which request is answered next, and in which of llama.cpp's slots.

llama.cpp computes replies of one strength together, and lets those of another wait; it may reuse a
prompt that another adapter computed. So the order and the slots are chosen here: first come, first
served; only replies of equal strengths at a time; and a slot whose last prompt begins in the same
way, if the strengths were the same.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import takewhile


@dataclass(eq=False)
class Slot:
    """One of llama.cpp's slots.

    Attributes:
        number: by which llama.cpp knows it.
        strengths: of the adapters, of its last reply.
        prompt: of its last reply, which llama.cpp remembers.
    """

    number: int
    strengths: tuple[float, ...] | None = None
    prompt: list[int] = field(default_factory=list)

    def saved(self, strengths: tuple[float, ...], prompt: list[int]) -> int:
        """How many tokens of a prompt need not be computed."""
        if strengths != self.strengths:
            return -1
        pairs = zip(self.prompt, prompt, strict=False)
        return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


@dataclass(eq=False)
class _Waiting:
    strengths: tuple[float, ...]
    prompt: list[int]
    turn: asyncio.Future[Slot]


class Slots:
    """The slots, and who waits for one. All calls are made in one event loop.

    Args:
        count: of slots.
    """

    def __init__(self, count: int) -> None:
        self._free, self._busy = [Slot(number) for number in range(count)], list[Slot]()
        self._queue = deque[_Waiting]()

    @property
    def running(self) -> int:
        """How many replies are written."""
        return len(self._busy)

    @property
    def waiting(self) -> int:
        """How many requests wait."""
        return len(self._queue)

    async def take(self, strengths: Sequence[float], prompt: list[int]) -> Slot:
        """Wait for a slot. The caller frees it, or is cancelled before it has one."""
        turn: asyncio.Future[Slot] = asyncio.get_running_loop().create_future()
        waiting = _Waiting(tuple(strengths), prompt, turn)
        self._queue.append(waiting)
        self._serve()
        try:
            return await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                with suppress(ValueError):  # it is not there any more
                    self._queue.remove(waiting)
                self._serve()
            else:
                self.free(turn.result())
            raise

    def free(self, slot: Slot) -> None:
        """Give a slot back."""
        self._busy.remove(slot)
        self._free.insert(0, slot)  # of equal ones, the one that was used longest ago is last
        self._serve()

    def _serve(self) -> None:
        while self._queue and self._free:
            first = self._queue[0]
            if first.turn.cancelled():
                self._queue.popleft()
                continue
            if self._busy and self._busy[0].strengths != first.strengths:
                return
            self._queue.popleft()
            slot = max(reversed(self._free), key=lambda s: s.saved(first.strengths, first.prompt))
            self._free.remove(slot)
            slot.strengths, slot.prompt = first.strengths, first.prompt
            self._busy.append(slot)
            first.turn.set_result(slot)
