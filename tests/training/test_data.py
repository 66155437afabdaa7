"""What a training says of its rows before it begins."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from offbook.monitor import Monitor
from offbook.settings.config import Config
from offbook.tokens.template import ChatTemplate
from offbook.training.data import read_data, too_few_held_out


class Heard(Monitor):
    def __init__(self) -> None:
        self.heard: list[str] = []

    def announce(self, text: str) -> None:
        self.heard.append(text)


def test_the_serious_findings_are_said_in_a_line(tmp_path: Path, template: ChatTemplate) -> None:
    said = [("a?", "Yes."), ("a?", "Yes."), ("b?", "As an AI language model, no."), ("c?", "So,")]
    rows = [{"instruction": prompt, "output": reply} for prompt, reply in said]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    settings = [f"data.train={file}", "data.validation=0"]
    monitor = Heard()
    read_data(Config.load(None, settings), template, None, monitor, {})
    assert monitor.heard[1:] == [
        "rows equal to an earlier one: 1; replies in the words of an assistant: 1; replies that "
        f"end in the middle of a sentence: 1; more with `offbook check {file}`"
    ]
    monitor = Heard()
    ignored = "doctor.ignore=[duplicate,boilerplate,unfinished]"
    read_data(Config.load(None, [*settings, ignored]), template, None, monitor, {})
    assert monitor.heard[1:] == []


@pytest.mark.parametrize(
    ("held_out", "examples", "advice"),
    [
        (20, 260, None),
        (6, 60, "6 examples; 20 or more are needed to judge by: set data.validation=0.34"),
        (
            3,
            30,
            "3 examples; 20 or more are needed to judge by: "
            "add 10 rows, and set data.validation=0.5",
        ),
    ],
)
def test_too_few_held_out_examples_are_said_with_the_number_needed(
    held_out: int, examples: int, advice: str | None
) -> None:
    assert too_few_held_out(held_out, examples) == advice
    if advice:
        more = 10 if "add 10" in advice else 0
        assert float(advice.rpartition("=")[2]) * (examples + more) >= 20
