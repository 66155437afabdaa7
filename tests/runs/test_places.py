"""A run is the folder that is named: it may be moved, copied and linked, and so may its inputs."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from offbook.errors import CheckpointError, ConfigError
from offbook.files.storage import sha256
from offbook.inference.chat import Chat
from offbook.inference.generate import Sampling
from offbook.runs.directory import RunDirectory
from offbook.runs.trained import open_run
from offbook.settings.config import Config
from offbook.training.train import train
from support.runs import Listener, StopAfter
from support.tiny import ROWS, make_base

ADAPTER = "adapter/adapter_model.safetensors"
STEPS = ("train.max_steps=3", "train.save_steps=1")


def settings(project: Path, *more: str) -> Config:
    return Config.load(
        None,
        [
            f"model.base={project / 'base'}",
            "model.precision=float32",
            f"data.train={project / 'rows.jsonl'}",
            f"data.validation={project / 'held' / 'rows.jsonl'}",
            "train.batch_size=3",
            "train.learning_rate=0.01",
            *STEPS,
            f"output_dir={project / 'runs' / 'role'}",
            *more,
        ],
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a base, rows, a run that was stopped, and the same run not stopped."""
    project = tmp_path_factory.mktemp("made") / "project"
    (project / "held").mkdir(parents=True)
    make_base(project / "base")
    (project / "rows.jsonl").write_text(ROWS, encoding="utf-8")
    held_out = "".join(ROWS.splitlines(keepends=True)[:2])
    (project / "held" / "rows.jsonl").write_text(held_out, encoding="utf-8")
    train(settings(project, f"output_dir={project / 'runs' / 'whole'}"))
    stop = StopAfter(1)
    stopped = train(settings(project), monitor=stop, should_stop=stop.should_stop)
    assert (stopped.finished, stopped.steps) == (False, 1)
    return project


