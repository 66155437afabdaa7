"""How text is fitted to a terminal, and what a command quotes for the shell."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from offbook.cli import console
from offbook.cli.console import WordWrap
from offbook.errors import quoted

LINE = "continue with `offbook train runs/somewhere --resume` when there is time for it"


def wrapped(text: str, width: int, pieces: int = 1000, column: int = 0) -> str:
    wrap = WordWrap(width, column)
    parts = [text[k : k + pieces] for k in range(0, len(text), pieces)]
    return "".join(map(wrap.feed, parts)) + wrap.end()


def rows(text: str, width: int) -> list[str]:
    """The rows of a terminal of narrow characters."""
    return [
        line[k : k + width] for line in text.split("\n") for k in range(0, max(len(line), 1), width)
    ]


@pytest.mark.parametrize("width", range(20, 90))
def test_no_row_ends_inside_a_word(width: int) -> None:
    shown = rows(wrapped(LINE, width), width)
    assert [word for row in shown for word in row.split()] == LINE.split()


words = st.text("ab/-.,'", min_size=1, max_size=14)
texts = st.lists(words | st.just("\n"), max_size=30).map(" ".join)


@given(texts, st.integers(16, 60), st.integers(1, 9), st.integers(0, 15))
def test_text_in_pieces_is_wrapped_as_the_whole_is(
    text: str, width: int, pieces: int, column: int
) -> None:
    whole = wrapped(text, width, column=column)
    assert wrapped(text, width, pieces, column) == whole
    assert whole.split() == text.split()  # it is copied as it was, but for spaces
    assert [line.split() for line in whole.split("\n")] == [x.split() for x in text.split("\n")]
    shown = rows(" " * column + whole, width)
    assert [word for row in shown for word in row.split()] == text.split()


@pytest.mark.parametrize("width", range(12, 90))
def test_a_command_is_copied_as_it_was(width: int) -> None:
    for argument in ("'my runs/a long name'", "'data.train=a b c.json'", "data.x='a b'"):
        line = f"it's stopped, and there's more; continue with `offbook train {argument} --resume`"
        shown = WordWrap(width).whole(line)
        command = shown[shown.index("`") + 1 : -1]
        assert shlex.split(command) == shlex.split(line[line.index("`") + 1 : -1])


def test_long_words_and_chinese_are_left_to_the_terminal() -> None:
    assert wrapped("see " + "x" * 100 + " there", 50) == "see " + "x" * 100 + " there"
    chinese = "家父是大理寺少卿甄远道。" * 9
    assert wrapped(chinese, 50, pieces=3) == chinese
    after = wrapped(chinese[:24] + " keeper", 50)
    assert after == chinese[:24] + "  keeper"
    assert cell_len(chinese[:24]) == 48


def test_a_word_is_shown_when_it_is_complete() -> None:
    wrap = WordWrap(80)
    assert [wrap.feed(piece) for piece in ("Mind", " the", " rocks", ".\n")] == [
        "",
        "Mind",
        " the",
        " rocks.\n",
    ]
    assert [wrap.feed(char) for char in "你好"] == ["你", "好"]


@pytest.mark.parametrize(
    "name",
    ["plain/path", "a b", "it's", "$HOME", "~", "-run", "你好", "a\nb", "\x1b[31m", "\udcff\\'"],
)
def test_a_printed_word_is_read_back_by_the_shell(name: str, tmp_path: Path) -> None:
    word = quoted(name)
    assert word.isprintable()
    done = subprocess.run(
        ["bash", "-c", f"printf %s {word}"], capture_output=True, check=True, cwd=tmp_path
    )
    expected = f"./{name}" if name.startswith("-") else name
    assert done.stdout == expected.encode("utf-8", "surrogateescape")
    if word.startswith("$"):
        return
    assert shlex.split(word) == [expected]


@pytest.mark.parametrize("argument", ["'my run'", '"it\'s"', "'a`b'", "runs/" + "long" * 20])
def test_a_command_is_on_a_line_of_its_own_in_a_terminal_of_any_width(
    argument: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = f"offbook chat {argument} --base PATH"
    for width in (30, 80):
        narrow = Console(stderr=True, highlight=False, width=width, force_terminal=True)
        monkeypatch.setattr(console, "err", narrow)
        for text in (f"say `{command}`, or stop", f"say `{command}`", f"say\n    {command}"):
            console.say(text)
            rest = ["or stop"] if text.endswith("stop") else []
            said = [line.rstrip() for line in capsys.readouterr().err.splitlines()]
            assert said == ["say", f"    {command}", *rest]
    console.say("a name is left where it is: `offbook train` makes one")
    assert "`offbook train` makes one" in " ".join(capsys.readouterr().err.split())
