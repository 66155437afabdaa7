"""Each piece of advice that an error about rows gives is applied to its case, and helps."""

from __future__ import annotations

import copy
import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from offbook.config import Config
from offbook.data.conversations import ConversationReader, read_conversations
from offbook.errors import DataError, suggest

GOOD = {"instruction": "Who goes there?", "output": "The keeper."}
SAID = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


def reader(folder: Path, rows: list[Any], *overrides: str) -> ConversationReader:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return read_conversations(str(path), Config.load(None, overrides).data)


def complaint(folder: Path, rows: list[Any], *overrides: str) -> str:
    with pytest.raises(DataError) as caught:
        list(reader(folder, rows, *overrides))
    return str(caught.value).replace(f"{folder / 'rows.jsonl'}:", "")


def advised(message: str) -> str:
    """The `data.ignore_keys` of a message, as a shell would pass it to the command."""
    (setting,) = [word for word in shlex.split(message) if word.startswith("data.ignore_keys")]
    return setting


# Unknown keys


@pytest.mark.parametrize(
    "names",
    [
        ["id", "source", "category", "split", "lang"],
        ["id"],
        ["no", "null", "1", "2024-05-01", "2024-99-99"],
        ["two words", "a,b", "[x]", "it's", "k: v", "#", "名前", "", "~"],
        [f"column-{n}" for n in range(40)],
    ],
)
@pytest.mark.parametrize("level", ["rows", "turns"])
def test_all_unknown_keys_are_in_one_message_whose_setting_skips_them(tmp_path, names, level):
    if level == "rows":
        rows = [{**GOOD, **dict.fromkeys(names, "x")} for _ in range(3)]
    else:
        turns = [{**turn, **dict.fromkeys(names, "x")} for turn in SAID]
        rows = [{"messages": turns} for _ in range(3)]
    message = complaint(tmp_path, rows)
    assert len(message.splitlines()) == 1
    assert " in 3 rows; skip " in message
    assert len(list(reader(tmp_path, rows, advised(message)))) == 3


def test_the_advice_holds_what_is_ignored_already_and_keys_of_later_rows(tmp_path):
    rows = [{**GOOD, "id": 1}, GOOD, {**GOOD, "id": 2, "at": 3}, {**GOOD, "tag": "x"}]
    message = complaint(tmp_path, rows, "data.ignore_keys=[id]")
    assert message == (
        '3: unknown keys "at", "tag" (from 4); skip them with data.ignore_keys=[id,at,tag]'
    )
    assert len(list(reader(tmp_path, rows, advised(message)))) == 4


def test_keys_of_rows_and_of_turns_are_in_one_message(tmp_path):
    turns = [{**turn, "time": 5} for turn in SAID]
    rows = [{"messages": turns, "id": 1}, {"messages": SAID, "id": 2}]
    message = complaint(tmp_path, rows)
    assert message == (
        '1: unknown keys "id", "time" of a turn in 2 rows; skip them with '
        "data.ignore_keys=[id,time]"
    )
    assert len(list(reader(tmp_path, rows, advised(message)))) == 2


@pytest.mark.parametrize("empty", [None, "", [], {}, {"a": None}])
def test_keys_that_are_empty_everywhere_are_announced_and_no_error(tmp_path, empty):
    rows = [{**GOOD, "id": empty} for _ in range(3)]
    found = reader(tmp_path, rows)
    assert len(list(found)) == 3
    assert found.notices() == [
        f'{tmp_path / "rows.jsonl"}:1: the key "id" is empty in every row, and ignored'
    ]
    message = complaint(tmp_path, [*rows, {**GOOD, "id": 0}])
    assert message == '4: unknown key "id" in 4 rows; skip it with data.ignore_keys=[id]'


def test_fields_that_parquet_adds_to_turns_are_no_error(tmp_path):
    path = tmp_path / "rows.parquet"
    turns = [SAID[0], {**SAID[1], "weight": 1.0, "name": None}]
    pq.write_table(pa.Table.from_pylist([{"messages": turns}, {"messages": SAID}]), path)
    assert len(list(read_conversations(str(path)))) == 2


def test_a_data_set_of_a_thousand_keys_is_refused_at_once(tmp_path):
    message = complaint(tmp_path, [{**GOOD, f"key{n}": n} for n in range(1000)])
    assert '"key9" (from 10), and 190 more' in message
    assert message.endswith("; remove them from the rows; there are too many to name")


