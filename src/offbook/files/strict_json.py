"""JSON text that every reader takes: Python alone would write NaN and Infinity into it."""

from __future__ import annotations

import json
import math
from typing import Any


def to_json(value: object, **options: Any) -> str:
    """A value as JSON text, in which a number that is not finite is null.

    Args:
        value: lists, tuples and dicts of what JSON has a type for.
        options: others of `json.dumps`.
    """
    return json.dumps(_without_infinity(value), ensure_ascii=False, allow_nan=False, **options)


def _without_infinity(value: object) -> object:
    if isinstance(value, dict):
        return {key: _without_infinity(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_infinity(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
