"""A chat on a terminal, and with a file in its place."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from offbook.settings.config import Config
from offbook.training.train import train

Cli = Callable[..., tuple[int, str, str]]
SHORT = ["--max-new-tokens", "4", "--temperature", "0"]


@pytest.fixture
def run(tiny_config: Callable[..., Config]) -> Path:
    """A finished run, called `run`."""
    return train(tiny_config("train.max_steps=1")).run


@pytest.mark.skipif(os.name == "nt", reason="needs a pseudo-terminal")
def test_a_chat_on_a_terminal(run: Path) -> None:
    from support.terminal import Terminal

    with Terminal(["chat", "run", *SHORT], run.parent) as chat:
        assert chat.read_until("loading run\n").strip() == "loading run"
        assert "/retry" in chat.read_until("you> ")

        chat.type("hello\r")
        assert "\nrun> " in chat.read_until("cut at 4 tokens; --max-new-tokens allows more")
        chat.read_until("you> ")
        chat.type("/base\r")
        assert "\nbase> " in chat.read_until("you> ")

        # Pasted text is one message, whatever it begins with.
        for text in ("one\rtwo\nthree", "/home\nis where"):
            chat.type(f"\x1b[200~{text}\x1b[201~")
            chat.read_until(text.splitlines()[-1])
            chat.type("\r")
            assert chat.read_until("you> ").count("run> ") == 1

        # Ctrl-C clears a line that is half typed.
        chat.type("half")
        chat.read_until("half")
        time.sleep(0.5)  # Python can miss a signal in the moment after a key
        chat.type("\x03")
        chat.read_until("you> ")
        chat.type(b"bad \xff\r")
        chat.read_until("the question is not text: byte 0xff at character 5; write it in UTF-8\n")
        chat.read_until("you> ")
        chat.type("/save saved.jsonl\r")
        chat.read_until("saved to saved.jsonl")  # a prompt alone may be one that was drawn again
        chat.read_until("you> ")
        chat.type("\x03")
        assert chat.wait() == 0
    (line,) = (run.parent / "saved.jsonl").read_text().splitlines()
    turns = [turn["content"] for turn in json.loads(line)["messages"] if turn["role"] == "user"]
    assert turns == ["hello", "one\ntwo\nthree", "/home\nis where"]


@pytest.mark.skipif(os.name == "nt", reason="needs a pseudo-terminal")
def test_ctrl_c_stops_a_reply_and_not_the_chat(tiny_base: Path, tmp_path: Path) -> None:
    from support.terminal import Terminal

    endless = Path(shutil.copytree(tiny_base, tmp_path / "endless"))
    values = json.loads((endless / "config.json").read_text()) | {
        "max_position_embeddings": 2**20,
        "eos_token_id": None,
    }
    (endless / "config.json").write_text(json.dumps(values))
    options = ["--max-new-tokens", "500000", "--temperature", "0"]
    with Terminal(["chat", "endless", *options], tmp_path) as chat:
        chat.read_until("you> ")
        chat.type("hello\r")
        chat.read_until("endless> ")
        os.kill(chat.process, signal.SIGINT)
        chat.read_until("stopped\n")
        chat.read_until("you> ")
        chat.type("quit\r")
        assert chat.wait() == 0


def ask(cli: Cli, *arguments: str | Path, stdin: str = "") -> tuple[int, str, str]:
    return cli("chat", *arguments, *SHORT, stdin=stdin)


def test_each_line_of_a_file_is_a_message(cli: Cli, run: Path) -> None:
    code, out, err = ask(cli, run, stdin="hello\n\none two\nquit\nnever asked\n")
    assert (code, out.count("\n")) == (0, 2)
    assert err.count("cut at 4 tokens") == 2


@pytest.mark.parametrize("word", ["/exit", "/quit", "exit", "quit", "Exit"])
def test_words_that_end_a_chat(cli: Cli, run: Path, word: str) -> None:
    assert ask(cli, run, stdin=f"{word}\nhello\n")[:2] == (0, "")


def test_several_lines_from_a_pipe_are_one_question(cli: Cli, run: Path) -> None:
    code, out, _ = ask(cli, run, "-p", "-", "--json", stdin="\ufeffone\ntwo\n")
    assert code == 0
    assert json.loads(out)["question"] == "one\ntwo"
    assert json.loads(out)["finish_reason"] == "length"
    assert ask(cli, run, "-p", "-", stdin="\n")[0] == 2


def test_json_can_be_read_whatever_the_encoding(
    cli: Cli, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for encoding in ("utf-8", "gbk", "cp1252", "ascii"):
        raw = io.BytesIO()
        stream = io.TextIOWrapper(raw, encoding, errors="backslashreplace")
        monkeypatch.setattr(sys, "stdout", stream)
        assert ask(cli, run, "-p", "你好 🙂 \x81", "--json")[0] == 0
        stream.flush()
        assert json.loads(raw.getvalue().decode(encoding))["question"] == "你好 🙂 \x81"


def test_combinations_that_make_no_sense_say_so(cli: Cli, run: Path, tiny_base: Path) -> None:
    for arguments, expected in (
        ([run, "--untuned"], "--untuned and --json need -p; in a chat, type /base"),
        (
            [run, "-p", "hello", "--checkpoint", "7"],
            "there are best (step 1), last, 1;",
        ),
        ([tiny_base, "-p", "hello", "--untuned"], "a whole model has no adapter; omit --untuned"),
        (
            [tiny_base, "-p", "hello", "--strength", "1"],
            "a whole model has no adapter; omit --strength",
        ),
        ([tiny_base, "--base", "x"], "this is a whole model, which has no other base"),
        ([run / "adapter"], f"open its run:\n    offbook chat {run}\n"),
    ):
        code, out, err = ask(cli, *arguments)
        assert code in (2, 4)
        assert out == ""
        assert expected in err
        assert "loading" not in err or "--checkpoint" in arguments
    for arguments in ([tiny_base, "-p", "hello"], [run, "-p", "hello", "--checkpoint", "last"]):
        code, out, _ = ask(cli, *arguments)
        assert (code, out.count("\n")) == (0, 1)
    # In a chat, /base gives the reply that -p gives with --untuned.
    _, out, _ = ask(cli, run, stdin="hello\n/base\n")
    assert out.splitlines()[1:] == ask(cli, run, "-p", "hello", "--untuned")[1].splitlines()


def test_retry_keeps_the_last_reply_if_it_cannot_answer(cli: Cli, run: Path) -> None:
    system = "long " * 200
    script = f"hello\n/system {system}\n/retry\n/system\n/save {run.parent}/saved.jsonl\n"
    code, _, err = ask(cli, run, stdin=script)
    assert code == 0
    assert "this model takes" in err
    turns = json.loads((run.parent / "saved.jsonl").read_text())["messages"]
    assert [turn["role"] for turn in turns] == ["user", "assistant"]


def test_the_strength_of_an_option_and_of_a_command(cli: Cli, run: Path) -> None:
    _, out, err = ask(cli, run, "--strength", "0.5", stdin="/strength\n/strength 0\nhello\n/base\n")
    assert [line for line in err.splitlines() if line.startswith("strength")] == [
        "strength 0.5",
        "strength 0",
    ]
    tuned, base = out.splitlines()
    assert tuned == base
    _, _, err = ask(cli, run, stdin="/strength much\n/strength 2\n")
    assert "/strength: much is no number\n" in err
    assert "the strength of an adapter cannot be 2; give a number from 0 to 1.5\n" in err
    assert ask(cli, run, "-p", "hello", "--strength", "2")[0] == 2
