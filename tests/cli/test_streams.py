"""Outputs that fail or lack a character, and streams that are closed: real processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.tiny import ROWS

OFFBOOK = f"{sys.executable} -m offbook"
RUN = "train model.base=base model.precision=float32 data.train=rows.jsonl train.max_steps=2"
needs_full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")


@pytest.fixture
def place(tiny_base: Path, tmp_path: Path) -> Path:
    """A folder with rows and a base."""
    (tmp_path / "rows.jsonl").write_text(ROWS, encoding="utf-8")
    (tmp_path / "base").symlink_to(tiny_base)
    return tmp_path


def shell(place: Path, command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", command.replace("offbook ", f"{OFFBOOK} ")],
        cwd=place,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=200,
    )


@pytest.mark.parametrize("encoding", ["gbk", "cp1252", "ascii:strict"])
def test_a_character_that_an_encoding_lacks_is_escaped(place: Path, encoding: str) -> None:
    done = shell(place, "offbook check rows.jsonl --model base", PYTHONIOENCODING=encoding)
    assert done.returncode == 0, done.stderr
    assert "\\u23ce" in done.stdout  # the sign for a line break, in the token view


def test_a_reader_that_leaves_is_no_error(place: Path) -> None:
    done = shell(
        place, "offbook check lighthouse --model base --show 260 | head -1; echo ${PIPESTATUS[0]}"
    )
    assert done.stdout == "260 rows, 0 duplicates\n0\n"
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_do_not_matter(place: Path, closed: str) -> None:
    done = shell(place, f"offbook check rows.jsonl --model base --json {closed}")
    assert (done.returncode, "Traceback" in done.stderr) == (0, False)
    if ">" not in closed.replace("2>", ""):
        assert json.loads(done.stdout)["rows"] == 7


def test_a_closed_stdin_ends_a_chat_as_an_empty_one_does(place: Path) -> None:
    done = shell(place, f"offbook {RUN} output_dir=run && offbook chat run <&-")
    assert (done.returncode, "Traceback" in done.stderr) == (0, False)


@needs_full
@pytest.mark.parametrize("command", ["settings", "--help", "check rows.jsonl --model base"])
def test_results_that_cannot_be_written_exit_5(place: Path, command: str) -> None:
    done = shell(place, f"offbook {command} >/dev/full")
    assert done.returncode == 5
    assert done.stderr.splitlines()[-1] == (
        "error: the output: cannot write (No space left on device); free some space"
    )


@needs_full
@pytest.mark.parametrize("where", [">/dev/full", "2>/dev/full", "2>&1 | true"])
def test_a_training_finishes_although_nobody_can_read_of_it(place: Path, where: str) -> None:
    done = shell(place, f"set -o pipefail; offbook {RUN} output_dir=run {where}")
    assert done.returncode == (0 if "|" in where else 5), done.stderr
    assert (place / "run" / "adapter" / "adapter_model.safetensors").is_file()
