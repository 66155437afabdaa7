"""Texts on which tokenizers differ: scripts, marks, runs of spaces and digits, control tokens."""

from __future__ import annotations

import random
from collections.abc import Sequence

RANGES = {
    "latin": (0x21, 0x17F),
    "greek and cyrillic": (0x370, 0x52F),
    "hebrew and arabic": (0x5D0, 0x6FF),
    "devanagari": (0x900, 0x97F),
    "thai": (0xE01, 0xE5B),
    "marks": (0x300, 0x36F),
    "georgian and hangul": (0x10A0, 0x11FF),
    "punctuation": (0x2000, 0x206F),
    "letters and numbers": (0x2100, 0x218F),
    "symbols": (0x2190, 0x2BFF),
    "kana": (0x3000, 0x30FF),
    "han": (0x4E00, 0x9FFF),
    "hangul": (0xAC00, 0xD7A3),
    "presentation forms": (0xF900, 0xFDFF),
    "wide": (0xFF00, 0xFFEF),
    "deseret": (0x10400, 0x1044F),
    "mathematical letters": (0x1D400, 0x1D7FF),
    "emoji": (0x1F300, 0x1FAFF),
    "han, extension B": (0x20000, 0x2A6DF),
    "han, extension G": (0x30000, 0x3134A),
    "private use": (0xE000, 0xF8FF),
    "tags": (0xE0001, 0xE007F),
    "private use, plane 15": (0xF0000, 0xF00FF),
}
SPACES = (" ", "\t", "\n", "\r\n", "\r", "\v", "\f", "\x85", "\xa0", "\u2003", "\u2028", "\u3000")
WORDS = (
    "the keeper",
    "I'LL we've don't",
    "naïve e\u0301te\u0301",
    "HTTPServer fooBar_baz",
    "3.14 1,234,567.89e-10",
    "٣٤٥ ५६७ ²³ ½ Ⅷ ①",
    "家父是大理寺少卿。",
    "臣妾\u3000謝皇上！",
    "👩\u200d👩\u200d👧\u200d👦 🏳️\u200d🌈 👍🏽 🇨🇳",
    "مرحبا بالعالم",
    "हिन्दी ไทย 한국어 ᄒ\u1161\u11ab",
    "\ufeffbom \u200bzero\u200c \u202eright",
    "▁ ▁▁ Ġ Ċ <0x0A> <unk>",
    "def f(x):\n\treturn x**2\r\n",
    "\0\x01\x1b[31m\x7f\ufffd\ufffe\uffff",
)


def nasty_texts(
    count: int, control: Sequence[str] = (), words: Sequence[str] = WORDS, seed: int = 0
) -> list[str]:
    """So many texts, the same ones each time.

    Args:
        count: how many.
        control: the texts of control tokens, some of which are in some of the texts.
        words: some of which are in them, too.
        seed: of the generator.
    """
    generator = random.Random(seed)

    def piece() -> str:
        kind = generator.randrange(8)
        length = generator.choice((1, 1, 2, 3, 5, 9))
        if kind == 0:
            return generator.choice(SPACES) * length
        if kind == 1:
            return "".join(generator.choices(SPACES, k=length))
        if kind == 2:
            return "".join(generator.choices("0123456789", k=2 * length))
        if kind == 3 and control:
            text = generator.choice(control)
            return generator.choice((text, text[:-1], text * 2, text.upper()))
        if kind == 4:
            return "".join(generator.choices(words, k=length))
        if kind == 5:
            return chr(generator.randint(*generator.choice(list(RANGES.values())))) * length
        names = generator.choices(list(RANGES), k=1 if kind == 6 else length)
        return "".join(
            chr(generator.randint(*RANGES[generator.choice(names)])) for _ in range(length)
        )

    def text() -> str:
        if generator.random() < 0.01:  # a very long run
            return generator.choice((*SPACES, "a", "7", "é", "家", "🙂", "ab ", "!")) * 3000
        return "".join(piece() for _ in range(generator.choice((1, 2, 3, 6, 12))))

    return [text() for _ in range(count)]
