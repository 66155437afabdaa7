"""Personal data in a text: phones, mails, ids, cards, postal addresses, links with tokens.

Each kind has a pattern and, where there are some, its check digits, so that other numbers are left
alone. Names of people are not looked for: they are what a script is made of. All quantifiers are
bounded, so the time is linear in the length of the text.
"""

from __future__ import annotations

import re
from bisect import bisect
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from typing import Literal, get_args

Kind = Literal["link", "mail", "card", "id", "phone", "address"]
KINDS: tuple[Kind, ...] = get_args(Kind)  # the first one that matches a place counts

# Without one of these, there is nothing to find; most texts have none.
HINT = re.compile(r"\d|@|://|wxid_|微信")
# Not \b: Chinese characters are word characters, and stand beside numbers without a space.
BEGIN, END = r"(?<![0-9A-Za-z_.+@-])", r"(?![0-9A-Za-z_@-])"

URL = re.compile(r"https?://[^\s<>\"'，。；！？（）「」“”]{1,2000}", re.IGNORECASE)
SECRET_PARTS = (
    r"://[^/@]{1,200}:[^/@]{1,200}@",  # user:password@host
    r"[?&#;][\w.-]{0,40}(?:token|key|secret|sig|signature|auth|passw(?:or)?d|pwd|session|sid|code"
    r"|credential|ticket|otp|invite)[\w.-]{0,40}=[^&#]{4}",
    r"/(?:invite|join|joinchat|reset|verify|unsubscribe|share|s)/\+?[\w-]{6}",
    r"://(?:discord\.gg|chat\.whatsapp\.com|t\.me/\+)[/\w-]{6}",
    r"[/=](?=[^/=&?#]{0,80}\d)(?=[^/=&?#]{0,80}[A-Za-z])[\w-]{24,}(?:[/&?#]|$)",
)
SECRET = re.compile("|".join(SECRET_PARTS), re.IGNORECASE)

MAIL = (
    r"(?<![A-Za-z0-9_.+%@-])[A-Za-z0-9_.+%-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.){1,6}[A-Za-z]{2,24}"
    r"(?![A-Za-z0-9-])"
)
CARD = rf"{BEGIN}[2-6]\d{{3}}(?:[ -]?\d){{9,15}}{END}"
IDS = (
    rf"{BEGIN}\d{{17}}[\dXx]{END}",  # People's Republic of China
    rf"{BEGIN}[A-Z][12]\d{{8}}{END}",  # Taiwan
    rf"{BEGIN}[A-Z]{{1,2}}\d{{6}}\([0-9A]\)",  # Hong Kong
    rf"{BEGIN}(?!000|666|9)\d{{3}}-(?!00)\d{{2}}-(?!0000)\d{{4}}{END}",  # social security, US
    rf"{BEGIN}[A-Z]{{2}}\d{{2}}(?: ?[A-Z0-9]{{4}}){{2,7}}(?: ?[A-Z0-9]{{1,4}})?{END}",  # IBAN
    r"wxid_[0-9a-z]{8,24}",
    r"(?<=QQ[:： ])[ ]?\d{5,12}(?!\d)",
    r"(?<=QQ号[:：])[ ]?\d{5,12}(?!\d)",
    r"(?<=微信[:：])[ ]?[A-Za-z][A-Za-z0-9_-]{5,19}",
    r"(?<=微信号[:：])[ ]?[A-Za-z][A-Za-z0-9_-]{5,19}",
)
PHONES = (
    r"(?<![\w+])\+\d(?:[ ().-]{0,2}\d){7,14}(?!\d)",  # with the code of a country
    rf"{BEGIN}(?:86[ -]?)?1[3-9]\d(?:[ -]?\d{{4}}){{2}}{END}",  # mobile, China
    rf"{BEGIN}(?:1[ .-])?[2-9]\d{{2}}([.-])[2-9]\d{{2}}\1\d{{4}}{END}",  # North America
    rf"(?<!\d)\([2-9]\d{{2}}\) ?[2-9]\d{{2}}[ .-]\d{{4}}{END}",
    r"(?<![0-9A-Za-z_.,:/+-])(?:\(0\d{2,4}\) ?|0\d{2,4}[ /-])"  # within a country
    rf"\d{{3,4}}[ -]?\d{{3,4}}{END}",
)
STREETS = (
    "Street|St|Avenue|Ave|Road|Rd|Lane|Ln|Drive|Dr|Boulevard|Blvd|Court|Ct|Square|Sq|Place|Pl"
    "|Terrace|Crescent|Highway|Hwy"
)
ADDRESSES = (
    rf"{BEGIN}\d{{1,5}}[A-Za-z]? (?:[NSEW]\.? )?(?:[A-Z][a-z]{{1,20}} ){{1,3}}(?:{STREETS})\b\.?"
    r"(?:,? (?:Apt|Apartment|Unit|Suite|Flat|#)\.? ?\w{1,6})?"
    r"(?:, [A-Z][a-z]{1,20}(?: [A-Z][a-z]{1,20}){0,2})?(?:,? [A-Z]{2} \d{5}(?:-\d{4})?)?",
    # Chinese characters, without those that come before an address, as in "I live in".
    "[^\x00-\u4dff\ua000-\U0010ffff在到于是往去址住我你他她的了和]{2,20}(?:道|路|街|巷|弄|胡同)"
    r"\d{1,5}[号弄](?:院)?(?:[ ,，]?[A-Za-z]?\d{1,4}(?:号楼|号|栋|幢|座|单元|楼|层|室)){0,4}",
    r"(?<![\w-])[A-ZÄÖÜ][a-zäöüß]{1,30}(?:straße|strasse|str\.|gasse|allee|platz|weg) \d{1,4}[a-z]?"
    r"(?:,? \d{5} [A-ZÄÖÜ][a-zäöüß]{1,30})?(?!\w)",
)