@pytest.mark.parametrize(
    "names",
    [
        {"instrution": "instruction"},
        {"Instruction": "instruction", "OUTPUT": "output"},
        {"response": "output"},
        {"question": "instruction", "answer": "output", "input": "input"},
        {"prompt": "instruction", "completion": "output"},
        {"query": "instruction", "response": "output"},
    ],
)
def test_a_key_is_renamed_as_the_message_says(tmp_path, names):
    back = {known: name for name, known in names.items()}
    rows = [{back.get(key, key): value for key, value in GOOD.items()}] * 2
    message = complaint(tmp_path, rows)
    assert all(f'"{known}"' in message for name, known in names.items() if name != known)
    renamed = [{names.get(key, key): value for key, value in row.items()} for row in rows]
    assert len(list(reader(tmp_path, renamed))) == 2


def test_preferences_become_rows_of_the_chosen_reply(tmp_path):
    rows = [{"instruction": "a", "chosen": "b", "rejected": "c"}] * 2
    message = complaint(tmp_path, rows)
    assert '"chosen" in 2 rows; did you mean "output"?' in message
    renamed = [{"instruction": "a", "output": "b", "rejected": "c"}]
    assert len(list(reader(tmp_path, renamed, advised(message)))) == 1


def test_rows_of_another_format_go_into_a_file_of_their_own(tmp_path):
    message = complaint(tmp_path, [GOOD, {"messages": SAID}])
    assert message.endswith("; put rows of another format into a file of their own")
    assert len(list(reader(tmp_path, [GOOD]))) == len(list(reader(tmp_path, [{"messages": SAID}])))


@pytest.mark.parametrize("word", ["output", "Output", "OUTPUT", "instruction"])
def test_a_suggestion_never_is_the_word_itself(word):
    assert suggest(word, [word]) is None
    assert suggest(word, [word, "unlike"]) is None
    assert suggest(word.swapcase(), [word]) == f'did you mean "{word}"?'


# Values


def joined(value: Any) -> str:
    return "\n".join(value)


Repair = Callable[[Any], Any]
VALUES: list[tuple[Any, str, Repair]] = [
    (3, "put it in quotes", str),
    (True, "put it in quotes", str),
    (None, "fill it, or remove the row", lambda _: "Aye."),
    (["one", "two"], "join its texts into one, or write a row for each", joined),
    ({"text": "Aye."}, "write its text alone", lambda value: value["text"]),
    (
        [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}],
        "join their texts into one",
        lambda value: joined(part["text"] for part in value),
    ),
    ("half \ud83d", "correct the broken escape", lambda _: "half"),
    (" ", "fill or remove the row", lambda _: "Aye."),
]


@pytest.mark.parametrize(("value", "advice", "repair"), VALUES)
@pytest.mark.parametrize("turns", [False, True], ids=["alpaca", "messages"])
def test_a_value_that_is_no_text_gets_advice_that_fits(tmp_path, value, advice, repair, turns):
    def row(value: object) -> dict[str, Any]:
        if not turns:
            return {**GOOD, "output": value}
        messages = copy.deepcopy(SAID)
        messages[1]["content"] = value  # type: ignore[assignment]
        return {"messages": messages}

    assert complaint(tmp_path, [row(value)]).endswith(f"; {advice}")
    (conversation,) = reader(tmp_path, [row(repair(value))])
    assert conversation.messages[-1].content == repair(value)


def test_one_part_of_text_is_text(tmp_path):
    parts = [[{"type": "text", "text": turn["content"]}] for turn in SAID]
    turns = [{**turn, "content": part} for turn, part in zip(SAID, parts, strict=True)]
    (conversation,) = reader(tmp_path, [{"messages": turns}])
    assert [message.content for message in conversation.messages] == ["a", "b"]


def test_a_part_that_is_no_text_is_named(tmp_path):
    turns = copy.deepcopy(SAID)
    turns[0]["content"] = [{"type": "image_url", "image_url": "x"}]  # type: ignore[assignment]
    assert complaint(tmp_path, [{"messages": turns}]) == (
        '1: turn 1 has a part of type "image_url"; '
        "offbook trains on text; write what it says as text"
    )


@pytest.mark.parametrize("history", ["", " ", "[]", '[["q", "r"]]'])
def test_the_history_of_a_csv_file_is_json(tmp_path, history):
    (conversation,) = reader(tmp_path, [{**GOOD, "history": history}])
    assert len(conversation.messages) == (4 if "q" in history else 2)
    message = complaint(tmp_path, [{**GOOD, "history": "q, r"}])
    assert message.endswith('; write it as JSON: [["question", "reply"]]')


@pytest.mark.parametrize("name", ["gpt", "GPT", "Assistant", "chatgpt", "bard", "bing", "model"])
@pytest.mark.parametrize("keys", [("from", "value"), ("role", "content")])
def test_other_names_of_the_assistant_and_other_turn_keys_are_read(tmp_path, name, keys):
    role, text = keys
    turns = [{role: "Human", text: "a"}, {role: name, text: "b"}]
    for column in ("conversations", "messages"):
        (conversation,) = reader(tmp_path, [{column: turns}])
        assert [m.role for m in conversation.messages] == ["user", "assistant"]
