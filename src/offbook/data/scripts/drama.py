"""Drama text: a speech on each line, after its speaker and a colon, in English or Chinese.

What stands in brackets is a stage direction, and so is a line without a speaker. A list of
characters is no speech. Where blank lines separate speeches, the lines up to the next one belong to
the speech; elsewhere only those that are indented, or that continue a sentence.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise

from offbook.data.scripts.names import split_name
from offbook.data.scripts.script import Line, Script, Speech

# Act I, Scene 2, INT. A ROOM - NIGHT, # Chapter, ***, 第一幕, 第3场, 场景：, 1-2 日 内 ...
HEADING = re.compile(
    r"[ \t\u3000]*(?:(?:act|scene|episode|chapter|part|prologue|epilogue|interlude)\b(?!.*[.!?]$)"
    r"[ .:]*(?:[ivxlc]+|\d+|one|two|three|four|five|six|seven|eight|nine|ten)?\b.{0,60}"
    r"|(?:int|ext|est|i/e|int\./ext)[./ ].{1,100}|\#{1,6}(?:[ ]|$).{0,100}"
    r"|[*=~_•·—–-](?:[ ]?[*=~_•·—–-]){2,}"
    r"|【?第[\d一二三四五六七八九十百零两〇]{1,5}[集幕场場章回节節][】：:\s].{0,60}"
    r"|【?第[\d一二三四五六七八九十百零两〇]{1,5}[集幕场場章回节節]】?"
    r"|(?:场景|場景|场次|地点|時間|时间|布景|景|幕)[\d一二三四五六七八九十]{0,3}[ ：:].{0,80}"
    r"|\d{1,3}[-.、]\d{1,3}[ 、.].{0,40}[日夜内外晨昏].{0,40}|序幕|尾声|幕落|幕启|剧终|完)[ \t]*",
    re.IGNORECASE,
)
CAST = re.compile(
    r"[#*【\s]*(?:characters|(?:the )?cast(?: of characters)?|list of characters"
    r"|dramatis person(?:ae|æ)|persons of the play"
    r"|(?:主要|出场|登场|登場|剧中)?(?:人物|角色)(?:表|介绍|介紹|简介|簡介|列表)?)"
    r"[*】\s]*[:：]?[*\s]*",
    re.IGNORECASE,
)
DIRECTION = re.compile(r"[ \t\u3000]*(?:[(（\[【〔△▲◇◆].*|\*[^*]+\*|_[^_]+_)")
BRACKETS = re.compile(
    r"[ \t]*(?:\([^()]{0,200}\)|（[^（）]{0,200}）|\[[^\[\]]{0,200}\]|【[^【】]{0,200}】"
    r"|〔[^〔〕]{0,200}〕)"
)
SENTENCE_END = re.compile(r"[.!?…。！？—–-][\"'”’」』)）]*$")
INSIDE, OUTSIDE = "stage directions in a speech, left out", "lines that nobody says, left out"
SPACE = (" ", "\t", "\u3000")
SHARE = 0.2  # of the lines that are not blank, which have speakers, in a drama


def recognizes(head: Sequence[str]) -> bool:
    """Whether enough lines begin with a name and a colon, and some name comes twice."""
    lines = [text for text in head if text.strip()]
    names = [found[0] for text in lines if (found := split_name(text))]
    return len(names) >= max(2, SHARE * len(lines)) and len(set(names)) < len(names)


def read(script: Script) -> Iterator[Line]:
    """Yield the speeches."""
    head, blank = script.head(), True
    cast = _cast(head)
    rest = ["", *head[: cast.start], "", *head[cast.stop :]]
    spoken = [(not before.strip()) for before, text in pairwise(rest) if split_name(text)]
    apart = sum(spoken) > len(spoken) / 2
    speech: Speech | None = None
    scene = 0
    for number, text in script.numbered():
        where = script.where(number)
        if not text.strip():
            blank = True
            continue
        listed = number - 1 in cast
        heading = HEADING.fullmatch(text)
        named = None if heading or listed else split_name(text)
        if named or heading:
            yield from finished(speech, script)
            speech, scene = None, scene + bool(heading)
        if named:
            speech = Speech(named[0], where, scene, [named[1]])
        elif heading or listed or DIRECTION.fullmatch(text):
            script.remarks.add(OUTSIDE, where)
        elif speech and not blank and (apart or text[:1] in SPACE or _is_open(speech)):
            speech.parts.append(text.strip())
        else:
            script.remarks.add(OUTSIDE, where)
        blank = False
    yield from finished(speech, script)


def finished(speech: Speech | None, script: Script) -> Iterator[Line]:
    """The speech as a line, without the stage directions in it, if anything is left."""
    if speech is None:
        return
    line = speech.line()
    text = BRACKETS.sub("", line.text)
    if text != line.text:
        script.remarks.add(INSIDE, line.where)
    text = re.sub(r"[ \t]+", " ", text).strip()
    if text:
        yield Line(line.speaker, text, line.where, line.scene)


def _cast(head: Sequence[str]) -> range:
    """The lines of the list of characters, whose descriptions nobody says.

    It goes up to a heading; where a name comes again before one, up to a blank line.
    """
    begin = next((k for k, text in enumerate(head) if CAST.fullmatch(text)), len(head))
    names: set[str] = set()
    blank = None
    for k in range(begin + 1, len(head)):
        if HEADING.fullmatch(head[k]):
            return range(begin, k)
        if named := split_name(head[k]):
            if named[0] in names:
                return range(begin, blank or k)
            names.add(named[0])
        elif not head[k].strip() and head[k - 1].strip() and k > begin + 1:
            blank = blank or k
    return range(begin, blank or len(head))


def _is_open(speech: Speech) -> bool:
    """Whether the sentence goes on in the next line."""
    return not SENTENCE_END.search(speech.parts[-1])
