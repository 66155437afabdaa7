"""A corrected reply becomes a row of a file; nothing in the file is lost."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette", reason="the extra `serve` is not installed")

from offbook.data.conversations import read_conversations
from offbook.tokens.template import ChatTemplate
from support.serving import ScriptedEngine, client

USER = {"role": "user", "content": "who are you"}
REPLY = {"role": "assistant", "content": "The keeper, 客官 🙂."}


def post(template: ChatTemplate, path: Path, messages: Any, model: str = "captain") -> Any:
    server = client(ScriptedEngine(template), path)
    return server.post("/rows", json={"model": model, "messages": messages})


def test_a_row_is_added_in_the_format_of_its_file(template: ChatTemplate, tmp_path: Path) -> None:
    new, openai = tmp_path / "new.jsonl", tmp_path / "openai.jsonl"
    openai.write_text(
        '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}'
    )
    earlier = {"role": "assistant", "content": "I.", "weight": 0}
    asked = [{"role": "system", "content": "Be brief."}, USER, earlier, USER, REPLY]
    for path in (new, openai):
        before = path.read_bytes() if path.exists() else b""
        answer = post(template, path, asked)
        assert answer.json() == {"rows": str(path)}
        assert path.read_bytes().startswith(before)
        *_, row = read_conversations(str(path))
        assert [m.content for m in row.messages] == [
            "Be brief.",
            "who are you",
            "I.",
            "who are you",
            "The keeper, 客官 🙂.",
        ]
    assert '"weight": 0' in openai.read_text("utf-8")
    assert [m.trained for m in row.messages if m.role == "assistant"] == [False, True]


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([USER], "messages: List should have at least 2 items"),
        ([USER, USER], 'turn 2 has the role "user"'),
        ([USER, REPLY, USER], "no reply at the end"),
        ([USER, REPLY | {"content": " "}], "the reply is empty"),
        ([USER, REPLY | {"weight": 2}], "messages.1.weight"),
        ([USER | {"content": None}, REPLY], "messages.0.content"),
    ],
)
def test_what_cannot_be_trained_on_is_no_row(
    template: ChatTemplate, tmp_path: Path, messages: Any, said: str
) -> None:
    answer = post(template, tmp_path / "rows.jsonl", messages)
    assert answer.status_code == 400
    assert said in answer.json()["error"]["message"]
    assert not (tmp_path / "rows.jsonl").exists()


def test_the_base_learns_nothing(template: ChatTemplate, tmp_path: Path) -> None:
    for model, status in (("base", 400), ("nobody", 404)):
        answer = post(template, tmp_path / "rows.jsonl", [USER, REPLY], model)
        assert answer.status_code == status


def test_a_file_that_takes_no_row_stays_as_it_is(template: ChatTemplate, tmp_path: Path) -> None:
    alpaca = '{"instruction": "a", "output": "b"}'
    files = {
        "array.jsonl": f"[{alpaca}]".encode(),
        "utf16.jsonl": alpaca.encode("utf-16"),
        "share.jsonl": b'{"conversations": [{"from": "human", "value": "a"}]}',
        "broken.jsonl": b'{"instruction": ',
        "rows.json": b"[]",
    }
    for name, content in files.items():
        path = tmp_path / name
        path.write_bytes(content)
        answer = post(template, path, [USER, REPLY])
        assert answer.status_code == 400
        assert "name another file" in answer.json()["error"]["message"]
        assert path.read_bytes() == content
    answer = post(template, tmp_path / "no" / "rows.jsonl", [USER, REPLY])
    assert "cannot write (No such file" in answer.json()["error"]["message"]


def test_rows_that_are_added_at_once_are_all_there(template: ChatTemplate, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    servers = [client(ScriptedEngine(template), path) for _ in range(4)]

    def add(number: int) -> int:
        reply = REPLY | {"content": f"{number} " * 500}
        body = {"model": "captain", "messages": [USER, reply]}
        return int(servers[number % 4].post("/rows", json=body).status_code)

    with ThreadPoolExecutor(4) as clients:
        assert set(clients.map(add, range(40))) == {200}
    replies = {row.messages[-1].content.split()[0] for row in read_conversations(str(path))}
    assert replies == {str(number) for number in range(40)}
