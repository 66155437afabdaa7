"""Novels: speech in quotation marks, whose speaker is named beside it, in English or Chinese.

`"Come in," said Anna.`, `Anna said: "Come in."`, `安娜说：“请进。”` name their speaker.
A pronoun does not: such speech, and that with nothing beside it, is of nobody known. It is what
others hear, and no row is made of it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from offbook.data.scripts.drama import HEADING, SENTENCE_END
from offbook.data.scripts.script import Line, Script, joined

QUOTES = {"“": "”", "「": "」", "『": "』", "«": "»", "„": "“", '"': '"', "‘": "’"}
BESIDE = 200  # characters beside a speech, in which its speaker is looked for
NARRATION = 5  # paragraphs without a word said, after which another scene begins
VERBS = (
    "said|says|asked|asks|replied|replies|answered|answers|cried|cries|whispered|whispers|shouted"
    "|shouts|muttered|mutters|murmured|called|added|continued|exclaimed|demanded|sighed|laughed"
    "|growled|snapped|began|went on|returned|repeated|observed|remarked|suggested|agreed|admitted"
    "|insisted|declared|announced|warned|promised|explained|grumbled|yelled|screamed|hissed|told"
    "|roared|smiled|grinned|nodded|interrupted|offered|inquired|gasped|groaned|chuckled|begged"
)
WORD = r"[A-ZÀ-ÞŒ][\w'’-]{0,30}"
TITLE = r"(?:(?:Mr|Mrs|Ms|Dr|St|Prof)\.? |Old |Young |Little |the )?"
NAME = (
    rf"(?:{TITLE}{WORD}(?: (?:of |the |de |von |van )?{WORD}){{0,2}}"
    r"|[Tt]he (?:[a-z]{2,15} )?[a-z]{2,15})"
)
NAME_SAID = rf"{NAME})(?: (?:\w{{2,15}}ly|then|only|just))? (?:{VERBS})\b"
AFTER = re.compile(rf"[ ,—–-]*(?:(?:{VERBS}) (?P<a>{NAME})|(?P<b>{NAME_SAID})")
BEFORE = re.compile(rf"(?P<a>{NAME_SAID}[^.!?\n]{{0,60}}[,:—–-]?\s*$")
NOBODY = frozenset(
    [
        *("he", "she", "it", "they", "we", "you", "i", "who", "what", "that", "this", "there"),
        *("then", "and", "but", "when", "as", "if", "so", "no", "yes"),
    ]
)

HOW = (
    "(?:微微|淡淡|冷冷|轻轻|缓缓|慢慢|哈哈|呵呵|嘿嘿|连忙|急忙|赶紧|忽然|突然|又|也|便|就|才|却|只|接着|继续"
    "|微笑着|笑着|哭着|点头|摇头|点点头|摇摇头|叹了口气|叹口气|想了想|大声|低声|轻声|高声|小声|沉声|柔声"
    "|厉声|忙|地|着|一)"
)
SAID = (
    "(?:[冷微大轻苦淡怒喝叹哭笑喊叫骂嚷问答回应劝解插开]{0,2}(?:说道|道)|说|問|问|答|喊|叫|嚷|骂|吩咐|嘱咐"
    "|解释|回答|反问|追问|感叹|自言自语|说了|問道|說道|說)"
)
HAN = "[\u4e00-\u9fff·]"
# A name is 2 to 4 characters, at the beginning of a clause.
CLAUSE = "(?:^|(?<=[，。！？；：”」』、\\s]))"
SAYS = re.compile(
    rf"{CLAUSE}(?P<a>{HAN}{{2,4}}?)[，]?(?:{HOW}{{0,3}}{SAID})(?:了|着)?(?:[一两几]?[句声])?"
    r"(?=[：:，,。！!]|\s*$)"
)
PRONOUNS = (
    "他",
    "她",
    "它",
    "我",
    "你",
    "您",
    "谁",
    "这",
    "那",
    "有人",
    "只听",
    "一边",
    "一面",
    "听",
    "于是",
)


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a paragraph: speech, or what is around it."""

    spoken: bool
    text: str


def recognizes(head: Sequence[str]) -> bool:
    """Whether quotation marks hold a part of the text, in more than one paragraph."""
    text = "\n".join(head)
    opening = quote_of(text)
    return sum(opening in line for line in head) >= 2


