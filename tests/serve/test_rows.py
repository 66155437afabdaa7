"""A corrected reply becomes a row, if it can be trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette", reason="the extra `serve` is not installed")

from offbook.data.conversations import read_conversations
from offbook.tokens.template import ChatTemplate
from support.serving import ScriptedEngine, client
from support.templates import REWRITING
from support.tiny import make_tokenizer

USER = {"role": "user", "content": "who are you"}
REPLY = {"role": "assistant", "content": "The keeper, 客官 🙂."}


def post(template: ChatTemplate, path: Path, messages: Any, model: str = "captain") -> Any:
    server = client(ScriptedEngine(template), path)
    return server.post("/rows", json={"model": model, "messages": messages})


def test_a_row_is_what_was_said(template: ChatTemplate, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    for number in (1, 2):
        answer = post(template, path, [{"role": "system", "content": "Be brief."}, USER, REPLY])
        assert answer.json() == {"rows": str(path)}
        rows = list(read_conversations(str(path)))
        assert len(rows) == number
        texts = [m.content for m in rows[-1].messages]
        assert texts == ["Be brief.", "who are you", "The keeper, 客官 🙂."]


def test_a_template_may_make_several_examples_of_a_row(tmp_path: Path) -> None:
    tokenizer = make_tokenizer(tmp_path, REWRITING, None, "<|im_end|>", ("<|im_start|>",))
    path = tmp_path / "rows.jsonl"
    answer = post(ChatTemplate(tokenizer), path, [USER, REPLY, USER, REPLY])
    assert answer.json() == {"rows": str(path)}


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([USER], "messages: List should have at least 2 items"),
        ([USER, USER], 'turn 2 has the role "user"'),
        ([USER, REPLY, USER], "no reply at the end"),
        ([USER, REPLY | {"content": " "}], "the reply is empty"),
        ([USER, REPLY | {"weight": 2}], "messages.1.weight"),
        ([USER, REPLY | {"weight": 0}], "the last reply has weight 0"),
        ([USER, REPLY, USER, REPLY | {"weight": 0}], "the last reply has weight 0"),
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


def test_a_file_that_takes_no_row_is_named(template: ChatTemplate, tmp_path: Path) -> None:
    answer = post(template, tmp_path / "no" / "rows.jsonl", [USER, REPLY])
    assert answer.status_code == 400
    assert "rows.jsonl: cannot write (No such file" in answer.json()["error"]["message"]
