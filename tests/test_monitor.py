"""Reports as lines of text, and the time that is left."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

import pytest

from offbook import monitor
from offbook.monitor import EvalMetrics, Heartbeat, LineMonitor, Pace, StepMetrics
from offbook.settings.config import Config
from offbook.training.train import train


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Passes this many seconds."""
    now = [1000.0]
    monkeypatch.setattr(monitor.time, "monotonic", lambda: now[0])
    return lambda seconds: now.__setitem__(0, now[0] + seconds)


def test_time_left_is_known_from_the_first_step(clock: Callable[[float], None]) -> None:
    pace = Pace()
    pace.begin(10, 20)
    clock(100)  # a validation
    pace.resume()
    clock(7)
    pace.step(11)
    assert pace.left() == "00:01:03"
    clock(13)
    pace.step(12)
    assert pace.left() == "00:01:20"


def test_more_than_a_day_is_left(clock: Callable[[float], None]) -> None:
    pace = Pace()
    pace.begin(0, 1001)
    clock(100)
    pace.step(1)
    assert pace.left() == "27:46:40"


def test_lines_of_steps(clock: Callable[[float], None]) -> None:
    lines: list[str] = []
    with LineMonitor(lines.append) as heard:
        heard.begin(0, 100)
        for step in range(1, 21):
            clock(4)
            heard.step(step, 1.5, 2.0)
            if step % 10 == 0:
                heard.metrics(StepMetrics(step, 0.1, 1.25, 1.0, 1e-4, 2.0))
        heard.metrics(EvalMetrics(20, 1.0))
    assert lines == [
        "step 1/100: loss 1.500, 2.0 examples/s, left 00:06:36",
        "step 9/100: loss 1.500, 2.0 examples/s, left 00:06:04",
        "step 10/100: loss 1.250, 2.0 examples/s, left 00:06:00",
        "step 18/100: loss 1.500, 2.0 examples/s, left 00:05:28",
        "step 20/100: loss 1.250, 2.0 examples/s, left 00:05:20",
        "step 20: validation loss 1.000",
    ]


def test_what_is_slow_is_said_until_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitor, "SECONDS_PER_BEAT", 0.01)
    lines: list[str] = []
    heartbeat = Heartbeat(lines.append)
    heartbeat.begin("loading")
    while len(lines) < 3:
        time.sleep(0.01)
    heartbeat.end()
    time.sleep(0.05)
    count = len(lines)
    time.sleep(0.05)
    assert len(lines) == count
    assert set(lines) == {"loading: 0 s so far"}


def test_training_from_python_tells_a_function(tiny_config: Callable[..., Config]) -> None:
    lines: list[str] = []
    assert train(tiny_config(), monitor=lines.append).finished
    text = "\n".join(lines)
    assert "alpaca rows" in text
    assert re.search(r"^step 1/5: loss \d\.\d+, .* left 00:\d\d:\d\d$", text, re.MULTILINE)
    assert re.search(r"^step 5: validation loss", text, re.MULTILINE)
