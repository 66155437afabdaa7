"""`offbook watch` beside a training that is killed and resumed, each in a process of its own."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from offbook.settings.config import Config

STEPS = 150


@contextmanager
def process(folder: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """`offbook` in a process, which is killed where it has not ended."""
    started = subprocess.Popen(
        [sys.executable, "-m", "offbook", *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        yield started
    finally:
        started.kill()
        started.wait()
        if started.stdout:
            started.stdout.close()


@contextmanager
def watched(folder: Path) -> Iterator[str]:
    """The address of the page of the run in `run`."""
    with process(folder, "watch", "run") as watch:
        assert watch.stdout
        line = watch.stdout.readline()
        assert line.startswith("page: http://localhost:")
        yield line.removeprefix("page: ").strip()
        watch.send_signal(signal.SIGINT)
        assert watch.wait(30) == 0


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=60) as answer:
        return str(answer.read().decode())


def steps_of(html: str) -> list[int]:
    """The steps in the table of the loss."""
    table = re.search(r'id="loss-table".*?</table>', html, re.DOTALL)
    return [int(step) for step in re.findall(r"<tr><td>(\d+)</td>", table[0])] if table else []


class Page:
    """A page that asks for what has changed, as the browser's does."""

    def __init__(self, url: str) -> None:
        self._url, self._version = url, ""
        self.parts: dict[str, str] = {}
        self.seen: list[int] = []

    def steps(self) -> list[int]:
        """The steps of the curve now; each is there once, and none is missing."""
        state = json.loads(get(f"{self._url}state?since={self._version}"))
        self._version = state["version"]
        self.parts |= state["parts"]
        steps = steps_of(self.parts["curves"])
        assert steps == list(range(len(steps)))
        self.seen.append(len(steps))
        return steps

    def wait(self, done: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 120
        while not done():
            assert time.monotonic() < deadline
            time.sleep(0.05)


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_the_curve_of_a_run_that_is_killed_and_resumed(
    tiny_config: Callable[..., Config], tmp_path: Path
) -> None:
    config = tiny_config(f"train.max_steps={STEPS}", "train.save_steps=40", "train.eval_steps=25")
    (tmp_path / "settings.yaml").write_text(config.to_yaml(), encoding="utf-8")
    metrics = tmp_path / "run" / "metrics.jsonl"

    def lines() -> int:
        return len(metrics.read_bytes().splitlines()) if metrics.exists() else 0

    with watched(tmp_path) as url:
        page = Page(url)
        assert page.steps() == []
        assert "The run has not begun yet." in page.parts["status"]
        with process(tmp_path, "train", "settings.yaml"):
            page.wait(lambda: bool(page.steps()) and lines() > 55)
        killed = page.seen[-1]
        with metrics.open("a") as file:
            file.write('{"step": 99, "epo')  # of a write that the kill has cut
        page.wait(lambda: page.steps()[-1] > 40)
        # The run goes back to its last checkpoint, and is shown to do so.
        with process(tmp_path, "train", "run", "--resume") as training:
            page.wait(lambda: page.steps()[-1] == STEPS)
            assert training.wait(60) == 0
        page.wait(
            lambda: page.steps() == [*range(STEPS + 1)] and "finished" in page.parts["status"]
        )
        assert killed < STEPS
        assert steps_of(get(url)) == [*range(STEPS + 1)]  # a reload loses nothing
    # Of a finished run, too, and from another server.
    with watched(tmp_path) as url:
        assert steps_of(get(url)) == [*range(STEPS + 1)]
