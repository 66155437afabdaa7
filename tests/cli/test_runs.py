"""Runs on the command line: printed commands work, and an `init` folder is no run."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from offbook.cli.train import report
from offbook.errors import quoted
from offbook.settings.config import Config
from offbook.training.train import TrainResult, train
from support.tiny import ROWS

Cli = Callable[..., tuple[int, str, str]]
NAMES = ["run", "it's a run", "-run", "a=b", "~", "$HOME", "跑"]


@pytest.fixture
def arguments(tiny_base: Path, tmp_path: Path) -> list[str]:
    (tmp_path / "rows.jsonl").write_text(ROWS, encoding="utf-8")
    settings = {"model.base": tiny_base, "model.precision": "float32", "data.train": "rows.jsonl"}
    settings |= {"train.batch_size": 3, "train.max_steps": 1, "data.validation": 0}
    return [f"{key}={value}" for key, value in settings.items()]


def typed(command: str) -> list[str]:
    """The arguments of `offbook ...`, as a shell passes them."""
    program, *arguments = shlex.split(command)
    assert program == "offbook"
    return arguments


def test_without_rows_it_asks_for_them(cli: Cli, tmp_path: Path) -> None:
    code, out, err = cli("train")
    assert (code, out) == (2, "")
    assert err == (
        "error: there are no rows to train on; add data.train=FILE; or run `offbook demo` for a "
        "sample role, or, for a folder to start from,\n    offbook init myrole\n"
    )
    (tmp_path / "settings.yaml").write_text("train: {max_steps: 1}\n")
    assert cli("train", "settings.yaml")[2].startswith("error: settings.yaml: there are no rows")
    assert [path.name for path in tmp_path.iterdir()] == ["settings.yaml"]


def test_without_rows_each_way_to_some_can_be_taken(cli: Cli, arguments: list[str]) -> None:
    others = [word for word in arguments if not word.startswith("data.train")]
    assert "there are no rows to train on" in cli("train", *others)[2]
    assert cli("train", *others, "data.train=rows.jsonl", "output_dir=one")[0] == 0
    assert cli("init", "myrole")[0] == 0
    assert cli("train", "myrole/config.yaml", *others, "output_dir=two")[0] == 0


def test_a_setting_may_be_longer_than_a_name_and_a_name_may_not(
    cli: Cli, arguments: list[str]
) -> None:
    others = [word for word in arguments if not word.startswith("data.train")]
    long = f"data.train=[{', '.join(['{data: rows.jsonl, repeat: 1}'] * 20)}]"
    assert cli("train", long, *others)[0] == 0
    for command in ("train", "chat", "eval", "report", "runs"):
        code, _, err = cli(command, "a" * 300)
        assert (code, "a name that no file can have, since it is too long" in err) == (2, True)


def test_rows_that_are_given_as_a_configuration_are_trained_on_as_advised(
    cli: Cli, arguments: list[str], tmp_path: Path
) -> None:
    code, _, err = cli("train", "rows.jsonl")
    assert (code, "these are rows, not a configuration" in err) == (2, True)
    _, _, advised = err.strip().partition("name them as data:\n    ")
    assert advised == "offbook train data.train=rows.jsonl"
    others = [word for word in arguments if not word.startswith("data.train")]
    assert cli(*typed(advised), *others)[0] == 0
    _, _, err = cli("plan", "rows.jsonl")
    _, _, advised = err.strip().partition("name them as data:\n    ")
    assert advised == "offbook plan data.train=rows.jsonl"
    assert cli(*typed(advised), *others)[0] == 0
    (tmp_path / "more rows.jsonl").write_text(ROWS, encoding="utf-8")
    code, _, err = cli("train", "rows.jsonl", "more rows.jsonl", "train.max_steps=1")
    _, _, advised = err.strip().partition("name them as data:\n    ")
    assert advised == "offbook train 'data.train=[rows.jsonl, more rows.jsonl]'"
    assert cli(*typed(advised), *others, "--overwrite")[0] == 0


def test_a_run_that_is_none_is_told_as_such(cli: Cli, arguments: list[str]) -> None:
    assert cli("train", *arguments, "output_dir=runs/role-0.5")[0] == 0
    for folder in ("runs/nope", "runs/role-0.6", "runs"):
        assert cli("train", folder, "--resume")[::2] == (
            2,
            f"error: {folder}: not a run directory; `offbook runs` lists them; `offbook init` "
            "makes a folder to start from\n",
        )
    assert cli("runs")[1].startswith("runs/role-0.5  ")
    assert cli("train", "runs/role-0.5", "--resume")[0] == 0
    assert cli("init", "role")[0] == 0
    assert "no such model" in cli("train", "role", "model.base=nothing")[2]


def test_a_folder_that_is_taken_is_no_obstacle_to_another(cli: Cli) -> None:
    assert cli("init", "role")[0] == 0
    assert cli("init", "role")[2].endswith("it exists already; choose another folder\n")
    assert cli("init", "another")[0] == 0


def test_a_run_is_made_and_finished_as_a_chat_advises(
    cli: Cli, arguments: list[str], tmp_path: Path
) -> None:
    ask = ("chat", "run", "-p", "hello", "--max-new-tokens", "2")
    code, _, err = cli(*ask)
    assert (code, err) == (4, "error: run: not a run directory; `offbook train` makes one\n")
    config = Config.load(None, [*arguments, f"output_dir={tmp_path / 'run'}"])
    assert not train(config, should_stop=lambda: True).finished
    code, _, err = cli(*ask)
    assert code == 4
    (finish,) = re.findall(r"the run has no adapter yet; finish it:\n    (.*)$", err)
    assert cli(*typed(finish))[0] == 0
    assert cli(*ask)[0] == 0


def test_the_demo_runs_beside_a_run_on_other_rows_as_advised(
    cli: Cli, arguments: list[str], tmp_path: Path
) -> None:
    assert cli("train", *arguments, "output_dir=runs/demo")[0] == 0
    refused = "there is a run on other rows here; run the demo in another folder, or move the run"
    assert refused in begin_demo(tmp_path)
    (tmp_path / "another").mkdir()
    assert "now learns to answer" in begin_demo(tmp_path / "another")
    (tmp_path / "runs" / "demo").rename(tmp_path / "moved")
    assert "now learns to answer" in begin_demo(tmp_path)


def begin_demo(folder: Path) -> str:
    """What the demo says in a folder until it loads its model, which takes minutes to train."""
    with subprocess.Popen(
        [sys.executable, "-m", "offbook", "demo"], cwd=folder, stderr=subprocess.PIPE, text=True
    ) as demo:
        said = ""
        for line in demo.stderr or ():
            said += line.replace("\n", " ")
            if "now learns" in said:
                break
        demo.kill()
    return said


def test_no_command_changes_an_init_folder(cli: Cli, tmp_path: Path) -> None:
    assert cli("init", "role")[0] == 0
    config = tmp_path / "role" / "config.yaml"
    config.write_text(config.read_text(encoding="utf-8") + "# mine\n", encoding="utf-8")
    before = {path: path.read_bytes() for path in (tmp_path / "role").iterdir()}
    for more in ([], ["--overwrite"], ["--resume"]):
        for named in ("role", "role/config.yaml"):
            code, _, err = cli("train", named, "output_dir=role", "train.max_steps=1", *more)
            assert code == 2
            assert "role: config.yaml is here, and is not that of a run; set another" in err
    assert cli("init", "role")[0] == 2
    assert cli("chat", "role")[0] == 4
    assert {path: path.read_bytes() for path in (tmp_path / "role").iterdir()} == before


@pytest.mark.parametrize("name", ["my role", "-role", "a: b #c", "it's"])
def test_what_init_prints_works_for_any_name(cli: Cli, tmp_path: Path, name: str) -> None:
    code, out, _ = cli("init", "--", name)
    assert code == 0
    check, train, chat = re.findall(r"^offbook .*$", out, re.MULTILINE)
    assert cli(*typed(check), "--json")[0] == 0
    code, _, err = cli(*typed(train), "model.base=nothing")
    assert (code, "no such model" in err) == (2, True)
    assert Path(typed(chat)[1]) == Path("runs", name)


@pytest.mark.parametrize("name", NAMES)
def test_every_printed_command_works_as_it_is(
    cli: Cli, arguments: list[str], name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    name = f"./{name}" if name == "~" else name
    report(TrainResult(Path(name), False, 1, None, None, None, 0.0, 0.0))
    (resume,) = re.findall(r"^    (offbook .*)$", capsys.readouterr().err, re.MULTILINE)
    config = Config.load(None, [*arguments, f"output_dir={name}"])
    assert not train(config, should_stop=lambda: True).finished
    code, _, err = cli("train", *arguments, f"output_dir={name}")
    assert code == 2
    (again,) = re.findall(r"^    (offbook .*)$", err, re.MULTILINE)
    assert again == resume
    code, out, err = cli(*typed(again))
    assert code == 0, err
    (chat,) = re.findall(r"talk to it:\n    (.*)$", out, re.MULTILINE)
    assert cli(*typed(chat), "-p", "hello", "--max-new-tokens", "2")[0] == 0
    code, out, err = cli(*typed(again), "--json")
    assert (code, json.loads(out)["steps"]) == (0, 1)
    assert "the run has finished already, in step 1; add a higher train.max_steps to go on" in err


def test_a_path_is_one_word_for_the_shell() -> None:
    for name in (*NAMES, "a;b", 'a"b', "*", "-x y"):
        assert [Path(word) for word in shlex.split(quoted(Path(name)))] == [Path(name)]
        assert not quoted(Path(name)).startswith(("-", "'-"))


def test_a_run_that_was_stopped_before_its_first_step_says_so(
    capsys: pytest.CaptureFixture[str],
) -> None:
    report(TrainResult(Path("run"), False, 0, None, None, None, 0.0, 0.0))
    assert capsys.readouterr().err == (
        "stopped before the first step; nothing to save. Start again with\n"
        "    offbook train run --resume\n"
    )
