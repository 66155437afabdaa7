"""What the Python API does on Ctrl-C, and in a forked process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from offbook.runs.directory import RunDirectory
from offbook.settings.config import Config
from offbook.training.interrupt import Interrupt
from offbook.training.train import train

PROGRAM = """
import sys
from pathlib import Path
import offbook
from offbook.monitor import Monitor

class Steps(Monitor):
    def step(self, step, loss, examples_per_second):
        print("step", step, flush=True)

config = offbook.Config.load(Path(sys.argv[1]))
try:
    offbook.train(config, monitor=Steps(), resume=len(sys.argv) > 2)
except KeyboardInterrupt as error:
    print("interrupted:", error)
"""


def start(program: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_an_interrupt_saves_the_run_and_says_how_to_go_on(
    tiny_config: Callable[..., Config], tmp_path: Path
) -> None:
    config = tiny_config("train.max_steps=60", "train.save_steps=60", f"output_dir={tmp_path}/a b")
    file = tmp_path / "config.yaml"
    file.write_text(config.to_yaml(), encoding="utf-8")
    with start(PROGRAM, str(file)) as program:
        for line in program.stdout:
            if line == "step 3\n":
                program.send_signal(signal.SIGINT)
                break
        said = program.stdout.read().splitlines()[-1]
    assert program.returncode == 0
    steps = int(said.split("after step ")[1].split(";")[0])
    assert 3 <= steps < 60
    assert said == (
        f"interrupted: saved after step {steps}; continue with "
        f"`offbook.train(config, resume=True)`, or `offbook train '{tmp_path}/a b' --resume`"
    )
    assert (tmp_path / f"a b/checkpoints/step-{steps}").is_dir()
    with start(PROGRAM, str(file), "resume") as program:
        said = program.stdout.read().splitlines()
    assert program.returncode == 0
    assert said == [f"step {step}" for step in range(steps + 1, 61)]


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_the_second_interrupt_is_raised_at_once() -> None:
    handler = signal.getsignal(signal.SIGINT)
    with Interrupt(lambda: False) as interrupt:
        assert not interrupt()
        signal.raise_signal(signal.SIGINT)
        assert interrupt()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is handler


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_handler_of_the_program_is_left_to_it() -> None:
    noted: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: noted.append(number))
    try:
        with Interrupt(lambda: bool(noted)) as interrupt:
            signal.raise_signal(signal.SIGINT)
            assert interrupt()
        assert not interrupt.arrived
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_says_why_it_cannot_train(tiny_config: Callable[..., Config]) -> None:
    """Instead of waiting forever for threads that it does not have."""
    config = tiny_config()
    file = Path(config.output_dir).with_name("config.yaml")
    file.write_text(config.to_yaml(), encoding="utf-8")
    program = """
    import os, sys, warnings
    from pathlib import Path
    import offbook, torch
    warnings.simplefilter("ignore")  # of Python, about the fork
    config = offbook.Config.load(Path(sys.argv[1]))
    offbook.train(config)
    if not os.fork():
        for use in (lambda: offbook.train(config, overwrite=True),
                    lambda: offbook.Chat.open(config.output_dir)):
            try:
                use()
            except offbook.OffbookError as error:
                print(error, flush=True)
        os._exit(0)
    os.wait()
    import multiprocessing
    spawned = multiprocessing.get_context("spawn").Process(
        target=offbook.train, args=(config,), kwargs={"overwrite": True}
    )
    spawned.start()
    spawned.join()
    print("spawned:", spawned.exitcode)
    """
    with start(program, str(file)) as forked:
        said = forked.stdout.read().splitlines()
    assert len(said) == 3
    advice = 'start it with multiprocessing.get_context("spawn"), or with subprocess'
    assert all("was forked" in line and line.endswith(f"; {advice}") for line in said[:2])
    assert said[2] == "spawned: 0"


def test_an_uninterrupted_run_returns(tiny_config: Callable[..., Config]) -> None:
    handler = signal.getsignal(signal.SIGINT)
    result = train(tiny_config("train.max_steps=1"))
    assert result.finished
    assert RunDirectory.open(result.run).path == result.run
    assert signal.getsignal(signal.SIGINT) is handler
