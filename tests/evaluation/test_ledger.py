"""Rows that spoil a role are in the ledger, and at its top."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pyarrow.parquet

from offbook.data.messages import Conversation, Message
from offbook.evaluation.ledger import WORST, make_ledger, to_parquet, worst
from offbook.evaluation.losses import RowScores
from offbook.evaluation.record import LedgerRow
from offbook.evaluation.subject import Row
from offbook.tokens.examples import Example

IDS = np.zeros(1, dtype=np.int32)


def rows_of(*pairs: tuple[str, str]) -> list[Row]:
    return [
        Row(
            Example(IDS, IDS, f"rows.json:{number + 1}"),
            Conversation((Message("user", question), Message("assistant", reply))),
            hash(question),
            number,
        )
        for number, (question, reply) in enumerate(pairs)
    ]


def scores_of(tuned: list[float], base: float = 4.0) -> RowScores:
    count = len(tuned)
    tokens = np.full(count, 10)
    return RowScores(np.full(count, base * 10), np.array(tuned) * 10, np.zeros(count), tokens)


def ordinary(count: int) -> list[tuple[str, str]]:
    return [(f"question {n}?", f"aye, answer number {n * n} of {n}, says I") for n in range(count)]


def test_each_kind_is_remarked() -> None:
    pairs = ordinary(20)
    pairs[3] = ("question 2?", "As an AI language model, I have no boat.")
    pairs[7] = ("another one?", pairs[6][1].upper() + "!")
    tuned = [2.0] * 20
    tuned[12], tuned[15] = 3.9, 0.1
    ledger = make_ledger(rows_of(*pairs), scores_of(tuned), {15: 0.3, 14: 4.1})
    assert ledger[3].remark == "contradicts rows.json:3"
    assert ledger[2].remark == "contradicts rows.json:4"
    assert ledger[7].remark == "repeats rows.json:7"
    assert ledger[12].remark == "never learned"
    assert ledger[15].remark == "memorized first"
    assert [row.remark for row in ledger].count("") == 15
    assert (ledger[14].first, ledger[13].first) == (4.1, None)
    assert ledger[0] == LedgerRow("rows.json:1", "question 0?", pairs[0][1], 10, 4.0, None, 2.0, "")


def test_one_kind_does_not_crowd_out_the_others() -> None:
    pairs = [(f"question {n}?", "yes") for n in range(60)]  # repeated, for they are short
    pairs[30] = ("question 31?", "As an AI language model, I have no boat.")
    top = worst(make_ledger(rows_of(*pairs), scores_of([2.0] * 60), {}))
    assert len(top) == WORST
    assert "rows.json:31" in {row.source for row in top[:4]}


def test_a_run_that_learned_nothing_remarks_no_row() -> None:
    ledger = make_ledger(rows_of(*ordinary(9)), scores_of([3.99] * 9), {})
    assert not any(row.remark for row in ledger)
    assert len(worst(ledger)) == 9


def test_short_replies_that_are_equal_do_not_contradict() -> None:
    pairs = ordinary(9)
    pairs += [("Are you there?", "No."), ("Are you there?", "No!"), ("在吗？", "是。")]
    pairs += [("在吗？", "是！"), ("在吗？", "不。"), ("Well?", "……"), ("And?", "?!")]
    ledger = make_ledger(rows_of(*pairs), scores_of([2.0] * len(pairs)), {})
    assert [row.remark for row in ledger[9:]] == [
        "",
        "repeats rows.json:10",
        "contradicts rows.json:14",
        "contradicts rows.json:14",
        "contradicts rows.json:12",
        "",
        "",
    ]


def test_parquet_has_all_of_it() -> None:
    ledger = make_ledger(rows_of(*ordinary(3)), scores_of([2.0, 1.0, 3.0]), {1: 0.5})
    table = pyarrow.parquet.read_table(io.BytesIO(to_parquet(ledger)))
    assert [LedgerRow(**row) for row in table.to_pylist()] == ledger


def test_a_longer_conversation_is_another_question_and_a_repeated_row_the_same() -> None:
    first, second, third = rows_of(("Who?", "Anna, of course."), ("Who?", "Ben."), ("Who?", "Ben."))
    more = (Message("assistant", "Ben."), Message("user", "And he?"), Message("assistant", "Carl."))
    longer = Conversation((*second.conversation.messages[:1], *more))
    rows = [first, replace(second, conversation=longer), replace(third, example=first.example)]
    rows[2] = replace(rows[2], conversation=first.conversation)  # `data.train` repeats it
    ledger = make_ledger(rows, scores_of([2.0] * 3), {})
    assert [row.remark for row in ledger] == ["", "", ""]
