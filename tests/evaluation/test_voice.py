"""A voice is told where there is one, and not where there is none."""

from __future__ import annotations

import random

import pytest

from offbook.evaluation.figures import share
from offbook.evaluation.voice import (
    ENOUGH_ACCURACY,
    VoiceClassifier,
    cross_validate,
    likeness,
    opening,
    own_openings,
    repetition,
)

WORDS = "rain bread letter window garden river paper morning bridge carry open".split()  # noqa: SIM905
TOPICS = "赏花听雨读书用膳梳妆养病出宫回府写字下棋"


def sentences(count: int, seed: int, pattern: str = "{}") -> list[str]:
    draw = random.Random(seed)
    return [pattern.format(" ".join(draw.choices(WORDS, k=9))) for _ in range(count)]


def test_a_manner_of_speaking_is_told() -> None:
    role, others = sentences(30, 0, "aye, {}, says I."), sentences(30, 1, "Sure! {}.")
    right = cross_validate(role, others, range(30)) > 0.5
    assert share(right).low > ENOUGH_ACCURACY
    heard = VoiceClassifier(role, others).probability(["aye, the rain, says I.", "Sure! The rain."])
    assert heard[0] > 0.5 > heard[1]


def test_chinese_is_told() -> None:
    role = [f"本宫今日{word}，不必多言。" for word in TOPICS]
    others = [f"您好，关于{word}，我可以提供以下建议。" for word in TOPICS]
    assert share(cross_validate(role, others, range(len(role))) > 0.5).low > ENOUGH_ACCURACY


@pytest.mark.parametrize("seed", range(10))
def test_the_same_manner_is_not_told_apart(seed: int) -> None:
    """Texts of one source in two heaps: a verdict from that would be a verdict from nothing."""
    some, others = (sentences(24, 2 * seed + k) for k in range(2))
    right = cross_validate(some, others, range(24)) > 0.5
    assert share(right).low < ENOUGH_ACCURACY


def test_a_name_is_not_a_voice() -> None:
    role = sentences(24, 0, "well, Ottilie Brack said {}")
    others = sentences(24, 1, "well, Robin Marsh said {}")
    assert share(cross_validate(role, others, range(24)) > 0.5).low < ENOUGH_ACCURACY


def test_prompts_are_not_in_both_parts() -> None:
    """Each prompt has a text of its own, twice: by heart, it would be told; unseen, it is not."""
    texts = [s for s in sentences(20, 0) for _ in range(2)]
    others = [s for s in sentences(20, 1) for _ in range(2)]
    prompts = [k // 2 for k in range(40)]
    right = cross_validate(texts, others, prompts) > 0.5
    assert share(right, prompts * 2).low < ENOUGH_ACCURACY


def test_likeness_is_that_of_chrf() -> None:
    assert likeness("Aye, little boat.", "Aye, little boat.") == pytest.approx(100)
    assert likeness("xyz", "abc") == 0
    assert likeness("", "abc") == 0
    # By hand: of "abc" and "abd", 2 of 3 unigrams, 1 of 2 bigrams, 0 of 1 trigrams are shared.
    assert likeness("abc", "abd") == pytest.approx(100 * (2 / 3 + 1 / 2 + 0) / 3)


def test_openings() -> None:
    assert opening("Aye, little boat, come in.") == opening("Aye little boat!") == "aye little boat"
    assert opening("本宫今日不适") == "本宫今日"
    assert own_openings(["Aye, little boat.", "Aye, little boat!", "Come in, please."]) == [
        False,
        False,
        True,
    ]


def test_repetition() -> None:
    assert repetition("no no no no no no no no") > 0.7
    assert repetition("the lamp is lit and the sea is calm tonight") == 0
    assert repetition("好好好好好好好好") > 0.7
    assert repetition("") == repetition("hm") == 0
