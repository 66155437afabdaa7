"""What each check finds, and what it leaves alone."""

from __future__ import annotations

import random
from typing import get_args

import pytest

from offbook.data.conversations import read_conversations
from offbook.data.messages import Conversation, Message
from offbook.doctor.doctor import Doctor
from offbook.doctor.findings import KINDS, Finding, brief
from offbook.doctor.fixes import CHANGED, LEFT_OUT
from offbook.doctor.shape import NAMES, NO_SCRIPT, script_of
from offbook.doctor.similar import overlap
from offbook.settings.sections import SAMPLES, DoctorSettings, FindingKind
from support.shared import HUANHUAN
from support.templates import talk


def examine(rows: list[Conversation], **settings: object) -> tuple[Doctor, dict[str, Finding]]:
    doctor = Doctor(DoctorSettings.model_validate(settings))
    assert list(doctor.watch(rows)) == rows
    return doctor, {finding.kind: finding for finding in doctor.findings(rows)}


def rows_with(doctor: Doctor, kind: str) -> list[int]:
    return [hit.row for hit in doctor.hits.get(kind, [])]


def lighthouse() -> list[Conversation]:
    return list(read_conversations("lighthouse"))


def test_the_kinds_are_those_that_can_be_ignored() -> None:
    assert tuple(KINDS) == get_args(FindingKind)
    of_rows = {*CHANGED, *LEFT_OUT}
    assert of_rows <= {*KINDS}
    assert {kind for kind, k in KINDS.items() if k.severity == "fix"} <= of_rows


@pytest.mark.skipif(not HUANHUAN.exists(), reason="needs the tutorial's rows")
def test_the_known_facts_of_the_tutorials_data() -> None:
    doctor, found = examine(list(read_conversations(str(HUANHUAN))))
    assert doctor.counts(found.values()) == {
        "rows": 3729,
        "replies": 3729,
        "duplicates": 112,
        "open_prompts": 50,
    }
    assert (found["duplicate"].count, found["conflict"].count) == (112, 50)


@pytest.mark.parametrize("sample", SAMPLES)
def test_nothing_is_to_fix_in_the_samples(sample: str) -> None:
    _, found = examine(list(read_conversations(sample)))
    assert [kind for kind, f in found.items() if f.severity == "fix"] == []


def test_no_row_to_mix_in_is_like_one_on_which_forgetting_is_measured() -> None:
    names = ("general", "general-en", "general-zh")
    _, found = examine([row for name in names for row in read_conversations(name)])
    assert {"duplicate", "near_duplicate", "conflict"}.isdisjoint(found)


def test_a_voice_is_noted_by_its_formula() -> None:
    _, found = examine(lighthouse())
    assert found["opening"].what == "replies that begin with “aye little boat” (63%)"
    assert found["ending"].what == "replies that end with “lamp is lit” (35%)"


def test_a_role_whose_lines_are_in_the_prompts_is_named() -> None:
    said = ("ANNA: Hello?\nBRACK: Who is there?", "It is me."), ("ANNA: Hello?", "Who is there?")
    system = Message("system", "You are Captain Brack.")
    rows = [Conversation((system, *talk(*texts).messages)) for texts in said]
    doctor, found = examine(rows)
    assert rows_with(doctor, "silent_role") == [0]
    assert "“Captain Brack”" in found["silent_role"].what


@pytest.mark.parametrize(
    ("prompt", "reply", "swapped"),
    [
        ("Assistant: Here you go.", "Thanks.", True),
        ("Fine.", "User: Who are you?", True),
        ("User: Who are you?", "Assistant: The keeper.", False),
        ("Who are you?", "The keeper.", False),
    ],
)
def test_labels_tell_swapped_speakers(prompt: str, reply: str, swapped: bool) -> None:
    doctor, _ = examine([talk(prompt, reply)])
    assert rows_with(doctor, "swapped") == [0] * swapped


def test_replies_without_marks_are_complete_where_the_role_writes_none() -> None:
    chat = [talk(f"message {k}", f"ok then number {k} it is") for k in range(40)]
    marked = [talk(f"message {k}", f"Number {k} it is.") for k in range(40)]
    assert rows_with(examine([*chat, talk("x", "and so,")])[0], "unfinished") == [40]
    assert rows_with(examine([*marked, talk("x", "and so we")])[0], "unfinished") == [40]


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("The lamp is lit.", "Latin"),
        ("灯还亮着呢。", "Chinese or Japanese"),
        ("Лампа горит всю ночь.", "Cyrillic"),
        ("등대의 불이 켜져 있다.", "Korean"),
        ("灯塔的灯还亮着, okay?", "Chinese or Japanese"),
    ],
)
def test_the_script_of_a_text(text: str, script: str) -> None:
    assert NAMES[script_of(text)] == script


def test_a_short_text_is_in_any_language() -> None:
    assert script_of("OK!") == script_of("7, 8") == script_of("嗯。") == NO_SCRIPT


