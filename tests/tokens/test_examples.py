"""Columnar examples and the split."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from offbook.data.messages import Conversation
from offbook.errors import DataError
from offbook.tokens.examples import BATCH_ROWS, Examples, tokenize
from offbook.tokens.template import ChatTemplate
from support.templates import numbered, talk


@pytest.fixture(scope="module")
def examples(template: ChatTemplate) -> Examples:
    return tokenize(numbered(100, 40), template)


def test_the_arrays_contain_what_the_template_builds(
    template: ChatTemplate, examples: Examples
) -> None:
    assert len(examples) == 100
    for k, conversation in enumerate(numbered(100, 40)):
        built = template.build_example(conversation)
        np.testing.assert_array_equal(examples[k].input_ids, built.input_ids)
        np.testing.assert_array_equal(examples[k].labels, built.labels)
        assert examples[k].source == built.source == f"rows.json:{k}"


def test_a_slice_is_a_view(examples: Examples) -> None:
    part = examples[10:13]
    assert [e.source for e in part] == ["rows.json:10", "rows.json:11", "rows.json:12"]
    assert part.input_ids is examples.input_ids
    assert part.lengths.tolist() == [len(e) for e in part]


def test_rows_stay_in_order_over_several_batches(template: ChatTemplate) -> None:
    seen: list[int] = []
    examples = tokenize(numbered(BATCH_ROWS + 5, 9), template, progress=seen.append)
    assert seen == [BATCH_ROWS, BATCH_ROWS + 5]
    assert [e.source for e in examples] == [f"rows.json:{k}" for k in range(BATCH_ROWS + 5)]


@pytest.mark.parametrize("share", [0.02, 0.1, 0.5])
def test_no_prompt_is_on_both_sides(examples: Examples, share: float) -> None:
    training, validation = examples.split(share, seed=1)
    assert sorted([*training.rows, *validation.rows]) == list(range(100))
    assert not set(examples.prompt_keys[training.rows]) & set(examples.prompt_keys[validation.rows])
    # Prompts have 2 or 3 rows each, so the share is met to within one prompt.
    assert share * 100 <= len(validation) < share * 100 + 3


def test_the_split_depends_on_seed_and_prompts_but_not_on_order(template: ChatTemplate) -> None:
    rows = numbered(100, 40)
    forward, backward = (tokenize(r, template) for r in (rows, rows[::-1]))
    held = {e.source for e in forward.split(0.1, seed=1)[1]}
    assert {e.source for e in backward.split(0.1, seed=1)[1]} == held
    assert {e.source for e in forward.split(0.1, seed=2)[1]} != held


def test_a_share_of_zero_holds_out_nothing(examples: Examples) -> None:
    training, validation = examples.split(0, seed=1)
    assert (len(training), len(validation)) == (100, 0)


def test_a_single_prompt_cannot_be_split(template: ChatTemplate) -> None:
    with pytest.raises(DataError, match="all rows have the same prompt"):
        tokenize(numbered(5, 1), template).split(0.1, seed=1)


def test_truncated_and_dropped_rows_are_named(template: ChatTemplate) -> None:
    rows = [
        Conversation(talk("short", "short").messages, "rows.json:1"),
        Conversation(talk("long question " * 30, "short").messages, "rows.json:2"),
        Conversation(talk("short", "long reply " * 30).messages, "rows.json:3"),
    ]
    examples = tokenize(rows, template, max_length=40)
    assert [e.source for e in examples] == ["rows.json:1", "rows.json:2"]
    assert examples.truncated == ("rows.json:2",)
    assert examples.dropped == ("rows.json:3",)
    assert examples.notices(40) == [
        "1 row longer than 40 tokens; the prompt is truncated: rows.json:2",
        "1 reply left out because longer than 40 tokens alone: rows.json:3",
    ]


def test_a_data_set_without_a_row_that_fits_is_refused(template: ChatTemplate) -> None:
    with pytest.raises(DataError) as caught:
        tokenize(numbered(2, 2), template, max_length=8)
    assert str(caught.value) == "rows.json:0: no row fits; raise data.max_length (now 8)"


def test_a_notice_names_the_first_five_rows(template: ChatTemplate) -> None:
    rows = [Conversation(talk("long " * 30, "Yes.").messages, f"rows.json:{k}") for k in range(8)]
    (notice,) = tokenize(rows, template, max_length=30).notices(30)
    assert notice.endswith(
        ": rows.json:0, rows.json:1, rows.json:2, rows.json:3, rows.json:4, and 3 more"
    )


def test_replies_are_counted_after_long_conversations_are_cut(template: ChatTemplate) -> None:
    long = talk(*("one two three four five six" for _ in range(40)), "Well?", "long " * 60)
    rows = [long, Conversation(talk("Well?", "Yes.").messages, "rows.json:8")]
    whole, fitted = tokenize(rows, template), tokenize(rows, template, 60)
    assert (len(whole), whole.replies) == (2, 22)
    assert fitted.replies == 21
    assert fitted.dropped == ("rows.json:7 (reply 21 of 21)",)
    divided, dropped = fitted.notices(60)
    assert divided == (
        "1 row is cut to fit in 60 tokens; each reply that fits is trained on once, with as much "
        "of what came before as fits: rows.json:7"
    )
    assert dropped.startswith("1 reply left out because longer than 60 tokens alone: ")
    assert len(set(fitted.prompt_keys[fitted.rows])) == 2  # a row's examples are on one side


def test_a_conversation_of_one_trained_reply_is_cut_by_name(template: ChatTemplate) -> None:
    *earlier, question, reply = talk(*(f"some words {k}" for k in range(20))).messages
    context = [replace(message, trained=False) for message in earlier]
    row = Conversation((*context, question, reply), "rows.json:7")
    assert tokenize([row], template).complete
    fitted = tokenize([row], template, 60)
    assert (len(fitted), fitted.replies, fitted.divided) == (1, 1, ("rows.json:7",))
