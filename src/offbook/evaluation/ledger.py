"""The row ledger: what the training did to each row, and which rows are worth a look.

Three kinds of rows spoil a role and can be found by their losses and texts: rows that were never
learned, rows that contradict another one of the same prompt, and rows that repeat another one.
"""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import fields
from itertools import chain, zip_longest
from typing import TYPE_CHECKING

import numpy as np
import pyarrow
import pyarrow.parquet

from offbook.evaluation.record import LedgerRow
from offbook.runs.derived import LEDGER_MARK

if TYPE_CHECKING:  # these import PyTorch, which takes longer than to list the runs in a folder
    from offbook.evaluation.losses import RowScores
    from offbook.evaluation.subject import Row

WORST = 20  # rows in a report
UNLEARNED = 0.9  # of the base's loss, or more: what a row never learned has kept
KNOWN = 0.25  # of the usual loss: a row that is known by heart
ALIKE = 0.3  # of their words, that two replies of one prompt have in common without contradiction
SHOWN = 160  # characters of a text


def make_ledger(
    rows: Sequence[Row], scores: RowScores, first: Mapping[int, float]
) -> list[LedgerRow]:
    """A record of each training row, in their order.

    Args:
        rows: the training rows.
        scores: of them.
        first: the loss of a row, by its number, when it was first trained on.
    """
    base, tuned = scores.base / scores.tokens, scores.tuned / scores.tokens
    usual, fallen = float(np.median(tuned)), float(np.median(tuned / np.maximum(base, 1e-9)))
    remarks = _repeats(rows) | _contradictions(rows)
    ledger = []
    for number, row in enumerate(rows):
        remark = remarks.get(number, "")
        if not remark and fallen < UNLEARNED and tuned[number] >= UNLEARNED * base[number]:
            remark = "never learned"
        early = first.get(row.number, np.inf)
        if not remark and early < KNOWN * usual and tuned[number] < KNOWN * usual:
            remark = "memorized first"
        ledger.append(
            LedgerRow(
                source=row.example.source,
                question=row.question[:SHOWN],
                reply=row.reply[:SHOWN],
                tokens=int(scores.tokens[number]),
                base=round(float(base[number]), 4),
                first=first.get(row.number),
                tuned=round(float(tuned[number]), 4),
                remark=remark,
            )
        )
    return ledger


def worst(ledger: Sequence[LedgerRow]) -> list[LedgerRow]:
    """The rows that are worth a look: of each kind in turn, so that none crowds out the others."""
    kinds: dict[str, list[LedgerRow]] = defaultdict(list)
    for row in sorted(ledger, key=lambda r: -r.tuned):
        kinds[row.remark.split(" ")[0]].append(row)
    kinds["repeats"].sort(key=lambda r: -r.tokens)  # long ones are not equal by chance
    named = (kinds[kind] for kind in ("contradicts", "repeats", "never", "memorized"))
    in_turn = chain.from_iterable(zip_longest(*named))
    return [row for row in chain(in_turn, kinds[""]) if row][:WORST]


def to_parquet(ledger: Sequence[LedgerRow]) -> bytes:
    """The contents of `ledger.parquet`: a column for each field of `LedgerRow`."""
    columns = {f.name: [getattr(row, f.name) for row in ledger] for f in fields(LedgerRow)}
    buffer = io.BytesIO()
    table = pyarrow.table(columns).replace_schema_metadata(LEDGER_MARK)
    pyarrow.parquet.write_table(table, buffer)
    return buffer.getvalue()


def _repeats(rows: Sequence[Row]) -> dict[int, str]:
    """Rows whose reply is that of an earlier row, whatever its prompt."""
    first: dict[str, int] = {}
    remarks = {}
    for number, row in enumerate(rows):
        plain = _plain(row.reply)
        earlier = first.setdefault(plain, number)
        # A row that `data.train` repeats is no other one; punctuation alone is no reply to compare.
        if plain and rows[earlier].example.source != row.example.source:
            remarks[number] = f"repeats {rows[earlier].example.source}"
    return remarks


def _contradictions(rows: Sequence[Row]) -> dict[int, str]:
    """Rows whose prompt is that of another row, with a reply of other words."""
    groups: dict[bytes, list[int]] = defaultdict(list)
    for number, row in enumerate(rows):
        groups[row.conversation.question_key].append(number)
    remarks = {}
    for numbers in groups.values():
        for a in numbers:
            others = [b for b in numbers if b != a and _common(rows[a], rows[b]) < ALIKE]
            if others:
                remarks[a] = f"contradicts {rows[others[0]].example.source}"
    return remarks


def _common(a: Row, b: Row) -> float:
    """The share of character trigrams that two replies have in common."""
    texts = _plain(a.reply), _plain(b.reply)
    if texts[0] == texts[1]:
        return 1.0  # short ones have no trigrams
    first, second = ({text[k : k + 3] for k in range(len(text) - 2)} for text in texts)
    return len(first & second) / max(len(first | second), 1)


def _plain(text: str) -> str:
    """A text without case, white space and punctuation."""
    return "".join(char for char in text.casefold() if char.isalnum())
