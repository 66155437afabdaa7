"""Does it sound like the role: a classifier of voices, and plain counts of how replies are written.

The classifier tells the role's lines from the base's own replies to the same prompts, by character
n-grams, which are what works best for telling authors apart (Stamatatos, 2013, "On the robustness
of authorship attribution based on character n-gram features"). Its accuracy is measured on texts
that it was not trained on, and without enough of it, it gives no opinion. Names are masked, since
a name alone would tell the role from anyone else.
"""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from sacrebleu.metrics.chrf import CHRF

from offbook.doctor.shape import opening

LENGTHS = (1, 2, 3, 4)  # of n-grams, in characters
FEATURES = 2**14
SEEN = 240  # characters of a text: replies of the base are longer than lines
PENALTY = 1e-3  # on the squared weights
FOLDS = 5
FEWEST_TEXTS = 10  # of each kind, to train on
ENOUGH_ACCURACY = 0.8  # the lower end of its interval
NAME = re.compile(r"(?<=[\w,;:'’\-] )[A-Z][a-z]+(?: [A-Z][a-z]+)*")


class VoiceClassifier:
    """Logistic regression on the character n-grams of a text.

    Args:
        role: lines of the role.
        others: replies that are not the role's.
    """

    def __init__(self, role: Sequence[str], others: Sequence[str]) -> None:
        features_TF = _features([*role, *others])
        labels_T = torch.tensor([1.0] * len(role) + [0.0] * len(others))
        # Both kinds weigh the same, however many there are.
        weights_T = torch.where(labels_T == 1, 0.5 / len(role), 0.5 / len(others))
        weight_F = torch.zeros(FEATURES, requires_grad=True)
        bias = torch.zeros(1, requires_grad=True)
        optimizer = torch.optim.LBFGS([weight_F, bias], max_iter=50, line_search_fn="strong_wolfe")

        def loss() -> torch.Tensor:
            optimizer.zero_grad()
            found = torch.nn.functional.binary_cross_entropy_with_logits(
                features_TF @ weight_F + bias, labels_T, weights_T, reduction="sum"
            )
            total = found + PENALTY * weight_F.square().sum()
            total.backward()
            return total

        optimizer.step(loss)
        self._weight_F, self._bias = weight_F.detach(), bias.detach()

    def probability(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """How likely each text is the role's, from 0 to 1."""
        scores_T = _features(texts) @ self._weight_F + self._bias
        return scores_T.sigmoid().double().numpy()


def cross_validate(
    role: Sequence[str],
    others: Sequence[str],
    prompts: Sequence[object],
    judged: Sequence[str] = (),
) -> NDArray[np.float64]:
    """How likely a classifier that has not seen its prompt takes each text for what it is.

    Args:
        role: a line for each prompt.
        others: a reply to each.
        prompts: equal where they are the same.
        judged: replies to the first of the prompts that no classifier is trained on. They are
            taken for replies of the others.

    Returns:
        A probability for each line, each reply, and each reply that is only judged; the classifier
        is right where it is above 0.5.
    """
    numbers: dict[object, int] = {}
    fold = np.array([numbers.setdefault(p, len(numbers)) % FOLDS for p in prompts])
    kinds = role, others, judged
    right = [np.zeros(len(texts)) for texts in kinds]
    for held in range(FOLDS):
        inside, outside = (np.flatnonzero(x).tolist() for x in (fold == held, fold != held))
        if not inside or not outside:
            continue
        classifier = VoiceClassifier([role[k] for k in outside], [others[k] for k in outside])
        for texts, found in zip(kinds, right, strict=True):
            chosen = [k for k in inside if k < len(texts)]
            probability = classifier.probability([texts[k] for k in chosen])
            found[chosen] = probability if found is right[0] else 1 - probability
    return np.concatenate(right)


def likeness(text: str, reference: str) -> float:
    """ChrF of a reply and its reference, 0 to 100 (Popović, 2015)."""
    return float(CHRF().sentence_score(text, [reference]).score)


def own_openings(texts: Sequence[str]) -> list[bool]:
    """Whether each text begins like no other one."""
    openings = [opening(text) for text in texts]
    counts = Counter(openings)
    return [counts[begin] == 1 for begin in openings]


def repetition(text: str) -> float:
    """The share of a text's word 4-grams that it has had before; of characters in Chinese."""
    units = re.findall(r"[\u2e80-\u9fff]|[^\W\u2e80-\u9fff]+", text.casefold())
    grams = [tuple(units[k : k + 4]) for k in range(len(units) - 3)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def _features(texts: Sequence[str]) -> torch.Tensor:
    """Each text as a vector of length 1: 1 + log of the count of each n-gram, hashed."""
    found_TF = torch.zeros(len(texts), FEATURES)
    for row, text in zip(found_TF, texts, strict=True):
        text = NAME.sub("N", " ".join(text.split()))[:SEEN]
        grams = Counter(
            zlib.crc32(f" {text} "[k : k + n].encode("utf-8", "surrogatepass")) % FEATURES
            for n in LENGTHS
            for k in range(len(text) + 3 - n)
        )
        row[list(grams)] = 1 + torch.tensor([float(c) for c in grams.values()]).log()
    return torch.nn.functional.normalize(found_TF)
