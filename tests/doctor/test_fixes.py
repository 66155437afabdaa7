"""The cleaned copy: of each format, and what of a row stays as it was."""

from __future__ import annotations

import csv
import io
import json
import math
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from offbook.data.conversations import read_conversations
from offbook.doctor.doctor import Doctor
from offbook.doctor.fixes import Fixed, write_fixed
from offbook.settings.sections import DataSettings, DoctorSettings

PHONE = "+44 20 7946 0018"


def fix(file: Path, **settings: object) -> tuple[Fixed, list[Any]]:
    reader = read_conversations(str(file), DataSettings.model_validate(settings))
    doctor = Doctor(DoctorSettings())
    for _ in doctor.watch(reader):
        pass
    doctor.findings(reader)
    fixed = write_fixed(reader, doctor.hits, "fix", file.with_name("clean.jsonl"))
    lines = fixed.copy.read_text(encoding="utf-8").splitlines()
    return fixed, [json.loads(line) for line in lines]


def turns(role: str, text: str, *said: str) -> list[dict[str, str]]:
    names = {"role": ("user", "assistant"), "from": ("human", "gpt")}[role]
    return [{role: names[k % 2], text: one} for k, one in enumerate(said)]


SAID = ("Who is it?", "Me.<|im_end|>", f"Your number is {PHONE}?", "Yes.")
CLEAN = ("Who is it?", "Me.", "Your number is [phone 1]?", "Yes.")


@pytest.mark.parametrize(
    ("row", "clean"),
    [
        (
            {"messages": turns("role", "content", *SAID)},
            {"messages": turns("role", "content", *CLEAN)},
        ),
        (
            {"conversations": turns("from", "value", *SAID)},
            {"conversations": turns("from", "value", *CLEAN)},
        ),
        (
            {"instruction": SAID[2], "input": "", "output": SAID[3], "history": [[*SAID[:2]]]},
            {"instruction": CLEAN[2], "input": "", "output": "Yes.", "history": [[*CLEAN[:2]]]},
        ),
        (
            {"instruction": "Who is it?", "input": f"({PHONE})", "output": "Me.<|im_end|>"},
            {"instruction": "Who is it?", "input": "([phone 1])", "output": "Me."},
        ),
    ],
)
def test_texts_are_changed_in_every_format(
    tmp_path: Path, row: dict[str, Any], clean: dict[str, Any]
) -> None:
    (tmp_path / "rows.json").write_text(json.dumps([row | {"id": 7}, row | {"id": 8}]))
    fixed, rows = fix(tmp_path / "rows.json", ignore_keys=["id"])
    assert rows == [clean | {"id": 7}]
    assert (dict(fixed.left_out), fixed.changed["personal"]) == ({"duplicate": 1}, 1)


def test_what_json_has_not_becomes_null_or_text(tmp_path: Path) -> None:
    rows = [
        {"instruction": "a?", "output": "Yes.", "score": math.nan, "price": Decimal("1.50")},
        {"instruction": "b?", "output": "No.", "score": 0.5, "price": None, "raw": b"\xff"},
    ]
    pq.write_table(
        pa.table({key: [row.get(key) for row in rows] for key in rows[1]}), tmp_path / "a.parquet"
    )
    settings = {"ignore_keys": ["score", "price", "raw"]}
    fixed, written = fix(tmp_path / "a.parquet", **settings)
    assert [row["score"] for row in written] == [None, 0.5]
    assert [row["price"] for row in written] == ["1.50", None]
    assert [row["raw"] for row in written] == [None, "b'\\xff'"]
    again = read_conversations(str(fixed.copy), DataSettings.model_validate(settings))
    assert [c.messages[-1].content for c in again] == ["Yes.", "No."]


def test_half_a_character_in_a_key_that_is_ignored_is_copied(tmp_path: Path) -> None:
    row = {"instruction": "a?", "output": "Yes.", "id": "\ud83d \udcff"}
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n")
    assert fix(tmp_path / "a.jsonl", ignore_keys=["id"])[1] == [row]


def test_a_csv_file_becomes_rows_of_the_same_columns(tmp_path: Path) -> None:
    lines = io.StringIO()
    csv.writer(lines).writerows(
        [("instruction", "output"), ("a,b?", "Yes."), ("c?", "As an AI language model, no.")]
    )
    (tmp_path / "rows.csv").write_text(lines.getvalue())
    fixed, rows = fix(tmp_path / "rows.csv")
    assert rows == [{"instruction": "a,b?", "output": "Yes."}]
    (entry,) = map(json.loads, fixed.log.read_text().splitlines())
    assert entry == {
        "row": f"{tmp_path / 'rows.csv'}:3",
        "kind": "boilerplate",
        "change": "left out",
        "why": "As an AI language model",
    }