@pytest.fixture
def project(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project of the test's own, as if the run had begun there; the working directory is not."""
    project = Path(shutil.copytree(made, tmp_path / "project"))
    file = project / "runs" / "role" / "config.yaml"
    text = file.read_text(encoding="utf-8")
    file.write_text(text.replace(str(made), str(project)), encoding="utf-8")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return project


def contents(folder: Path) -> dict[str, str]:
    """The hash of every file in a folder."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): sha256(path) for path in files}


def copied(project: Path) -> Path:
    return Path(shutil.copytree(project / "runs" / "role", project.parent / "a copy"))


def hard_linked(project: Path) -> Path:
    return Path(shutil.copytree(project / "runs" / "role", project / "twin", copy_function=os.link))


def of_links(project: Path) -> Path:
    run, twin = project / "runs" / "role", project / "twin"
    return Path(shutil.copytree(run, twin, copy_function=os.symlink))


def with_its_project(project: Path) -> Path:
    return Path(shutil.copytree(project, project.parent / "backup")) / "runs" / "role"


def renamed(project: Path) -> Path:
    return (project / "runs" / "role").rename(project / "runs" / "captain's")


def moved_with_its_project(project: Path) -> Path:
    return project.rename(project.parent / "new") / "runs" / "role"


def linked(project: Path) -> Path:
    (project.parent / "link").symlink_to(project / "runs" / "role")
    return project.parent / "link"


def relative(project: Path) -> Path:
    return Path(os.path.relpath(project / "runs" / "role"))


def from_inside(project: Path) -> Path:
    os.chdir(project / "runs" / "role")
    return Path()


COPIES = (copied, hard_linked, with_its_project)
WAYS = (*COPIES, renamed, moved_with_its_project, linked, relative, from_inside)
Way = Callable[[Path], Path]


@pytest.mark.parametrize("way", WAYS)
def test_a_run_is_resumed_where_it_is(way: Way, project: Path, made: Path) -> None:
    original, before = project / "runs" / "role", contents(project / "runs" / "role")
    run = way(project)
    result = train(Config.load(run / "config.yaml"), resume=True)
    assert (result.run, result.finished) == (run, True)
    assert sha256(run / ADAPTER) == sha256(made / "runs" / "whole" / ADAPTER)
    if way in COPIES:
        assert contents(original) == before
    assert "output_dir" not in (run / "config.yaml").read_text(encoding="utf-8")
    assert train(Config.load(run / "config.yaml"), resume=True).seconds == 0


def test_weights_that_are_links_are_refused_and_the_original_stays(project: Path) -> None:
    original, before = project / "runs" / "role", contents(project / "runs" / "role")
    run = of_links(project)
    for work in (train, lambda config, resume: Chat.open(config.output_dir)):
        with pytest.raises(CheckpointError, match="outside its folder; replace the link with the"):
            work(Config.load(run / "config.yaml"), resume=True)
    assert contents(original) == before


@pytest.mark.parametrize("way", [*WAYS, of_links])
def test_a_run_is_overwritten_where_it_is(way: Way, project: Path, made: Path) -> None:
    original, before = project / "runs" / "role", contents(project / "runs" / "role")
    run = way(project)
    result = train(Config.load(run / "config.yaml"), overwrite=True)
    assert result.run == run
    assert sha256(run / ADAPTER) == sha256(made / "runs" / "whole" / ADAPTER)
    if way in (*COPIES, of_links):
        assert contents(original) == before


@pytest.mark.parametrize("way", WAYS)
def test_a_run_is_opened_where_it_is(way: Way, project: Path) -> None:
    greedy = Sampling(temperature=0, max_new_tokens=6)
    reply = Chat.open(project / "runs" / "role", greedy).ask("hello")
    run = way(project)
    before = contents(run)
    opened = open_run(run)
    assert (opened.path, opened.adapter.parent.parent) == (run, run)
    assert Chat.open(run, greedy).ask("hello") == reply
    assert contents(run) == before


def test_a_run_that_stores_its_place_is_where_it_is_now(project: Path) -> None:
    original = project / "runs" / "role"
    with (original / "config.yaml").open("a", encoding="utf-8") as file:
        file.write(f"output_dir: {original}\n")  # as version 0.1 did
    before = contents(original)
    run = copied(project)
    assert train(Config.load(run / "config.yaml"), overwrite=True).run == run
    assert train(Config.load(run / "config.yaml"), resume=True).run == run
    assert contents(original) == before


def test_a_base_and_rows_are_accepted_in_another_place(project: Path, made: Path) -> None:
    run = project / "runs" / "role"
    base, rows = project.parent / "the base", project.parent / "lines.jsonl"
    (project / "base").rename(base)
    (project / "rows.jsonl").rename(rows)
    config = Config.load(run / "config.yaml")
    with pytest.raises(CheckpointError) as caught:
        train(config, resume=True)
    assert str(caught.value) == (
        f"{run}: the base is not at {project / 'base'}, data is not at {project / 'rows.jsonl'}; "
        f"say where it is now: `offbook train {run} --resume model.base=PATH data.train=PATH`"
    )
    with pytest.raises(CheckpointError) as caught:
        open_run(run)
    assert str(caught.value) == (
        f"{run}: the base is not at {project / 'base'}; say where it is now: "
        f"`offbook chat {run} --base PATH`"
    )
    assert open_run(run, base=base).base == base
    assert Chat.open(run, base=os.path.relpath(base)).ask("hello")
    resumed = Config.load(
        run / "config.yaml", [f"model.base={base}", f"data.train={os.path.relpath(rows)}"]
    )
    assert train(resumed, resume=True).finished
    assert sha256(run / ADAPTER) == sha256(made / "runs" / "whole" / ADAPTER)
    assert open_run(run).base == base  # it knows the new place


def test_another_base_or_other_rows_are_refused_with_the_command(project: Path) -> None:
    run, before = project / "runs" / "role", contents(project / "runs" / "role")
    (project / "other.jsonl").write_text(ROWS.replace("boat", "ship"), encoding="utf-8")
    for path in ("rows.jsonl", "held/rows.jsonl", "base/model.safetensors"):
        shutil.copy(project / path, project.parent / "kept")
        (project / path).write_bytes((project / path).read_bytes() + b" ")
        with pytest.raises((CheckpointError, ConfigError)):
            train(Config.load(run / "config.yaml"), resume=True)
        shutil.copy(project.parent / "kept", project / path)
    for key, place in (("data.train", "other.jsonl"), ("data.validation", "rows.jsonl")):
        config = Config.load(run / "config.yaml", [f"{key}={project / place}"])
        with pytest.raises(CheckpointError, match=f"`offbook train {run} --resume {key}=PATH`"):
            train(config, resume=True)
    config = Config.load(run / "config.yaml", ["data.validation=0.5"])
    with pytest.raises(ConfigError, match=r"other settings: data\.validation was"):
        train(config, resume=True)
    assert contents(run) == before


def test_of_two_places_the_one_that_agrees_is_used(project: Path, made: Path) -> None:
    run = with_its_project(project)
    (project / "rows.jsonl").write_text("{}", encoding="utf-8")
    (run.parents[1] / "base" / "model.safetensors").write_bytes(b"damaged")
    heard = Listener()
    assert train(Config.load(run / "config.yaml"), resume=True, monitor=heard).finished
    assert any(text.startswith(f"{run.parents[1] / 'rows.jsonl'}: ") for text in heard.heard)
    assert open_run(run).base == project / "base"
    assert sha256(run / ADAPTER) == sha256(made / "runs" / "whole" / ADAPTER)


def test_the_original_settings_resume_a_run_from_another_folder(project: Path) -> None:
    assert train(settings(project), resume=True).finished
    assert RunDirectory(project / "runs" / "role").finished
