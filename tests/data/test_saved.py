"""Rows that are added to files; nothing in a file is lost."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from offbook.data.conversations import read_conversations
from offbook.data.messages import Message
from offbook.data.saved import append_row
from offbook.errors import ConfigError

TALK = [
    Message("system", "Be brief."),
    Message("user", "who are you"),
    Message("assistant", "I.", trained=False),
    Message("user", "who are you"),
    Message("assistant", "The keeper, 客官 🙂."),
]
ALPACA = '{"instruction": "a", "output": "b"}'
OPENAI = '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}'


@pytest.mark.parametrize("before", ["", "\n", f"\ufeff{OPENAI}", OPENAI])
def test_a_row_says_which_replies_are_trained_on(tmp_path: Path, before: str) -> None:
    path = tmp_path / "rows.jsonl"
    if before:
        path.write_text(before, encoding="utf-8")
    append_row(path, TALK)
    assert path.read_text("utf-8").startswith(before)
    rows = list(read_conversations(str(path)))
    assert len(rows) == 1 + bool(before.strip())
    assert list(rows[-1].messages) == TALK


@pytest.mark.parametrize("end", ["", "\n"])
def test_a_row_has_the_format_of_its_file(tmp_path: Path, end: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(ALPACA + end)
    with pytest.raises(ConfigError, match="an earlier reply that is not trained on") as caught:
        append_row(path, TALK)
    assert path.read_text() == ALPACA + end
    assert caught.value.fix == "name another file, which ends in .jsonl"
    append_row(tmp_path / "another.jsonl", TALK)
    talk = [replace(message, trained=True) for message in TALK]
    append_row(path, talk)
    assert path.read_text("utf-8").startswith(f'{ALPACA}\n{{"instruction": ')
    assert list(list(read_conversations(str(path)))[-1].messages) == talk


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("rows.json", b"[]", "rows are added to JSONL files"),
        ("array.jsonl", f"[{ALPACA}]".encode(), "not have one row in UTF-8 on each line"),
        ("utf16.jsonl", ALPACA.encode("utf-16"), "not have one row in UTF-8 on each line"),
        ("share.jsonl", b'{"conversations": [{"from": "human", "value": "a"}]}', "ShareGPT"),
        ("broken.jsonl", b'{"instruction": ', "no row can be added, since "),
        ("other.jsonl", b'{"prompt": "a"}', "no row can be added, since "),
    ],
)
def test_a_file_that_takes_no_row_stays_as_it_is(
    tmp_path: Path, name: str, content: bytes, said: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=said) as caught:
        append_row(path, TALK)
    assert caught.value.fix == "name another file, which ends in .jsonl"
    assert path.read_bytes() == content
    good = tmp_path / "another.jsonl"
    append_row(good, TALK)
    assert list(read_conversations(str(good)))


ADD = """
import sys
from pathlib import Path
from offbook.data.messages import Message
from offbook.data.saved import append_row
for part in range(10):
    text = f"{sys.argv[2]}.{part} " * 3000
    append_row(Path(sys.argv[1]), [Message("user", "a"), Message("assistant", text)])
"""


def test_rows_of_several_processes_are_all_there(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    processes = [
        subprocess.Popen([sys.executable, "-c", ADD, str(path), str(number)]) for number in range(3)
    ]
    for process in processes:
        assert process.wait() == 0
    replies = {row.messages[-1].content.split()[0] for row in read_conversations(str(path))}
    assert replies == {f"{number}.{part}" for number in range(3) for part in range(10)}