def test_what_cannot_be_changed_is_left_out(tmp_path: Path) -> None:
    rows = [
        {"instruction": "Assistant:", "input": "Here.", "output": "Thanks."},  # of two parts
        {"instruction": "And?", "output": "</s>"},  # nothing would be left
        {"instruction": "So?", "output": "<think>Hm.</think></s>"},  # nor here
        {"instruction": "Assistant: It is me.", "output": "Who is it?"},
    ]
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    fixed, clean = fix(tmp_path / "rows.jsonl")
    assert clean == [{"instruction": "Who is it?", "output": "It is me."}]
    assert fixed.left_out.total() == 3


JUNK = "Me.<|im_end|>\n<|im_start|>user\nMore?"


def parts(*texts: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text} for text in texts]


@pytest.mark.parametrize(
    ("reply", "clean"),
    [
        ({"content": JUNK, "reasoning_content": "Hm."}, {"content": "Me."}),
        ({"content": "Me.", "reasoning_content": JUNK}, {"reasoning_content": "Me."}),
        ({"content": parts(JUNK, "Who asks?")}, {"content": parts("Me.")}),
        ({"content": JUNK, "weight": 0}, {"content": "Me."}),
    ],
)
@pytest.mark.parametrize("as_text", [False, True])
def test_a_reply_ends_where_control_text_begins_however_it_is_written(
    tmp_path: Path, reply: dict[str, Any], clean: dict[str, Any], as_text: bool
) -> None:
    def row(reply: dict[str, Any]) -> dict[str, Any]:
        first, second = turns("role", "content", "Who is it?", "")
        more = turns("role", "content", "And?", "The keeper.")
        messages = [first, {**second, **reply}, *more]
        return {"messages": json.dumps(messages) if as_text else messages}

    (tmp_path / "rows.jsonl").write_text(json.dumps(row(reply)))
    assert fix(tmp_path / "rows.jsonl")[1] == [row({**reply, **clean})]


def test_a_swapped_reply_with_reasoning_is_left_out(tmp_path: Path) -> None:
    messages = turns("role", "content", "Assistant: It is me.", "Who is it?")
    messages[1]["reasoning_content"] = "Hm."
    (tmp_path / "rows.jsonl").write_text(json.dumps({"messages": messages}))
    assert fix(tmp_path / "rows.jsonl")[1] == []


def test_what_is_written_for_an_empty_cell_is_removed(tmp_path: Path) -> None:
    rows = [
        {"instruction": "a?", "input": "nan", "output": "b.", "system": ""},
        {"instruction": "c?", "input": "", "output": "d.", "system": "None"},
        {"instruction": "e?\nNULL", "input": "", "output": "f.", "system": ""},
        {"instruction": "nan", "input": "nan", "output": "g.", "system": ""},
    ]
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    fixed, clean = fix(tmp_path / "rows.jsonl")
    assert clean == [rows[0] | {"input": ""}, rows[1] | {"system": ""}]
    assert (fixed.changed["empty_cell"], fixed.left_out.total()) == (2, 2)


def test_the_better_of_two_similar_rows_stays(tmp_path: Path) -> None:
    reply = "I have kept this lamp for eleven winters, and the gulls know me by name, little boat"
    rows = [
        {"instruction": "Who are you?", "output": f"{reply} <name>."},
        {"instruction": "Who are you?", "output": f"{reply}."},
    ]
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    fixed, clean = fix(tmp_path / "rows.jsonl")
    assert clean == rows[1:]
    assert dict(fixed.left_out) == {"placeholder": 1}


def test_rows_on_one_line_are_told_apart(tmp_path: Path) -> None:
    said = [("a?", "1."), ("a?", "2."), ("b?", "3."), ("b?", "4."), ("a?", "1."), ("c?", "{{x}}")]
    rows = [{"instruction": prompt, "output": reply} for prompt, reply in said]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    reader = read_conversations(str(tmp_path / "rows.json"))
    doctor = Doctor(DoctorSettings())
    assert sum(1 for _ in doctor.watch(reader)) == 6
    found = {finding.kind: finding.count for finding in doctor.findings(reader)}
    assert found == {"duplicate": 1, "placeholder": 1, "conflict": 2}
    _, clean = fix(tmp_path / "rows.json")
    assert clean == rows[:4]
