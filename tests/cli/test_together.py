"""`--nproc`, and torchrun: exit codes, signals, restarts, several machines."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from offbook.cli import app
from offbook.cli.launch import without_nproc
from offbook.engine.machine import processors, usable_memory
from offbook.models.base import ADAPTER_WEIGHTS
from offbook.settings.config import Config
from offbook.training.train import train
from support.runs import Listener
from support.together import ROOT, free_port

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="signals and processes of Linux")
FULL = bool(os.environ.get("OFFBOOK_TEST_PROCESSES"))
full = pytest.mark.skipif(not FULL, reason="needs OFFBOOK_TEST_PROCESSES=1")
OFFBOOK = (sys.executable, "-m", "offbook")
TORCHRUN = (sys.executable, "-m", "torch.distributed.run")


@pytest.fixture
def settings(tiny_config: Callable[..., Config], tmp_path: Path) -> Path:
    """A file with the settings of a run that takes a while."""
    config = tiny_config("train.max_steps=400", "train.save_steps=1000", "train.eval_steps=1000")
    file = tmp_path / "config.yaml"
    file.write_text(config.to_yaml(), encoding="utf-8")
    return file


def start(*command: str | Path) -> subprocess.Popen[str]:
    path = os.pathsep.join(map(str, (ROOT / "src", ROOT / "tests")))
    return subprocess.Popen(
        list(map(str, command)),
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def until_step(program: subprocess.Popen[str], step: int) -> list[str]:
    """Wait until so many steps are done; the lines until then."""
    lines = []
    assert program.stdout is not None
    for line in program.stdout:
        lines.append(line)
        if line.startswith("step ") and int(line.split()[1].split("/")[0].rstrip(":")) >= step:
            return lines
    raise AssertionError("".join(lines))


def worker(program: subprocess.Popen[str], rank: int) -> psutil.Process:
    """A process of a training, by its rank."""
    for child in psutil.Process(program.pid).children(recursive=True):
        if child.environ().get("RANK") == str(rank) and "offbook" in child.cmdline():
            return child
    raise AssertionError(rank)


def end(program: subprocess.Popen[str]) -> str:
    output, _ = program.communicate(timeout=120)
    return output


def test_ctrl_c_saves_once_and_one_process_resumes(settings: Path, tmp_path: Path) -> None:
    program = start(*OFFBOOK, "train", settings, "--nproc", "2")
    said = until_step(program, 3)
    program.send_signal(signal.SIGINT)
    rest = end(program)
    assert program.returncode == 130
    assert rest.count("saving and stopping") == 1
    assert rest.count("stopped and saved after step") == 1
    assert "Traceback" not in rest
    config = Config.load(settings)
    assert f"continue with\n    offbook train {config.output_dir} --resume --nproc 2\n" in rest
    assert sum(line.startswith("step 1/") for line in said) == 1, "one process reports"
    done = int(rest.split("saved after step ")[1].split(";")[0])
    heard = Listener()
    longer = config.override(f"train.max_steps={done + 2}")
    resumed = train(longer, resume=True, monitor=heard)
    assert resumed.finished
    assert resumed.steps == done + 2
    assert "processes was 2, is 1" in "".join(heard.heard)


@pytest.mark.parametrize(
    ("overrides", "code", "said"),
    [
        (("train.learning_rate=1e30", "train.max_steps=20"), 6, "error: "),
        (("data.train=nothing.json",), 3, "error: "),
    ][: None if FULL else 1],
)
def test_exit_codes_are_those_of_one_process(
    overrides: Sequence[str], code: int, said: str, settings: Path
) -> None:
    program = start(*OFFBOOK, "train", settings, *overrides, "--nproc", "2")
    output = end(program)
    assert program.returncode == code, output
    assert output.count(said) == 1, output
    assert "Traceback" not in output


@full
def test_a_killed_process_ends_the_others_and_what_was_done_is_saved(settings: Path) -> None:
    program = start(*OFFBOOK, "train", settings, "--nproc", "2")
    until_step(program, 3)
    worker(program, 1).kill()
    output = end(program)
    assert program.returncode == 137
    assert output.count("error: another process of the training has gone") == 1
    run = Path(Config.load(settings).output_dir)
    assert list(run.glob("checkpoints/step-*"))
    assert train(Config.load(settings, ["train.max_steps=20"]), resume=True).finished


@full
def test_torchrun_starts_a_killed_run_again(settings: Path, tmp_path: Path) -> None:
    changes = ("train.max_steps=60", "train.save_steps=5")
    agent = ("--nproc-per-node", "2", "--max-restarts", "1", "--master-port", str(free_port()))
    train_it = ("-m", "offbook", "train", settings, *changes, "--no-eval")
    program = start(*TORCHRUN, *agent, *train_it)
    until_step(program, 20)
    worker(program, 1).kill()
    output = end(program)
    assert program.returncode == 0, output
    assert "resuming after step" in output
    whole = train(Config.load(settings, [*changes, f"output_dir={tmp_path / 'whole'}"])).run
    adapters = [load_file(run / "adapter" / ADAPTER_WEIGHTS) for run in (whole, tmp_path / "run")]
    for name, tensor in adapters[0].items():  # the rate is high, and rounding grows
        torch.testing.assert_close(adapters[1][name], tensor, rtol=0, atol=1e-3)


def two_agents(settings: Path, *changes: Sequence[str]) -> list[subprocess.Popen[str]]:
    """As on two machines, each with its own changes to the settings."""
    port = ("--master-addr", "127.0.0.1", "--master-port", str(free_port()))
    train_it = ("-m", "offbook", "train", settings, "train.max_steps=5", "--no-eval")
    nodes = [("--nnodes", "2", "--node-rank", str(n), "--nproc-per-node", "1") for n in (0, 1)]
    return [
        start(*TORCHRUN, *node, *port, *train_it, *own)
        for node, own in zip(nodes, changes, strict=True)
    ]


@full
def test_two_agents_train_one_run(settings: Path) -> None:
    agents = two_agents(settings, (), ())
    outputs = [end(agent) for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], outputs
    assert "adapter in" in outputs[0]
    assert "adapter in" not in outputs[1]


@full
def test_a_run_directory_that_is_not_shared_is_refused(settings: Path, tmp_path: Path) -> None:
    places = [tmp_path / "0", tmp_path / "1"]
    agents = two_agents(settings, *([f"output_dir={place}"] for place in places))
    outputs = [end(agent) for agent in agents]
    assert all(agent.returncode for agent in agents)
    assert "the run directory is not there" in outputs[0]
    assert not any(place.exists() for place in places)


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    return monkeypatch.setenv


def test_a_machine_is_divided_among_its_processes(place: Callable[[str, str], None]) -> None:
    alone = processors()
    place("LOCAL_WORLD_SIZE", "2")
    assert processors() == max(alone // 2, 1)
    half = usable_memory(10**8)
    place("LOCAL_WORLD_SIZE", "1")
    assert half - 10**8 == pytest.approx((usable_memory(10**8) - 10**8) / 2, rel=0.2)


def test_a_place_that_is_half_given_is_named(
    place: Callable[[str, str], None], settings: Path
) -> None:
    place("WORLD_SIZE", "4")
    result = CliRunner().invoke(app, ["train", str(settings)])
    assert "RANK, MASTER_ADDR, MASTER_PORT is not set" in str(result.exception)
    assert not Path(Config.load(settings).output_dir).exists()


def test_the_other_arguments_are_handed_on() -> None:
    given = ["train", "x.yaml", "--nproc", "2", "--json", "--nproc=3", "a.b=--nproc"]
    assert without_nproc(given) == ["train", "x.yaml", "--json", "a.b=--nproc"]
