"""Copies of training lines are found; formulas of a role and short runs are none."""

from __future__ import annotations

from offbook.evaluation.copies import TrainingLines

LINE = "I have kept this light for eleven winters, and the gull still thinks that he outranks me."
LINES = TrainingLines(
    [
        (LINE, "rows.json:1"),
        ("Come in, little boat, the lamp is lit and the stove is warm.", "rows.json:2"),
        *((f"{n}: come in, little boat, the lamp is lit and all is well.", "x") for n in range(4)),
        ("本宫自入宫以来，从未见过这样大的雪，倒叫人想起从前的事来。", "rows.json:9"),
    ]
)


def test_a_line_is_found_within_a_reply() -> None:
    run = LINES.longest_run(f"Well,  let me see. {LINE[7:70]} today")
    assert (run.source, run.lines) == ("rows.json:1", 1)
    assert run.text.strip() == LINE[7:70].strip()
    assert run.is_copy


def test_a_longer_run_that_begins_within_another_is_found() -> None:
    lines = TrainingLines([("abcdefghijklm", "a"), ("fghijklmnopqrstuvwxyz", "b")])
    assert lines.longest_run("abcdefghijklmnopqrstuvwxyz").text == "fghijklmnopqrstuvwxyz"


def test_what_the_role_always_says_is_no_copy() -> None:
    run = LINES.longest_run("Aye, come in, little boat, the lamp is lit and")
    assert run.lines > 3
    assert not run.is_copy


def test_short_runs_are_no_copies() -> None:
    assert not LINES.longest_run("The light is kept by me, and the gull is asleep.").is_copy
    assert LINES.longest_run("nothing at all").text == ""
    assert not LINES.longest_run("").is_copy


def test_chinese_runs_are_shorter() -> None:
    assert LINES.longest_run("回娘娘，本宫自入宫以来，从未见过这样大的雪。").is_copy
    assert not LINES.longest_run("本宫自入宫以来很好。").is_copy
