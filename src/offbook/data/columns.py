"""Rows whose keys have other names: those of `data.columns`, and common pairs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from offbook.data.remarks import Remarks
from offbook.errors import DataError, shorten, suggest

QUESTIONS, ANSWERS = ("prompt", "question", "query"), ("completion", "answer", "response")
OURS = frozenset(("instruction", "output", "conversations", "messages"))


def renamed(
    row: Mapping[str, Any], columns: Mapping[str, str], where: str, remarks: Remarks
) -> Mapping[str, Any]:
    """A row under our names.

    Args:
        row: as it was read.
        columns: `data.columns`, what the file calls our keys.
        where: its `file:line`.
        remarks: gets the pair that was read as ours.

    Raises:
        DataError: when the row has not one of the columns.
    """
    if columns:
        for name in columns.values():
            if name not in row:
                other = "correct data.columns, or name the columns of this file as in the others"
                fix = suggest(name, list(row)) or other
                raise DataError(f'no column "{shorten(name)}"', where=where, fix=fix)
        ours = {theirs: key for key, theirs in columns.items()}
        # A column that has the name of one of ours, and is not it, gives way.
        return {
            ours.get(name, name): row[name] for name in row if name in ours or name not in columns
        }
    if not OURS.isdisjoint(row):
        return row
    question = next((name for name in QUESTIONS if row.get(name) is not None), None)
    answer = next((name for name in ANSWERS if row.get(name) is not None), None)
    if question is None or answer is None:
        return row
    others = {name: value for name, value in row.items() if name not in (question, answer)}
    remarks.add(f'"{question}" is read as the instruction, "{answer}" as the output', where)
    if isinstance(row[question], list) and isinstance(row[answer], list):
        return {"messages": [*row[question], *row[answer]], **others}  # as in TRL
    return {"instruction": row[question], "output": row[answer], **others}
