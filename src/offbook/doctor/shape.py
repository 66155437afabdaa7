"""The form of replies: their length, script, beginning and end, against those of all others."""

from __future__ import annotations

import re
from array import array
from collections import Counter
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from offbook.doctor.findings import Finding, Hit
from offbook.doctor.row import LETTERS, UNSPACED, WORDS, Row
from offbook.settings.sections import DoctorSettings

SCRIPTS = {
    "Chinese or Japanese": UNSPACED,
    "Korean": re.compile("[\u1100-\u11ff\uac00-\ud7a3]"),
    "Cyrillic": re.compile("[\u0400-\u052f]"),
    "Arabic": re.compile("[\u0600-\u06ff]"),
    "Indic or Thai": re.compile("[\u0900-\u0e7f]"),
}
LATIN, NO_SCRIPT = len(SCRIPTS), len(SCRIPTS) + 1
NAMES = (*SCRIPTS, "Latin")
FEWEST_LETTERS = 8  # of a reply, to have a script: "OK" is in every language
LATIN_WEIGHT = 0.3  # of a letter, since a Chinese character says as much as three
# A reply that ends with one of these is not complete; nor with a letter, where the others have a
# mark there.
OPEN_END = (",", "，", "、", ":", "：", ";", "；")
MOST_CHARACTERS = 300  # of a text, from which its script is told
ENDS = 60  # characters of a text that have the three words which it begins or ends with
CLOSING = 0.9  # of the replies end with a mark, where the role writes marks
FEWEST_ROWS = 20  # to say what is usual
LONG = 200  # characters: no shorter reply is far longer than the others
COMMON = 5000  # beginnings and ends that are kept when there are too many


class Shape:
    """Compares each row's longest reply with those of all rows.

    Args:
        settings: which difference is too much.
    """

    def __init__(self, settings: DoctorSettings) -> None:
        self._settings = settings
        self._sources: list[str] = []
        self._lengths, self._scripts, self._ends = array("i"), array("b"), array("b")
        self._openings, self._endings = Counter[str](), Counter[str]()

    def see(self, row: Row) -> None:
        """Look at a row."""
        reply = max((reply.strip() for _, reply in row.pairs), key=len)
        self._sources.append(row.conversation.source)
        self._lengths.append(min(len(reply), 2**31 - 1))
        self._scripts.append(script_of(reply))
        self._ends.append(2 if reply.endswith(OPEN_END) else reply[-1:].isalnum())
        for counter, text in ((self._openings, opening(reply)), (self._endings, ending(reply))):
            counter[text] += bool(text)
            if len(counter) > 20 * COMMON:
                kept = counter.most_common(COMMON)
                counter.clear()
                counter.update(dict(kept))

    def findings(self) -> Iterator[tuple[Finding, list[Hit]]]:
        """What is unlike the others, and what is alike."""
        lengths = np.frombuffer(self._lengths, np.int32)
        scripts, ends = (np.frombuffer(x, np.int8) for x in (self._scripts, self._ends))
        marked = len(ends) and (ends == 0).mean() >= CLOSING
        yield self._found("unfinished", np.flatnonzero(ends >= (1 if marked else 2)))
        if len(lengths) < FEWEST_ROWS:
            return
        median, ratio = float(np.median(lengths)), self._settings.length_ratio
        odd = (lengths > max(ratio * median, LONG)) | (lengths * ratio < median)
        yield self._found("length", np.flatnonzero(odd), median=f"{median:.0f}")
        yield from self._languages(scripts)
        for kind, counter in (("opening", self._openings), ("ending", self._endings)):
            text, count = max(counter.items(), key=lambda item: item[1], default=("", 0))
            if count >= self._settings.alike_share * len(lengths):
                share = f"{count / len(lengths):.0%}"
                yield Finding(kind, count, (), {"text": text, "share": share}), []

    def _languages(self, scripts: NDArray[np.int8]) -> Iterator[tuple[Finding, list[Hit]]]:
        known = scripts[scripts != NO_SCRIPT]
        if not len(known):
            return
        counts = np.bincount(known, minlength=len(NAMES))
        most = int(counts.argmax())
        share = counts[most] / len(known)
        others = np.flatnonzero((scripts != most) & (scripts != NO_SCRIPT))
        kind = "language" if share >= self._settings.language_share else "two_languages"
        text = f"{share:.0%}" if kind == "language" else f"{1 - share:.0%}"
        yield self._found(kind, others, share=text)

    def _found(
        self, kind: str, rows: NDArray[np.int64], **values: str
    ) -> tuple[Finding, list[Hit]]:
        hits = [Hit(row, self._sources[row]) for row in rows.tolist()]
        return Finding.of(kind, hits, **values), hits


def script_of(text: str) -> int:
    """The number in `NAMES` of the script that most of a text is in, or `NO_SCRIPT`."""
    if text.isascii():
        return LATIN if len(LETTERS.findall(text[:ENDS])) >= FEWEST_LETTERS else NO_SCRIPT
    text = text[:MOST_CHARACTERS]
    letters = len(LETTERS.findall(text))
    if letters < FEWEST_LETTERS // 2:
        return NO_SCRIPT
    counts = []
    for number, pattern in enumerate(SCRIPTS.values()):
        counts.append(len(pattern.findall(text)))
        if 2 * counts[-1] > letters:
            return number
    counts.append(int(LATIN_WEIGHT * (letters - sum(counts))))
    return counts.index(max(counts))


def opening(text: str) -> str:
    """What a text begins with: three words, or four characters of Chinese or Japanese."""
    words = WORDS.findall(text[:ENDS].casefold())
    if words and UNSPACED.match(words[0]):
        return "".join(words)[:4]
    return " ".join(words[:3])


def ending(text: str) -> str:
    """What a text ends with: three words, or four characters of Chinese or Japanese."""
    words = WORDS.findall(text[-ENDS:].casefold())
    if words and UNSPACED.match(words[-1]):
        return "".join(words)[-4:]
    return " ".join(words[-3:])
