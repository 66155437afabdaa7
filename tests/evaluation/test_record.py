"""An evaluation is read as it was written."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from offbook.errors import CheckpointError
from offbook.evaluation.record import Evaluation, Figure
from support.evaluations import make_evaluation


def test_it_is_read_as_it_was_written(tmp_path: Path) -> None:
    file = tmp_path / "evaluation.json"
    whole = make_evaluation()
    file.write_bytes(whole.to_json())
    assert Evaluation.read(file) == whole


def test_a_single_prompt_has_an_infinite_interval_and_the_file_is_json(tmp_path: Path) -> None:
    file = tmp_path / "evaluation.json"
    whole = make_evaluation()
    one = Figure(2.0, -math.inf, math.inf, 1)
    whole = replace(whole, forgetting=replace(whole.forgetting, kl=one))
    file.write_bytes(whole.to_json())
    assert json.loads(file.read_text("utf-8"), parse_constant=pytest.fail)
    assert Evaluation.read(file) == whole


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "evaluation.json"
    file.write_text('{"findings": 3}', encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"evaluation\.json: the file is damaged; remove it"):
        Evaluation.read(file)
