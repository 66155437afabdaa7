"""`offbook check`: what it needs, what it counts, and the token view as it is drawn."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console

from offbook.cli.check import draw, explain
from offbook.doctor.inspection import Span
from support.planted import FAULTS, write_planted
from support.tiny import ROWS, make_tokenizer

TOKENS = ["", "·", "a", " Yes", "臣妾", "🙂", "\n\n", "\t", "\u2028", "a long token", "."]


def drawn(spans: list[Span], width: int) -> list[str]:
    """The lines that a terminal of this width receives."""
    console = Console(file=io.StringIO(), width=width, color_system=None)
    for line in draw(spans, width):
        console.print(line, soft_wrap=True)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


@pytest.mark.parametrize("width", [20, 30, 47, 80, 200])
def test_a_line_ends_between_tokens(width: int) -> None:
    choose = random.Random(width)
    for _ in range(50):
        spans = [
            Span(bool(k % 2), tuple(choose.choices(TOKENS, k=choose.randrange(1, 60))))
            for k in range(3)
        ]
        (whole, lines) = (drawn(spans, size) for size in (10**6, width))
        assert len(whole) == len(spans)
        beginnings = [k for k, line in enumerate(lines) if not line.startswith("   ")]
        for begin, end, one in zip(beginnings, [*beginnings[1:], len(lines)], whole, strict=True):
            texts = [line[12:] for line in lines[begin:end]]
            assert "".join(texts) == one[12:]
            assert all(text.endswith("|") for text in texts[:-1])
        for line in lines:
            assert cell_len(line) <= width or "|" not in line[12:-1]


def test_a_tokenizer_is_enough(cli: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    """Without the configuration of a base, its context and its embedding are not known."""
    (tmp_path / "rows.jsonl").write_text(ROWS, encoding="utf-8")
    make_tokenizer(tmp_path / "tokenizer")
    code, out, err = cli("check", "rows.jsonl", "--model", "tokenizer", "--json")
    assert code == 0, err
    assert json.loads(out)["rows"] == json.loads(out)["replies_trained"] == 7


def test_several_files_are_read(cli: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    for name in ("rows.jsonl", "more.jsonl"):
        (tmp_path / name).write_text(ROWS, encoding="utf-8")
    make_tokenizer(tmp_path / "tokenizer")
    options = ("--model", "tokenizer", "--json")
    code, out, err = cli("check", "rows.jsonl", "more.jsonl", "data.max_length=64", *options)
    assert code == 0, err
    assert json.loads(out)["rows"] == 14
    code, out, err = cli("check", "rows.jsonl", "lighthouse", *options)
    assert (code, json.loads(out)["rows"]) == (0, 7 + 260), err
    code, _, err = cli("check", "rows.jsonl", "moer.jsonl", *options)
    assert (code, 'moer.jsonl: no such file; did you mean "more.jsonl"?' in err) == (3, True)


def test_one_is_singular(cli: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    row = {"instruction": "Who are you?", "output": "The keeper."}
    lines = [row, row | {"output": "The lamp's keeper."}, row]
    text = "".join(f"{json.dumps(line)}\n" for line in lines)
    (tmp_path / "rows.jsonl").write_text(text, encoding="utf-8")
    make_tokenizer(tmp_path / "tokenizer")
    code, out, _ = cli("check", "rows.jsonl", "--model", "tokenizer", "--show", "0")
    assert code == 0
    assert out.startswith("3 rows, 1 duplicate\n")
    assert "prompts with several replies: 1, at rows.jsonl:2 (rows.jsonl:1)\n" in out


def test_marks_are_explained_where_they_occur() -> None:
    assert explain([Span(True, ("a", "b"))]) is None
    assert explain([Span(False, ("a b", "\n")), Span(True, ("c",))]) == (
        "marks: · a space, ⏎ a line break"
    )
    assert explain([Span(True, ("", "", "茶"))]) == (
        "marks: nothing between bars a part of the next character"
    )


@pytest.mark.parametrize("sample", ["teahouse-zh", "lighthouse"])
def test_a_base_that_hardly_knows_the_language_is_named(
    cli: Callable[..., tuple[int, str, str]], sample: str
) -> None:
    code, out, _ = cli("check", sample)
    assert code == 0
    is_chinese = sample == "teahouse-zh"
    said = "the replies take 1.9 tokens per character: this base hardly knows their language"
    assert (said in out) == is_chinese
    assert ("nothing between bars" in out) == is_chinese
    assert "· a space, ⏎ a line break" in out


def test_the_command_finds_and_fixes_them(
    cli: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    write_planted(tmp_path / "rows.jsonl")
    command = ("check", "rows.jsonl", "--json", "--strict", "look")
    code, out, err = cli(*command, "--fix", "clean.jsonl", "doctor.fix=look")
    assert code == 3
    assert {f["kind"] for f in json.loads(out)["findings"] if f["severity"] != "note"} == {*FAULTS}
    assert "291 rows in clean.jsonl; each change is in clean.changes.jsonl" in err
    code, out, _ = cli("check", "clean.jsonl", "--json", "--strict", "look")
    assert (code, json.loads(out)["rows"]) == (0, 291)


def test_a_copy_is_written_as_the_error_says(
    cli: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    (tmp_path / "rows.jsonl").write_text(ROWS, encoding="utf-8")
    make_tokenizer(tmp_path / "tokenizer")
    command = ("check", "rows.jsonl", "--model", "tokenizer", "--show", "0", "--fix")
    code, _, err = cli(*command, "clean.json")
    assert code == 2
    assert "alpaca rows" not in err  # before they are read
    assert "clean.json: the copy is a JSONL file; end its name in .jsonl" in err
    code, _, err = cli(*command, "missing/clean.jsonl")
    assert code == 2
    assert "missing: no such folder; make it first" in err
    assert "alpaca rows" not in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows.jsonl", "tokenizer"]
    (tmp_path / "missing").mkdir()
    assert cli(*command, "missing/clean.jsonl")[0] == 0
    (tmp_path / "clean.changes.jsonl").write_text("mine")
    code, _, err = cli(*command, "clean.jsonl")
    assert code == 2
    assert "clean.changes.jsonl: exists already; name another file: nothing" in err
    assert "alpaca rows" not in err
    assert (tmp_path / "clean.changes.jsonl").read_text() == "mine"
    assert not (tmp_path / "clean.jsonl").exists()
    code, _, err = cli(*command, "other.jsonl")
    assert code == 0
    assert "7 rows in other.jsonl; nothing had to be changed" in err
    assert (tmp_path / "other.jsonl").exists()
