"""`offbook lines`: the speakers, the rows, and what it refuses."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

Cli = Callable[..., tuple[int, str, str]]

PLAY = "ANNA: Hello?\nBEN: Hello.\nANNA: Who is there?\nBEN: Ben.\nANNA: Come in, Ben.\n"


@pytest.fixture
def play(tmp_path: Path) -> Path:
    path = tmp_path / "play.txt"
    path.write_text(PLAY)
    return path


@pytest.mark.usefixtures("play")
def test_without_a_role_the_speakers_are_listed(cli: Cli) -> None:
    code, out, err = cli("lines", "play.txt")
    assert code == 0
    assert "       3  ANNA (play.txt:1)\n       2  BEN (play.txt:2)\n" in out
    assert "play.txt: drama text" in err
    command = next(line for line in out.splitlines() if "offbook lines" in line)
    assert shlex.split(command) == shlex.split("offbook lines play.txt --role NAME -o rows.jsonl")


@pytest.mark.usefixtures("play")
def test_an_unknown_role_is_refused_with_a_suggestion(cli: Cli, tmp_path: Path) -> None:
    for arguments in (("--role", "Ana"), ("--role", "BEN", "--alias", "Ana")):
        code, out, err = cli("lines", "play.txt", *arguments)
        assert code == 2
        assert "3  ANNA" in out
        assert 'nobody is called Ana; did you mean "ANNA"?' in err
    assert [path.name for path in tmp_path.iterdir()] == ["play.txt"]


@pytest.mark.usefixtures("play")
def test_rows_are_written_and_shown(cli: Cli, tmp_path: Path) -> None:
    code, out, err = cli("lines", "play.txt", "--role", "anna", "-o", "anna.jsonl")
    assert code == 0, err
    rows = [json.loads(line) for line in (tmp_path / "anna.jsonl").read_text().splitlines()]
    assert [row["source"] for row in rows] == ["play.txt:3", "play.txt:5"]
    assert "play.txt:3\n  user: Hello.\n  role: Who is there?\n" in out
    assert "2 rows are in anna.jsonl" in out
    assert "offbook train data.train=anna.jsonl output_dir=runs/anna" in out
    assert "once, the role speaks first in a scene, which is no row: play.txt:1" in err

    code, _, err = cli("lines", "play.txt", "--role", "anna", "-o", "anna.jsonl")
    assert code == 2
    assert "anna.jsonl: it exists already; name another file with -o" in err


@pytest.mark.usefixtures("play")
@pytest.mark.parametrize(
    ("arguments", "code", "error"),
    [
        (("play.txt", "--role", "ANNA", "-o", "a.json"), 2, "a.json: rows are written as JSONL"),
        (("play.txt", "--role", "ANNA", "-o", "no/a.jsonl"), 2, "no: no such folder"),
        (("ply.txt",), 3, 'ply.txt: no such file; did you mean "play.txt"?'),
    ],
)
def test_what_cannot_be_done_is_said(
    cli: Cli, arguments: tuple[str, ...], code: int, error: str
) -> None:
    found, _, err = cli("lines", *arguments)
    assert found == code
    assert error in err


@pytest.mark.usefixtures("play")
def test_what_is_refused_is_done_as_advised(cli: Cli, tmp_path: Path) -> None:
    for wrong, advice, right in (
        (("play.txt", "--role", "Zoe"), "choose one of the names above", "--role ANNA -o a.jsonl"),
        (
            ("play.txt", "--role", "ANNA", "-o", "b.json"),
            "name it .jsonl",
            "--role ANNA -o b.jsonl",
        ),
        (
            ("play.txt", "--role", "ANNA", "-o", "no/c.jsonl"),
            "make it first",
            "--role ANNA -o no/c.jsonl",
        ),
    ):
        code, _, err = cli("lines", *wrong)
        assert code == 2
        assert advice in err
        if advice == "make it first":
            (tmp_path / "no").mkdir()
        assert cli("lines", "play.txt", *right.split())[0] == 0
    (tmp_path / "a.srt").write_text("1\n00:00:01,000 --> 00:00:02,000\nCome in.\n")
    code, _, err = cli("lines", "a.srt")
    assert code == 3
    assert "no line names its speaker; write the name before what is said, as in `ANNA:" in err
    (tmp_path / "a.srt").write_text("1\n00:00:01,000 --> 00:00:02,000\nANNA: Come in.\n")
    assert cli("lines", "a.srt")[0] == 0


def test_a_file_of_any_name_becomes_rows(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "play\udcff.txt").write_text(PLAY)
    code, _, err = cli("lines", "play\udcff.txt", "--role", "ANNA", "-o", "a.jsonl")
    assert code == 0, err
    rows = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [row["source"] for row in rows] == ["play\udcff.txt:3", "play\udcff.txt:5"]


def test_a_role_that_only_begins_scenes_has_no_rows(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "play.txt").write_text(
        "".join(f"Scene {k}\n\nANNA: Hi.\nBEN: Hm.\n\n" for k in range(2))
    )
    code, _, err = cli("lines", "play.txt", "--role", "ANNA")
    assert code == 3
    assert "play.txt:3: no row: nobody says anything before ANNA does" in err
    assert "check in the script who speaks, and where scenes are cut" in err
    assert [path.name for path in tmp_path.iterdir()] == ["play.txt"]
    (tmp_path / "play.txt").write_text("Scene 1\n\nBEN: Hm.\nANNA: Hi.\nBEN: Hm.\n")
    assert cli("lines", "play.txt", "--role", "ANNA")[0] == 0


def test_rows_of_a_script_are_trained_on_as_they_are(
    cli: Cli, tmp_path: Path, tiny_base: Path
) -> None:
    (tmp_path / "play.txt").write_text(PLAY * 4)
    assert cli("lines", "play.txt", "--role", "ANNA", "-o", "anna.jsonl")[0] == 0
    settings = (f"model.base={tiny_base}", "train.max_steps=2", "output_dir=run")
    code, _, err = cli("train", "data.train=anna.jsonl", *settings)
    assert code == 0, err
