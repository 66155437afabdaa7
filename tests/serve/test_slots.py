"""Whose turn it is, and in which slot."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

pytest.importorskip("starlette", reason="the extra `serve` is not installed")

from offbook.serve.slots import Slot, Slots

A, B = (1.0,), (0.0,)
Test = Callable[[], Coroutine[Any, Any, None]]


def in_loop(test: Test) -> Callable[[], None]:
    def run() -> None:
        asyncio.run(test())

    run.__name__ = test.__name__
    return run


async def begun(task: asyncio.Task[Slot]) -> bool:
    for _ in range(3):
        await asyncio.sleep(0)
    return task.done()


@in_loop
async def test_only_equal_strengths_are_written_at_a_time_first_come_first_served() -> None:
    slots = Slots(2)
    first = await slots.take(A, [1])
    other = asyncio.create_task(slots.take(B, [1]))
    assert not await begun(other)
    same = asyncio.create_task(slots.take(A, [1]))
    assert not await begun(same)  # it came later
    assert (slots.running, slots.waiting) == (1, 2)
    slots.free(first)
    assert await begun(other)
    assert not await begun(same)
    slots.free(await other)
    assert await begun(same)


@in_loop
async def test_a_prompt_goes_where_its_beginning_was_computed_with_the_same_strengths() -> None:
    slots = Slots(3)
    one, two = await slots.take(A, [1, 2, 3]), await slots.take(A, [1, 5])
    assert {one.number, two.number} < {0, 1, 2}
    slots.free(one)
    slots.free(two)
    again = await slots.take(A, [1, 2, 3, 4])
    assert again is one
    slots.free(again)
    for _ in range(3):  # another adapter's prompt is as good as none, and overwrites none
        other = await slots.take(B, [1, 2, 3, 4])
        assert other not in (one, two)
        slots.free(other)


@in_loop
async def test_who_leaves_is_forgotten() -> None:
    slots = Slots(1)
    first = await slots.take(A, [1])
    leaving, staying = (asyncio.create_task(slots.take(A, [1])) for _ in range(2))
    await begun(leaving)
    leaving.cancel()
    await begun(leaving)
    slots.free(first)
    assert await begun(staying)
    slots.free(await staying)
    # One that is cancelled when it has just got its slot gives it back.
    taken = await slots.take(A, [1])
    late = asyncio.create_task(slots.take(A, [1]))
    await asyncio.sleep(0)
    slots.free(taken)
    late.cancel()
    await begun(late)
    assert (slots.running, slots.waiting) == (0, 0)


@in_loop
async def test_no_slot_is_lost_or_taken_twice() -> None:
    slots, chance, held = Slots(3), random.Random(0), set[int]()

    async def client() -> None:
        slot = await slots.take(chance.choice((A, B)), [chance.randrange(3)])
        assert slot.number not in held
        held.add(slot.number)
        try:
            await asyncio.sleep(chance.random() / 1000)
        finally:
            held.remove(slot.number)
            slots.free(slot)

    tasks = [asyncio.create_task(client()) for _ in range(300)]
    while not all(task.done() for task in tasks):
        await asyncio.sleep(0.0005)
        for task in chance.sample(tasks, 5):
            task.cancel()
    done = await asyncio.gather(*tasks, return_exceptions=True)
    assert {type(result) for result in done} <= {type(None), asyncio.CancelledError}
    assert (slots.running, slots.waiting, held) == (0, 0, set())