def quote_of(text: str) -> str:
    """The quotation mark that begins speech in this text."""
    counts = Counter(char for char in text if char in QUOTES)
    counts["‘"] //= 3  # rather an apostrophe, or a quotation in speech
    return max(QUOTES, key=lambda mark: counts[mark])


def read(script: Script) -> Iterator[Line]:
    """Yield what is said."""
    opening = quote_of("\n".join(script.head()))
    scene, silent, unclosed = 0, 0, ""
    for number, text in script.numbered():
        if not text.strip():
            continue
        if HEADING.fullmatch(text):
            scene, silent, unclosed = scene + 1, 0, ""
            continue
        pieces = list(_pieces(text, opening))
        if not any(piece.spoken for piece in pieces):
            silent, unclosed = silent + 1, ""
            scene += silent == NARRATION
            continue
        silent, where = 0, script.where(number)
        speaker = unclosed if unclosed and pieces[0].spoken else ""
        for one in _speeches(pieces, speaker):
            yield Line(*one, where, scene)
            speaker = one[0]
        closed = text.count(opening) == text.count(QUOTES[opening])
        if opening == QUOTES[opening]:
            closed = text.count(opening) % 2 == 0
        unclosed = "" if closed else speaker


def _pieces(text: str, opening: str) -> Iterator[Piece]:
    """The paragraph in parts; quotation marks in a quotation are text."""
    closing, position = QUOTES[opening], 0
    while (begin := text.find(opening, position)) >= 0:
        if outside := text[position:begin].strip():
            yield Piece(False, outside)
        end = begin + 1
        while True:
            end = text.find(closing, end)
            # An apostrophe does not end a quotation.
            if end < 0 or closing != "’" or not re.match(r"\w", text[end + 1 : end + 2]):
                break
            end += 1
        said = text[begin + 1 : end if end >= 0 else len(text)].strip()
        if said:
            yield Piece(True, said)
        position = end + 1 if end >= 0 else len(text)
    if outside := text[position:].strip():
        yield Piece(False, outside)


def _speeches(pieces: Sequence[Piece], speaker: str) -> Iterator[tuple[str, str]]:
    """Speaker and text of each speech; parts with a few words between them are one."""
    found, said = speaker, list[str]()
    for number, piece in enumerate(pieces):
        if piece.spoken:
            if not found and number and not pieces[number - 1].spoken:
                found = _named_before(pieces[number - 1].text)
            said.append(piece.text)
        elif said:
            if number + 1 == len(pieces) or SENTENCE_END.search(piece.text):
                said[-1] = _ended(said[-1])
            later = _named_before(piece.text)
            if found and later and later != found:
                # The words between begin the speech of somebody else.
                yield found, joined(said)
                found, said = later, []
            else:
                found = found or _named_after(piece.text)
    if said:
        yield found, joined(said)


def _ended(said: str) -> str:
    """A sentence that ends before who said it: it has a comma there, for a full stop."""
    if said.endswith(","):
        return f"{said[:-1]}."
    return f"{said[:-1]}。" if said.endswith("，") else said


def _named_after(text: str) -> str:
    """The speaker that the words after a speech name."""
    text = text[:BESIDE]
    match = AFTER.match(text)
    if match:
        return _known(match["a"] or match["b"])
    match = SAYS.search(re.split("[。！？]", text, maxsplit=1)[0])
    return _known(match["a"]) if match else ""


def _named_before(text: str) -> str:
    """The speaker that the words before a speech name."""
    text = text[-BESIDE:]
    if not re.search(r"[:：,，—–]\s*$|\w\s*$", text):
        return ""  # the sentence has ended
    sentence = re.split(r"(?<=[.!?。！？])\s*(?=\S)", text)[-1]
    match = BEFORE.search(sentence)
    if match:
        return _known(match["a"])
    matches = list(SAYS.finditer(sentence))
    return _known(matches[-1]["a"]) if matches else ""


def _known(name: str) -> str:
    """The name, unless it is a pronoun or no name at all."""
    if name.casefold() in NOBODY or name.split()[0].casefold() in NOBODY:
        return ""
    return "" if name.startswith(PRONOUNS) else name
