"""Rows that are nearly equal: MinHash over character 3-grams, and then an exact comparison.

MinHash (Broder, 1997, "On the resemblance and containment of documents") gives each row 48 numbers,
of which two rows have as many in common as their 3-grams overlap. They are in twelve bands of four.
Rows that have all numbers of two bands in common, and enough of the others, are compared exactly.
A pair whose overlap is 0.8 is found with a probability of 0.98, one of 0.85 with 0.998. It is
computed for a thousand rows at a time with numpy, in 96 bytes for each row.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from unicodedata import category

import numpy as np
from numpy.typing import NDArray

from offbook.doctor.findings import Finding, Hit
from offbook.doctor.row import Row

GRAM = 3  # characters
BANDS, IN_BAND = 12, 4
MARGIN = 0.2  # by which the estimate of an overlap may be too low
MOST_CHARACTERS = 1000  # of a prompt or of a reply that are compared
BATCH = 1024  # rows
ROWS = 2**31  # more than there are: two row numbers are one number
MARKS = "#%&*+-/@\\"  # punctuation by its category, but "C#" is not "C", and "-5" is not "5"
BOUNDARY = "\0" * GRAM  # before each text, so that no 3-gram is in two texts

_draw = np.random.default_rng(0)
MULTIPLIERS, OFFSETS = _draw.integers(2**63, size=(2, BANDS * IN_BAND), dtype=np.uint64)
PLACES = _draw.integers(2**63, size=GRAM, dtype=np.uint64)
for _numbers in (MULTIPLIERS, PLACES):
    _numbers |= np.uint64(1)  # odd, so that no two products are equal
MIX = np.uint64(0x9E3779B97F4A7C15)


class _Said(dict[int, int | None]):
    """For `str.translate`: removes white space and punctuation, and remembers which that is."""

    def __missing__(self, code: int) -> int | None:
        kind = category(chr(code))
        removed = (kind[0] in "PZ" or kind in ("Cc", "Cf")) and chr(code) not in MARKS
        self[code] = None if removed else code
        return self[code]


SAID = _Said()


class Similar:
    """Finds rows whose prompts overlap with those of an earlier row, and whose replies do.

    The rows are seen twice: `see` all of them, then `see_again` those that are `wanted`.

    Args:
        least: the overlap of two texts, which is the number of 3-grams that both have, divided by
            that of those that either has (Jaccard's index).
    """

    def __init__(self, least: float) -> None:
        self._least = least
        self._batch: list[str] = []
        self._bands: list[NDArray[np.uint32]] = []
        self._numbers: list[NDArray[np.uint8]] = []
        self._pairs: list[tuple[int, int]] = []
        self._texts: dict[int, tuple[str, str]] = {}
        self._sources: dict[int, str] = {}

    def see(self, row: Row) -> None:
        """Look at a row for the first time."""
        self._batch += _texts(row)
        if len(self._batch) == 2 * BATCH:
            self._finish_batch()

    def wanted(self, leave: set[int]) -> set[int]:
        """The rows that have to be seen again.

        Args:
            leave: rows that are known to be equal to others.
        """
        self._finish_batch()
        if not self._bands:
            return set()
        bands, numbers = np.concatenate(self._bands), np.concatenate(self._numbers)
        self._bands.clear()
        self._numbers.clear()
        enough = (self._least - MARGIN) * numbers.shape[1]
        found = [
            _pairs(
                bands[:, one].astype(np.uint64) << np.uint64(32) | bands[:, other], numbers, enough
            )
            for one, other in combinations(range(BANDS), 2)
        ]
        pairs = np.unique(np.concatenate(found))
        both = zip((pairs % ROWS).tolist(), (pairs // ROWS).tolist(), strict=True)
        self._pairs = [(a, b) for a, b in both if a not in leave and b not in leave]
        return {row for pair in self._pairs for row in pair}

    def see_again(self, row: Row) -> None:
        """Look at a row that is wanted."""
        prompt, reply = _texts(row)
        self._texts[row.number] = (prompt, reply)
        self._sources[row.number] = row.conversation.source

    def findings(self) -> Iterator[tuple[Finding, list[Hit]]]:
        """Each row that is nearly equal to one before it that is not."""
        like: dict[int, int] = {}
        for earlier, later in self._pairs:  # in the order of the later
            kept = like.get(earlier, earlier)
            if later not in like and self._overlap(kept, later):
                like[later] = kept
        hits = [
            Hit(row, self._sources[row], like=self._sources[first], like_row=first)
            for row, first in sorted(like.items())
        ]
        yield Finding.of("near_duplicate", hits), hits

    def _overlap(self, one: int, other: int) -> bool:
        pairs = list(zip(self._texts[one], self._texts[other], strict=True))
        return all(_exact(a) == _exact(b) and overlap(a, b, self._least) for a, b in pairs)

    def _finish_batch(self) -> None:
        if self._batch:
            sketch = _sketch(self._batch)
            self._bands.append(_bands(sketch))
            # A byte of each number is enough to estimate the overlap by.
            self._numbers.append(sketch.astype(np.uint8))
            self._batch.clear()


def overlap(one: str, other: str, least: float) -> bool:
    """Whether two texts have so large a share of their 3-grams in common."""
    if one == other:
        return bool(one)  # what has no text is like nothing
    short, long = sorted((len(one), len(other)))
    if short < least * long / 2:  # repeated 3-grams count once, so the lengths alone say little
        return False
    a, b = (_grams(text) for text in (one, other))
    return len(a & b) >= least * len(a | b)


def _grams(text: str) -> set[str]:
    padded = f"{BOUNDARY[1:]}{text}{BOUNDARY[1:]}"
    return {padded[k : k + GRAM] for k in range(len(padded) - GRAM + 1)}


def _exact(text: str) -> list[str]:
    """The numbers and symbols of a text, which have to be the same in one that is like it."""
    return "".join(" " if category(char)[0] in "LM" else char for char in text).split()


def _texts(row: Row) -> tuple[str, str]:
    """What is said in prompts and replies: no white space or punctuation, in lower case."""
    together = (" ".join(texts)[: 2 * MOST_CHARACTERS] for texts in zip(*row.pairs, strict=True))
    prompt, reply = (text.translate(SAID).casefold()[:MOST_CHARACTERS] for text in together)
    return prompt, reply


def _sketch(texts: list[str]) -> NDArray[np.uint32]:
    """uint32 [rows, BANDS * IN_BAND], of texts that are prompt and reply by turns."""
    joined = BOUNDARY.join(("", *texts, ""))
    codes = np.frombuffer(joined.encode("utf-32-le"), np.uint32).astype(np.uint64)
    lengths = np.array([len(text) + GRAM for text in texts])
    # Prompts and replies are numbered 0 and 1, so that a 3-gram of one is none of the other.
    grams = np.repeat(np.arange(len(texts), dtype=np.uint64) % np.uint64(2), lengths)
    for k in range(GRAM):
        grams += codes[k : k + len(grams)] * PLACES[k]
    grams ^= grams >> np.uint64(32)
    grams *= MIX
    grams ^= grams >> np.uint64(29)
    starts = np.concatenate(([0], np.cumsum(lengths)[1:-1:2]))
    numbers = [
        np.minimum.reduceat((grams ^ offset) * multiplier, starts) * MIX >> np.uint64(32)
        for multiplier, offset in zip(MULTIPLIERS, OFFSETS, strict=True)
    ]
    return np.stack(numbers, axis=1).astype(np.uint32)


def _bands(sketch: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """uint32 [rows, BANDS], equal where all numbers of a band are."""
    bands = np.zeros((len(sketch), BANDS), dtype=np.uint64)
    for k in range(IN_BAND):
        bands = (bands ^ sketch[:, k::IN_BAND]) * MIX
    return (bands >> np.uint64(32)).astype(np.uint32)


def _pairs(
    keys: NDArray[np.uint64], numbers: NDArray[np.uint8], enough: float
) -> NDArray[np.int64]:
    """int64 [pairs], later row * ROWS + earlier one, for rows with the same key.

    Each is paired with the first that has it, and with the last before it, so that there are not
    many pairs where many rows have it; and pairs with too few numbers in common are left out.
    """
    order = np.argsort(keys, kind="stable")
    same = np.concatenate(([False], keys[order][1:] == keys[order][:-1]))
    begins = np.maximum.accumulate(np.where(same, 0, np.arange(len(order))))
    at = np.flatnonzero(same)
    found = []
    for start in range(0, len(at), BATCH * 64):
        some = at[start : start + BATCH * 64]
        later = order[some]
        for earlier in (order[some - 1], order[begins[some]]):
            alike = (numbers[later] == numbers[earlier]).sum(axis=1) >= enough
            found.append(later[alike] * ROWS + earlier[alike])
    return np.concatenate(found) if found else np.zeros(0, np.int64)
