"""What the table of scores says."""

from __future__ import annotations

from offbook.report.scorecard import questions
from support.evaluations import make_evaluation


def test_turns_of_a_conversation_are_not_counted_as_prompts() -> None:
    rows = {row.key: row for question in questions(make_evaluation()) for row in question.rows}
    assert (rows["loss"].n, rows["drift"].n) == ("40", "")
