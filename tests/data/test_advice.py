"""Each piece of advice that an error about rows gives is applied to its case, and helps."""

from __future__ import annotations

import copy
import csv
import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from offbook.data.conversations import ConversationReader, read_conversations
from offbook.data.messages import Message
from offbook.errors import DataError, suggest
from offbook.settings.config import Config

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
        '3: unknown keys "at", "tag" (from 4); skip them with \'data.ignore_keys=[id,at,tag]\''
    )
    assert len(list(reader(tmp_path, rows, advised(message)))) == 4


def test_keys_of_rows_and_of_turns_are_in_one_message(tmp_path):
    turns = [{**turn, "time": 5} for turn in SAID]
    rows = [{"messages": turns, "id": 1}, {"messages": SAID, "id": 2}]
    message = complaint(tmp_path, rows)
    assert message == (
        '1: unknown keys "id", "time" of a turn in 2 rows; skip them with '
        "'data.ignore_keys=[id,time]'"
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
    assert message == "4: unknown key \"id\" in 4 rows; skip it with 'data.ignore_keys=[id]'"


def test_fields_that_parquet_adds_to_turns_are_no_error(tmp_path):
    path = tmp_path / "rows.parquet"
    turns = [SAID[0], {**SAID[1], "weight": 1.0, "name": None}]
    pq.write_table(pa.Table.from_pylist([{"messages": turns}, {"messages": SAID}]), path)
    assert len(list(read_conversations(str(path)))) == 2


def test_a_data_set_of_a_thousand_keys_is_refused_at_once(tmp_path):
    message = complaint(tmp_path, [{**GOOD, f"key{n}": n} for n in range(1000)])
    assert '"key9" (from 10), and 190 more' in message
    assert message.endswith("; remove them from the rows; there are too many to name")
    assert len(list(reader(tmp_path, [GOOD] * 1000))) == 1000


@pytest.mark.parametrize(
    "names",
    [
        {"instrution": "instruction"},
        {"Instruction": "instruction", "OUTPUT": "output"},
        {"response": "output"},
    ],
)
def test_a_key_is_renamed_as_the_message_says(tmp_path, names):
    back = {known: name for name, known in names.items()}
    rows = [{back.get(key, key): value for key, value in GOOD.items()}] * 2
    message = complaint(tmp_path, rows)
    assert all(f'"{known}"' in message for name, known in names.items() if name != known)
    renamed = [{names.get(key, key): value for key, value in row.items()} for row in rows]
    assert len(list(reader(tmp_path, renamed))) == 2


Row = dict[str, Any]
TOLD = [{"from": "human", "value": "a"}]
PREFERENCES: list[tuple[Row, Row]] = [
    ({"instruction": "a", "chosen": "b", "rejected": "c"}, {"instruction": "a", "output": "b"}),
    (
        {"system": "s", "prompt": "a", "chosen": "b", "rejected": "c", "score_chosen": 1.0},
        {"system": "s", "instruction": "a", "output": "b", "score_chosen": 1.0},
    ),
    ({"prompt": "a", "chosen": [*SAID], "rejected": [*SAID]}, {"prompt": "a", "messages": SAID}),
    ({"prompt": SAID[:1], "chosen": SAID[1:], "rejected": SAID[1:]}, {"messages": SAID}),
    (
        {"conversations": TOLD, "chosen": {"from": "gpt", "value": "b"}, "rejected": {"x": "y"}},
        {"conversations": [*TOLD, {"from": "gpt", "value": "b"}]},
    ),
    (
        {"conversations": TOLD, "chosen": "b", "rejected": "c"},
        {"conversations": [*TOLD, {"from": "gpt", "value": "b"}]},
    ),
    (
        {"question": "a", "response_chosen": "b", "response_rejected": "c"},
        {"instruction": "a", "output": "b"},
    ),
]


@pytest.mark.parametrize(("pair", "row"), PREFERENCES)
def test_preferences_become_rows_of_the_preferred_reply(tmp_path, pair, row):
    message = complaint(tmp_path, [pair] * 8)
    assert message.startswith("1: pairs of a preferred and another reply (")
    assert len(message.splitlines()) == 1
    for name in row.keys() - pair.keys():
        assert f'to "{name}"' in message
    rejected = {name: value for name, value in pair.items() if "rejected" in name}
    (conversation,) = reader(tmp_path, [{**row, **rejected}], advised(message))
    assert [m.content for m in conversation.messages if m.role != "system"] == ["a", "b"]


@pytest.mark.parametrize("tag", ["kto_tag", "label"])
def test_judged_replies_become_rows_of_the_good_ones(tmp_path, tag):
    rows = [{**GOOD, tag: True}, {**GOOD, "output": "Bad.", tag: False}]
    message = complaint(tmp_path, rows)
    assert message.startswith(f'1: "{tag}" tells good replies from bad ones (KTO)')
    assert len(message.splitlines()) == 1
    assert len(list(reader(tmp_path, rows[:1], advised(message)))) == 1
    kept = complaint(tmp_path, [{**GOOD, "label": "harbour"}])
    assert 'unknown key "label"; skip it with' in kept


@pytest.mark.parametrize("more", [{}, {"id": 3, "url": "x"}])
def test_plain_text_becomes_prompts_and_replies(tmp_path, more):
    message = complaint(tmp_path, [{"text": "Q: a\nA: b", **more}] * 3)
    assert message == (
        '1: plain text ("text"), of which no part is named as the reply; '
        'write each prompt as "instruction" and its reply as "output"'
    )
    assert len(list(reader(tmp_path, [{"instruction": "a", "output": "b"}]))) == 1


def test_rows_whose_prompt_is_their_input_are_renamed(tmp_path):
    message = complaint(tmp_path, [{"input": "a", "output": "b"}] * 2)
    assert message == '1: no "instruction" (in 2 rows: 1, 2); rename "input" to "instruction"'
    assert len(list(reader(tmp_path, [{"instruction": "a", "output": "b"}]))) == 1


CALLS = [
    {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f"}}]},
    {"role": "assistant", "content": "", "function_call": {"name": "f"}},
    {"role": "tool", "content": "3", "tool_call_id": "1"},
    {"from": "function_call", "value": "{}"},
    {"from": "observation", "value": "3"},
]


@pytest.mark.parametrize("turn", CALLS)
def test_rows_that_call_tools_are_named_and_left_out(tmp_path, turn):
    said = [SAID[0], turn, SAID[1]]
    rows = [{"messages": SAID}, *[{"messages": said, "tools": []}] * 7]
    message = complaint(tmp_path, rows)
    assert message == (
        "2: its turns call tools (in 7 rows: 2, 3, 4, 5, 6, and 2 more); "
        "offbook trains on replies in text; leave such rows out"
    )
    assert len(list(reader(tmp_path, rows[:1]))) == 1


def test_tools_that_no_turn_calls_are_a_key_to_skip(tmp_path):
    rows = [{"messages": SAID, "tools": [{"name": "f"}]}] * 2
    message = complaint(tmp_path, rows)
    assert message.startswith('1: tools that a model may call ("tools"); offbook trains on replies')
    assert len(list(reader(tmp_path, rows, advised(message)))) == 2


def test_rows_of_another_format_go_into_a_file_of_their_own(tmp_path):
    message = complaint(tmp_path, [GOOD, {"messages": SAID}])
    assert message.endswith("; put rows of another format into a file of their own")
    assert len(list(reader(tmp_path, [GOOD]))) == len(list(reader(tmp_path, [{"messages": SAID}])))


def test_a_key_that_is_too_long_to_name_is_removed(tmp_path):
    message = complaint(tmp_path, [{**GOOD, "k" * 200: 1}])
    assert message.endswith("; remove it")
    assert len(list(reader(tmp_path, [GOOD]))) == 1


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


def test_several_parts_of_text_are_joined_with_line_breaks_and_remarked_on(tmp_path):
    parts = [{"type": "text", "text": "one "}, {"type": "output_text", "text": " two"}]
    rows = [{"messages": [SAID[0], {**SAID[1], "content": parts}]}, {**GOOD, "output": parts}]
    for row in rows:
        found = reader(tmp_path, [row])
        assert [c.messages[-1].content for c in found] == ["one \n two"]
        assert found.notices() == [
            f"{tmp_path / 'rows.jsonl'}:1: several parts of text in one turn, "
            "joined with line breaks"
        ]
    nested = [{"type": "text", "text": parts}]
    assert complaint(tmp_path, [{**GOOD, "output": nested}]).startswith(
        '1: a part of "output" is a list, not text'
    )


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


@pytest.mark.parametrize("key", ["messages", "conversations"])
def test_the_turns_of_a_csv_file_are_json(tmp_path, key):
    path = tmp_path / "rows.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([[key], [json.dumps(SAID)]])
    (conversation,) = read_conversations(str(path))
    assert [message.content for message in conversation.messages] == ["a", "b"]


def test_reasoning_under_another_name_is_renamed(tmp_path):
    for name in ("thinking", "reasoning", "thought"):
        message = complaint(tmp_path, [{"messages": [SAID[0], {**SAID[1], name: "hm"}]}])
        assert message.endswith('; did you mean "reasoning_content"?')


def test_what_is_no_turn_is_named_and_its_keys_are_not_to_be_skipped(tmp_path):
    for turn in ({"human": "a", "assistant": "b"}, ["a", "b"], "a"):
        message = complaint(tmp_path, [{"conversations": [turn]}])
        assert message == '1: turn 1 has no "from" or "value"; every turn needs both'


@pytest.mark.parametrize("role", ["system", "developer"])
def test_system_text_comes_beside_messages_or_among_them(tmp_path, role):
    among = {"messages": [{"role": role, "content": "s"}, *SAID]}
    for row in (among, {"messages": SAID, "system": "s"}):
        (conversation,) = reader(tmp_path, [row])
        assert conversation.messages[0] == Message("system", "s")


@pytest.mark.parametrize("mark", ["\ufeff", "\x1e"])
def test_marks_between_rows_are_white_space(tmp_path, mark):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f"{mark}{json.dumps(GOOD)}\n" for _ in range(3)), encoding="utf-8")
    assert len(list(read_conversations(str(path)))) == 3


@pytest.mark.parametrize("name", ["gpt", "GPT", "Assistant", "chatgpt", "bard", "bing", "model"])
@pytest.mark.parametrize("keys", [("from", "value"), ("role", "content")])
def test_other_names_of_the_assistant_and_other_turn_keys_are_read(tmp_path, name, keys):
    role, text = keys
    turns = [{role: "Human", text: "a"}, {role: name, text: "b"}]
    for column in ("conversations", "messages"):
        (conversation,) = reader(tmp_path, [{column: turns}])
        assert [m.role for m in conversation.messages] == ["user", "assistant"]
