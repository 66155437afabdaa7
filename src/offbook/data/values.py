"""The values of a row as text, or an error that says what to do about them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, TypeGuard

from offbook.data.remarks import Remarks
from offbook.errors import DataError, shorten

WEIGHT_KEYS = ("weight", "train", "loss_weight")
TEXT_PARTS = ("text", "input_text", "output_text")
FIXES = {
    "null": "fill it, or remove the row",
    "a list": "join its texts into one, or write a row for each",
    "an object": "write its text alone",
}


def text_of(value: object, name: str, where: str, remarks: Remarks) -> str:
    """A value that must be text, or a list of parts, which is joined and remarked on.

    Raises:
        DataError: with advice for the kind of value.
    """
    if _is_parts(value):
        value = _joined_parts(value, name, where, remarks)
    return _plain(value, name, where)


def optional_text(row: Mapping[str, Any], key: str, where: str, remarks: Remarks) -> str:
    """A value that may be missing or null."""
    value = row.get(key)
    return "" if value is None else text_of(value, f'"{key}"', where, remarks)


def unpacked(value: object) -> object:
    """A list or an object that is written as JSON in a text, as a CSV file has it."""
    if isinstance(value, str):
        with suppress(ValueError, RecursionError):
            return json.loads(value) if value.strip() else None
    return value


def history_of(row: Mapping[str, Any], where: str) -> list[Any]:
    """The pairs of earlier questions and replies."""
    value = unpacked(row.get("history"))
    if value is None:
        return []
    if not isinstance(value, list):
        what = f'"history" is {kind_of(value)}, not a list of pairs'
        raise DataError(what, where=where, fix='write it as JSON: [["question", "reply"]]')
    return value


def is_trained(turn: Mapping[str, Any], role: str, number: int, where: str) -> bool:
    """Whether a turn's weight leaves it supervised: 1 or true, the default, or 0 or false.

    Raises:
        DataError: for any other weight, and where a turn that is no reply has weight 1.
    """
    weights = {key: turn[key] for key in WEIGHT_KEYS if turn.get(key) is not None}
    for key, weight in weights.items():
        if not isinstance(weight, (bool, int, float)) or weight not in (0, 1):
            shown = shorten(json.dumps(weight, default=str))
            raise DataError(
                f'turn {number}: "{key}" is {shown}; a reply is trained on as a whole or not',
                where=where,
                fix="write 1, or 0 to keep the turn as context that is not trained on",
            )
        if weight and role != "assistant":
            raise DataError(
                f'turn {number}: "{key}" asks to train on a turn of the {role}',
                where=where,
                fix=f'set "{key}" to 0, or remove it: only replies are trained on',
            )
    if len({bool(weight) for weight in weights.values()}) > 1:
        names = " and ".join(f'"{key}"' for key in weights)
        raise DataError(f"turn {number}: {names} differ", where=where, fix="keep one of them")
    return role != "assistant" or all(weights.values())


def kind_of(value: object) -> str:
    """What a JSON value is, in words."""
    names = {
        dict: "an object",
        list: "a list",
        str: "text",
        bool: "true or false",
        type(None): "null",
    }
    return names.get(type(value), "a number")


def _is_parts(value: object) -> TypeGuard[list[dict[str, object]]]:
    """Whether a value is a list of parts, such as {"type": "text", "text": ...}."""
    return bool(
        isinstance(value, list)
        and value
        and all(isinstance(part, dict) and "type" in part for part in value)
    )


def _joined_parts(parts: list[dict[str, object]], name: str, where: str, remarks: Remarks) -> str:
    """Parts of text as one, a line each: as vLLM gives them to a template that takes text."""
    for part in parts:
        if part["type"] not in TEXT_PARTS:
            what = f'{name} has a part of type "{shorten(str(part["type"]))}"'
            fix = "offbook trains on text; write what it says as text"
            raise DataError(what, where=where, fix=fix)
    if len(parts) > 1:
        remarks.add("several parts of text in one turn, joined with line breaks", where)
    texts = [_plain(part.get("text"), f"a part of {name}", where) for part in parts]
    return "\n".join(texts)


def _plain(value: object, name: str, where: str) -> str:
    """A value that must be a JSON string."""
    if not isinstance(value, str):
        kind = kind_of(value)
        raise DataError(
            f"{name} is {kind}, not text", where=where, fix=FIXES.get(kind, "put it in quotes")
        )
    if not value.isascii() and any("\ud800" <= char <= "\udfff" for char in value):
        raise DataError(
            f"{name} has half a surrogate pair", where=where, fix="correct the broken escape"
        )
    return value
