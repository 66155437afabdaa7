"""Which words at the start of a line are the name of a speaker."""

from __future__ import annotations

import re

from offbook.data.scripts.script import WIDE

MAX_NAME = 40  # characters
# [00:01], as transcripts have it: perhaps with hours, fractions, and the time when it ends
TIME = r"\d{1,2}:\d{2}(?::\d{2})?(?:[.,]\d{1,3})?"
STAMP = rf"\[{TIME}(?: *--> *{TIME})?\]"
# A name, perhaps how it is said in brackets, a colon, and what is said.
NAMED = re.compile(
    rf"[ \t\u3000]*(?:{STAMP}[ \t]*)?"
    r"(?P<bold>\*{1,3}|_{1,3})?(?P<name>[^:：()（）\[\]【】]{1,60}?)[ \t]*"
    r"(?:[(（\[【][^()（）\[\]【】]{0,80}[)）\]】][ \t]*){0,3}[:：](?!//)"
    r"(?(bold)(?P=bold)?)(?P<text>.*)"
)
SMALL_WORDS = frozenset(
    ("and", "da", "de", "del", "der", "di", "du", "of", "the", "und", "van", "von", "&")
)
# What stands before a colon and is nobody's name.
LABELS = re.compile(
    r"(?:title|subtitle|author|by|written by|credit|source|draft date|date|contact|copyright|notes?"
    r"|characters|cast|setting|set|time|place|location|scene|act|chapter|episode|note|revision|p\.?s"
    r"|cut to|fade in|fade out|fade to|dissolve to|smash cut to|super|title card|int|ext|https?|ftp"
    r"|人物|角色|登场人物|时间|時間|地点|地點|场景|場景|景|时|景别|布景|作者|编剧|編劇|导演|片名|剧名"
    r"|字幕|备注|注|提示|道具|第.{1,6}[集幕场場章回].*)",
    re.IGNORECASE,
)
# What an off-screen voice has behind its name.
VOICE = re.compile(
    r"[ ]*(?:\((?:V\.?O\.?|O\.?S\.?|O\.?C\.?|CONT['’]?D?\.?|OFF|cont['’]d)\)|（[^（）]{0,20}）"
    r"|(?<=[\u4e00-\u9fff])(?:OS|VO|os|vo|O\.S\.|V\.O\.)|[ ]?\^)$"
)
TITLES = re.compile(r"\b(?:Mr|Mrs|Ms|Dr|St|Sr|Jr|Prof|Capt|Lt|Sgt|Rev|No|Mme|Mlle|M|[A-Z])\.", re.I)


def split_name(text: str) -> tuple[str, str] | None:
    """The speaker of a line such as `ANNA (softly): Come in.`, and what is said; else None."""
    match = NAMED.match(text)
    if match is None or not is_name(match["name"]):
        return None
    if match["name"][-1].isdigit() and match["text"][:1].isdigit():
        return None  # a time, such as "At 12:30"
    return clean(match["name"]), match["text"].strip()


def is_name(text: str) -> bool:
    """Whether a few words can be a name: short, capitalized, and no part of a sentence."""
    name = clean(text)
    if not 0 < len(name) <= MAX_NAME or LABELS.fullmatch(name):
        return False
    plain = TITLES.sub("", name)
    if re.search(r"[.,:!?;…。，：！？；、“”\"「」『』《》<>{}=/\\|@*_~]|--|\d{3}|://", plain):
        return False
    if not re.search(r"[^\W\d_]", name):
        return False  # a time, such as 12:30
    words = name.split()
    if re.search(f"[{WIDE}]", name):
        return len(name) <= 12 and len(words) <= 3
    if len(words) > 5 or words[0] in SMALL_WORDS - {"the", "van", "von", "de"}:
        return False
    return all(not word[0].islower() or word in SMALL_WORDS for word in words)


def clean(name: str) -> str:
    """A name without brackets and marks around it: `ANNA (CONT'D)` and `**Anna**` are speakers."""
    name = re.sub(r"\s+", " ", name.strip().strip("*_#>@ \u3000\u200e\u200f")).strip()
    while (shorter := VOICE.sub("", name)) != name:
        name = shorter.strip()
    return name


def same(name: str) -> str:
    """A key that is equal for spellings of one name, such as in capitals."""
    return re.sub(r"[\s\u3000]+", " ", name).strip().casefold()