def test_two_languages_are_a_note_where_both_are_usual() -> None:
    rows = [
        talk(f"{k}?", "Number and so on." if k % 3 else "这是一个数字，不错。") for k in range(60)
    ]
    _, found = examine(rows, ignore=["near_duplicate", "duplicate"])
    assert found["two_languages"].values == {"share": "33%"}
    assert "language" not in found


def test_what_is_ignored_is_not_said() -> None:
    rows = [talk("one?", "Yes."), talk("one?", "Yes."), talk("one?", "No.")]
    assert {*examine(rows)[1]} == {"duplicate", "conflict"}
    doctor, found = examine(rows, ignore=["duplicate"])
    assert {*found} == {*doctor.hits} == {"conflict"}


def test_rows_that_are_repeated_on_purpose_are_looked_at_once() -> None:
    rows = [row for row in lighthouse()[:20] for _ in range(3)]
    near = talk("What is your name??", rows[0].messages[-1].content)
    doctor, found = examine([*rows, near, near])
    assert doctor.rows == 21
    assert "duplicate" not in found
    assert rows_with(doctor, "near_duplicate") == [20]


def test_conflicts_are_about_the_whole_of_what_came_before() -> None:
    rows = [talk("Hello.", "Hi.", "And?", "Yes."), talk("Hello.", "Hi.", "And?", "No.")]
    _, found = examine(rows)
    assert found["conflict"].count == 1
    other = [talk("Hello.", "Hi."), talk("Hi there.", "Hi.")]
    assert "conflict" not in examine(other)[1]


WORDS = ("lamp", "oil", "gull", "storm", "rope", "tide", "fog", "bell", "ladder", "wick", "kettle")


def test_near_duplicates_are_those_of_a_comparison_of_all_pairs() -> None:
    draw = random.Random(3)
    rows = [talk(*(" ".join(draw.choices(WORDS, k=20)) for _ in "pr")) for _ in range(300)]
    for number in draw.sample(range(300), 120):
        texts = [message.content.split() for message in rows[number].messages]
        for words in texts:
            for _ in range(draw.randrange(4)):
                words[draw.randrange(20)] = draw.choice(WORDS)
        rows.append(talk(*map(" ".join, texts)))
    texts = [[m.content.replace(" ", "") for m in row.messages] for row in rows]
    expected = {
        later
        for later in range(300, len(rows))
        for earlier in range(later)
        if rows[earlier].key != rows[later].key
        and all(overlap(a, b, 0.8) for a, b in zip(texts[earlier], texts[later], strict=True))
    }
    doctor, _ = examine(rows)
    equal = {*rows_with(doctor, "duplicate")}
    found = {*rows_with(doctor, "near_duplicate")}
    assert len(expected - equal) > 30
    assert found <= expected
    assert len(found) >= 0.98 * len(expected - equal)


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [
        (("Why?", "Yes, so it is."), ("Why?!", "Yes — so it is…"), True),
        (("为什么？", "是的，娘娘。"), ("为什么", "是的。「娘娘」！"), True),
        (("😀", "❤️"), ("🎉🎉", "🔥"), False),
        (
            ("What is that?", "I like it 👍 so much."),
            ("What is that?", "I like it 👎 so much."),
            False,
        ),
        (("What is C++?", "A language."), ("What is C#?", "A language."), False),
        (("Is it -5 or 5, keeper?", "It is 5."), ("Is it 5 or -5, keeper?", "It is 5."), False),
        (("What does x*y mean?", "Times."), ("What does x/y mean?", "Times."), False),
        (("a > b?", "a < b"), ("a < b?", "a > b"), False),
        (("कि?", "हाँ, वह है।"), ("की?", "हाँ, वह है।"), False),
        (("…", "Yes, so it is."), ("?!", "Yes, so it is!"), False),
        (("Why?", "…"), ("Why?", "?!"), False),
    ],
)
def test_case_spaces_and_punctuation_do_not_count_but_symbols_do(
    one: tuple[str, str], other: tuple[str, str], alike: bool
) -> None:
    doctor, _ = examine([talk(*one), talk(*other)])
    assert rows_with(doctor, "near_duplicate") == [1] * alike


def test_rows_that_differ_in_a_number_are_not_nearly_equal() -> None:
    rows = [talk(f"How deep is it at buoy {k}?", f"At buoy {k}, it is deep enough.") for k in "12"]
    assert "near_duplicate" not in examine(rows)[1]


def test_no_text_is_too_long() -> None:
    rows = [talk("a" * 10**6, "b " * 10**5), talk("\0", "\0\0")]
    assert examine(rows)[0].rows == 2


def test_the_brief_form_is_one_line() -> None:
    rows = [talk("one?", "Yes."), talk("one?", "Yes."), talk("one?", "No.")]
    _, found = examine(rows)
    assert brief(found.values(), ["my rows.json", "lighthouse"]) == (
        "rows equal to an earlier one: 1; prompts with several replies: 1; "
        "more with `offbook check 'my rows.json' lighthouse`"
    )
    assert brief([], ["rows.json"]) is None