@dataclass(frozen=True, slots=True)
class Found:
    """Personal data at `text[start:end]`."""

    kind: Kind
    start: int
    end: int
    value: str


def find(text: str) -> list[Found]:
    """The personal data in a text, in the order of their places; no two overlap."""
    if not HINT.search(text):
        return []
    found: list[Found] = []
    # In a link, a number is no phone.
    taken = sorted(match.span() for match in URL.finditer(text)) if "://" in text else []
    for kind, start, end in _candidates(text):
        place = bisect(taken, (start, end))
        around = taken[max(place - 1, 0) : place + 1]
        if kind == "link" or all(end <= begin or stop <= start for begin, stop in around):
            taken.insert(place, (start, end))
            found.append(Found(kind, start, end, text[start:end]))
    return sorted(found, key=lambda one: one.start)


class Replacer:
    """Writes `[phone 1]` in place of a phone, and the same wherever that phone is found again.

    Attributes:
        counts: how many places of each kind were replaced.
    """

    def __init__(self) -> None:
        self.counts: Counter[Kind] = Counter()
        self._names: dict[tuple[Kind, str], str] = {}
        self._values: Counter[Kind] = Counter()

    def replace(self, text: str) -> str:
        """The text without personal data."""
        parts, last = [], 0
        for one in find(text):
            self.counts[one.kind] += 1
            parts += [text[last : one.start], self._name(one)]
            last = one.end
        return "".join(parts) + text[last:] if parts else text

    def _name(self, one: Found) -> str:
        """The same for one number however it is grouped, and for one mail in either case."""
        value = one.value
        if one.kind in ("phone", "card", "id"):
            value = re.sub(r"\W", "", value)
        key = (one.kind, value.strip().casefold())
        if key not in self._names:
            self._values[one.kind] += 1
            self._names[key] = f"[{one.kind} {self._values[one.kind]}]"
        return self._names[key]


def _candidates(text: str) -> Iterator[tuple[Kind, int, int]]:
    """All matches, those of the first kinds first; they may overlap."""
    for kind in KINDS:
        for pattern, holds in PATTERNS[kind]:
            for match in pattern.finditer(text):
                if holds(match[0]):
                    yield kind, *match.span()


def _is_card(number: str) -> bool:
    """Luhn's check digit."""
    digits = [int(char) for char in reversed(number) if char.isdecimal()]
    doubled = [
        digit if k % 2 == 0 else digit * 2 - 9 * (digit > 4) for k, digit in enumerate(digits)
    ]
    return sum(doubled) % 10 == 0 and len(set(digits)) > 1


def _is_id(number: str) -> bool:
    """The check digits of the kinds of ids that have them."""
    value = re.sub(r"\W", "", number).upper()
    if len(value) == 18 and value[:17].isdecimal():
        return _is_chinese_id(value)
    if re.fullmatch(r"[A-Z][12]\d{8}", value):
        letters = "ABCDEFGHJKLMNPQRSTUVXYWZIO"  # A is 10, B 11, ..., O 35
        first = letters.index(value[0]) + 10
        weights = zip((1, 9, 8, 7, 6, 5, 4, 3, 2, 1, 1), f"{first}{value[1:]}", strict=True)
        return sum(weight * int(digit) for weight, digit in weights) % 10 == 0
    if re.fullmatch(r"[A-Z]{2}\d{2}[A-Z0-9]{11,}", value):  # the shortest IBAN has 15 characters
        return int("".join(str(int(c, 36)) for c in value[4:] + value[:4])) % 97 == 1
    return not re.fullmatch(r"[A-Z]{2}\d{2}[A-Z0-9]{8,}", value)


def _is_chinese_id(value: str) -> bool:
    """A date of birth at its place, and the last character of GB 11643."""
    try:
        date(int(value[6:10]), int(value[10:12]), int(value[12:14]))
    except ValueError:
        return False
    total = sum(int(digit) * pow(2, 17 - k, 11) for k, digit in enumerate(value[:17]))
    return "10X98765432"[total % 11] == value[17]


def _is_phone(number: str) -> bool:
    return 8 <= sum(char.isdecimal() for char in number) <= 15


def _always(_: str) -> bool:
    return True


PATTERNS: dict[Kind, list[tuple[re.Pattern[str], Callable[[str], bool]]]] = {
    "link": [(URL, lambda url: SECRET.search(url) is not None)],
    "mail": [(re.compile(MAIL), _always)],
    "card": [(re.compile(CARD), _is_card)],
    "id": [(re.compile(pattern), _is_id) for pattern in IDS],
    "phone": [(re.compile(pattern), _is_phone) for pattern in PHONES],
    "address": [(re.compile(pattern), _always) for pattern in ADDRESSES],
}
