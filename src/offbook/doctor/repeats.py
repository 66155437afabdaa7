"""Rows that are equal to earlier ones, and prompts that have several replies."""

from __future__ import annotations

from array import array
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from offbook.doctor.findings import Finding, Hit
from offbook.doctor.row import Row


class Repeats:
    """Finds duplicates and conflicting replies by two hashes of 8 bytes for each row."""

    def __init__(self) -> None:
        self._sources: list[str] = []
        self._texts, self._prompts = array("Q"), array("Q")

    def see(self, row: Row) -> None:
        """Look at a row."""
        self._sources.append(row.conversation.source)
        self._texts.frombytes(row.conversation.key)
        self._prompts.frombytes(row.conversation.question_key)

    def findings(self) -> Iterator[tuple[Finding, list[Hit]]]:
        """Duplicates, and prompts with several replies."""
        rows, firsts = _repeated(np.frombuffer(self._texts, np.uint64))
        duplicates = self._hits(rows, firsts)
        yield Finding.of("duplicate", duplicates), duplicates
        alone = np.delete(np.arange(len(self._texts)), rows)
        others, asked_first = _repeated(np.frombuffer(self._prompts, np.uint64)[alone])
        conflicts = self._hits(alone[others], alone[asked_first])
        by_prompt = sorted({hit.like_row: hit for hit in reversed(conflicts)}.values())
        yield Finding.of("conflict", by_prompt), conflicts

    def _hits(self, rows: NDArray[np.int64], like: NDArray[np.int64]) -> list[Hit]:
        pairs = zip(rows.tolist(), like.tolist(), strict=True)
        return [
            Hit(row, self._sources[row], like=self._sources[first], like_row=first)
            for row, first in pairs
        ]


def _repeated(keys: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The positions of keys that were there before, in order; and that of the first of each."""
    _, first, number = np.unique(keys, return_index=True, return_inverse=True)
    firsts = first[number]
    again = np.flatnonzero(firsts != np.arange(len(keys)))
    return again, firsts[again]
