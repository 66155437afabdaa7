"""Generated input: how often a property is tried, and files with faults."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from offbook.errors import OffbookError

SECONDS = 20  # for one small file, on a busy machine


def tries(fast: int, slow: int) -> pytest.MarkDecorator:
    """Run a test with a few cases, and as a slow test with many."""
    values = [pytest.param(fast), pytest.param(slow, marks=pytest.mark.slow)]
    return pytest.mark.parametrize("cases", values)


def hold(cases: int, *strategies: st.SearchStrategy[Any]) -> Callable[[Callable[..., None]], None]:
    """Check a property at once, with the same cases each time."""

    def check(holds: Callable[..., None]) -> None:
        sure = settings(
            max_examples=cases,
            derandomize=True,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        )
        sure(given(*strategies)(holds))()

    return check


def refusal(act: Callable[[], object]) -> str | None:
    """The error that `act` is refused with, within SECONDS; any other exception fails the test."""
    started = time.monotonic()
    try:
        act()
        return None
    except OffbookError as error:
        return str(error)
    finally:
        assert time.monotonic() - started < SECONDS


@st.composite
def changed(
    draw: st.DrawFn, whole: st.SearchStrategy[bytes], scraps: st.SearchStrategy[bytes]
) -> bytes:
    """Bytes with pieces removed, inserted, doubled or moved, and perhaps truncated."""
    data = draw(whole)
    for _ in range(draw(st.integers(1, 4))):
        start, end = sorted(draw(st.tuples(*[st.integers(0, len(data))] * 2)))
        piece = draw(scraps | st.sampled_from([b"", data[start:end], data[start:end] * 2]))
        data = data[:start] + piece + data[draw(st.sampled_from([start, end, len(data)])) :]
    return data
