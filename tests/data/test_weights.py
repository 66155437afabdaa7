"""A reply with weight 0 stays in the conversation as context and is not trained on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from offbook.data.conversations import read_conversations
from offbook.data.messages import Conversation
from offbook.errors import DataError
from offbook.tokens.examples import supervised_spans
from offbook.tokens.template import ChatTemplate

WORDS = st.text("abc de.", min_size=1, max_size=12).map(lambda text: text.strip() or "x")
OFF = st.sampled_from([("weight", 0), ("weight", 0.0), ("train", False), ("loss_weight", 0)])
ON = st.sampled_from([("weight", 1), ("weight", None), ("train", True), ("loss_weight", 1.0), None])


def read(folder: Path, *rows: dict[str, Any]) -> list[Conversation]:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return list(read_conversations(str(path)))


def row_of(turns: list[tuple[str, str, tuple[str, object] | None]]) -> dict[str, Any]:
    """An OpenAI row of pairs: question, reply, and the reply's weight, if any."""
    messages = []
    for question, reply, weight in turns:
        messages.append({"role": "user", "content": question})
        messages.append({"role": "assistant", "content": reply} | dict([weight] if weight else []))
    return {"messages": messages}


def complaint(folder: Path, row: dict[str, Any]) -> str:
    with pytest.raises(DataError) as caught:
        read(folder, row)
    return str(caught.value).removeprefix(f"{folder / 'rows.jsonl'}:1: ")


def test_exactly_the_replies_with_weight_are_supervised(tmp_path, template: ChatTemplate) -> None:
    @settings(
        max_examples=40,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(st.tuples(WORDS, WORDS, OFF | ON), min_size=1, max_size=5))
    def holds(turns: list[tuple[str, str, tuple[str, object] | None]]) -> None:
        trained = [reply for _, reply, weight in turns if weight is None or weight[1] in (1, None)]
        if not trained:
            assert complaint(tmp_path, row_of(turns)).startswith("no reply is trained on")
            return
        (conversation,) = read(tmp_path, row_of(turns))
        example = template.build_example(conversation)
        spans = supervised_spans(example.labels)
        said = [template.parse_reply(example.input_ids[a:b].tolist()) for a, b in spans]
        assert said == trained
        # All turns up to the last trained reply are the context, as they would be without weights.
        kept = len(conversation.messages) // 2
        (plain,) = read(tmp_path, row_of([(q, r, None) for q, r, _ in turns[:kept]]))
        assert example.input_ids.tolist() == template.build_example(plain).input_ids.tolist()
        assert turns[kept - 1][1] == trained[-1]

    holds()


@pytest.mark.parametrize(
    ("key", "weight", "shown"),
    [
        ("weight", 0.5, "0.5"),
        ("loss_weight", 2, "2"),
        ("train", "no", '"no"'),
        ("weight", [], "[]"),
    ],
)
def test_any_other_weight_is_refused(tmp_path, key, weight, shown) -> None:
    assert complaint(tmp_path, row_of([("a", "b", (key, weight))])) == (
        f'turn 2: "{key}" is {shown}; a reply is trained on as a whole or not; '
        "write 1, or 0 to keep the turn as context that is not trained on"
    )


def test_a_question_is_never_trained_on(tmp_path) -> None:
    row = row_of([("a", "b", None)])
    row["messages"][0]["train"] = True
    assert complaint(tmp_path, row) == (
        'turn 1: "train" asks to train on a turn of the user; '
        'set "train" to 0, or remove it: only replies are trained on'
    )
    row["messages"][0]["train"] = 0
    assert len(read(tmp_path, row)) == 1


def test_weights_that_differ_are_refused(tmp_path) -> None:
    row = row_of([("a", "b", ("weight", 0))])
    row["messages"][1]["train"] = True
    assert complaint(tmp_path, row) == 'turn 2: "weight" and "train" differ; keep one of them'
    del row["messages"][1]["weight"]
    assert read(tmp_path, row)[0].replies == (1,)


def test_a_row_without_a_trained_reply_is_named(tmp_path) -> None:
    row = row_of([("a", "b", ("weight", 0)), ("c", "d", ("train", False))])
    assert complaint(tmp_path, row) == (
        "no reply is trained on: each has weight 0; set the weight of one to 1, or remove the row"
    )
    row["messages"][3]["train"] = 1
    assert read(tmp_path, row)[0].replies == (3,)


def test_rows_that_train_on_other_replies_are_no_duplicates(tmp_path) -> None:
    rows = [row_of([("a", "b", ("weight", w)), ("c", "d", None)]) for w in (0, 1, 1)]
    keys = [conversation.key for conversation in read(tmp_path, *rows)]
    assert keys[0] != keys[1] == keys[2]


def test_context_is_announced(tmp_path) -> None:
    read(tmp_path, *[row_of([("a", "b", ("weight", 0)), ("c", "d", None)])] * 3)
    path = tmp_path / "rows.jsonl"
    reader = read_conversations(str(path))
    assert len(list(reader)) == 3
    assert reader.notices() == [
        f"{path}:1: a reply of weight 0 is context, and not trained on (3 times)"
    ]


def test_sharegpt_turns_have_weights_too(tmp_path) -> None:
    turns = [
        {"from": "human", "value": "a"},
        {"from": "gpt", "value": "b", "weight": 0},
        {"from": "human", "value": "c"},
        {"from": "gpt", "value": "d", "weight": 1},
    ]
    (conversation,) = read(tmp_path, {"conversations": turns})
    assert [message.trained for message in conversation.messages] == [True, False, True, True]
