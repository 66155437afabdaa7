"""JSON that every reader takes."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from offbook.files.strict_json import to_json


def test_numbers_that_are_not_finite_are_null_at_any_depth() -> None:
    value: dict[str, Any] = {"a": [1.5, math.nan, ({"b": -math.inf},)], "值": "NaN", "n": 2}
    text = to_json(value)
    assert json.loads(text) == {"a": [1.5, None, [{"b": None}]], "值": "NaN", "n": 2}
    assert "值" in text
    assert math.isnan(value["a"][1])


def test_the_options_of_json_hold() -> None:
    assert to_json([1, math.inf], indent=1) == "[\n 1,\n null\n]"
    with pytest.raises(TypeError):
        to_json(b"x")
    assert to_json(b"x", default=bytes.decode) == '"x"'
