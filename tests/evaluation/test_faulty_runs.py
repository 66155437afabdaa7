"""Runs with a known fault get the verdict that names it, and a healthy run none of them.

Here on a tiny random model, which has nothing to forget. `benchmarks/verdicts.py` does the same
with SmolLM2, in more time, and with a run that forgets. OFFBOOK_TEST_SEEDS says how many runs of
each kind there are.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from offbook.evaluation.evaluate import evaluate
from offbook.evaluation.record import Evaluation
from offbook.evaluation.subject import find_subject
from offbook.models.base import ADAPTER_WEIGHTS
from offbook.settings.config import Config
from offbook.tokens.examples import IGNORED, Examples, tokenize
from offbook.training import data
from offbook.training.train import train

SEEDS = range(int(os.environ.get("OFFBOOK_TEST_SEEDS", "1")))
WORDS = ("rain", "bread", "letter", "window")
HEALTHY = ("train.max_steps=24", "train.learning_rate=0.01", "train.batch_size=8")
Evaluate = Callable[..., Evaluation]


def write_rows(file: Path, numbers: range, line: Callable[[int], str]) -> Path:
    rows = [{"instruction": f"number {n}?", "output": line(n)} for n in numbers]
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return file


@pytest.fixture
def judge(tiny_config: Callable[..., Config], tmp_path: Path) -> Evaluate:
    """Trains a run and evaluates it in short; `spoil` may change its adapter in between."""

    def judged(
        *settings: str,
        seed: int = 0,
        line: Callable[[int], str] = lambda n: f"aye, the {WORDS[n % len(WORDS)]} is lit",
        spoil: Callable[[Path], None] = lambda adapter: None,
    ) -> Evaluation:
        config = tiny_config(
            f"data.train={write_rows(tmp_path / 'rows.jsonl', range(30), line)}",
            f"data.validation={write_rows(tmp_path / 'held.jsonl', range(30, 54), line)}",
            f"train.seed={seed}",
            *HEALTHY,
            *settings,
        )
        run = train(config, overwrite=True).run
        spoil(run / "adapter")
        found, _ = evaluate(find_subject(run, lambda text: None), short=True)
        return found

    return judged


@pytest.mark.parametrize("seed", SEEDS)
def test_healthy(judge: Evaluate, seed: int) -> None:
    assert [finding.kind for finding in judge(seed=seed).findings] == ["took"]


@pytest.mark.parametrize("seed", SEEDS)
def test_underfitted(judge: Evaluate, seed: int) -> None:
    (found,) = judge("train.max_steps=3", "train.learning_rate=0.001", seed=seed).findings
    assert (found.kind, "updates are too few" in found.advice) == ("did not take", True)


@pytest.mark.parametrize("seed", SEEDS)
def test_overfitted(judge: Evaluate, seed: int) -> None:
    """Lines of which most can only be learned by heart, 40 times over."""

    def line(number: int) -> str:
        return f"aye {number} {number * number}"

    found = judge("train.max_steps=null", "train.num_train_epochs=40", seed=seed, line=line)
    assert found.verdict == "overfitted"


@pytest.mark.parametrize("seed", SEEDS)
def test_without_the_token_that_ends_a_reply(
    judge: Evaluate, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tokenize_without(*arguments: Any) -> Examples:
        examples = tokenize(*arguments)
        labels = examples.labels.copy()
        for begin, end in pairwise(examples.offsets):
            labels[begin + np.flatnonzero(labels[begin:end] != IGNORED)[-1]] = IGNORED
        return replace(examples, labels=labels)

    with monkeypatch.context() as patch:
        patch.setattr(data, "tokenize", tokenize_without)
        found = judge(seed=seed)
    assert found.verdict == "does not stop"


@pytest.mark.parametrize("seed", SEEDS)
def test_inert(judge: Evaluate, seed: int) -> None:
    def reset(adapter: Path) -> None:
        tensors = load_file(adapter / ADAPTER_WEIGHTS)
        zero = {k: np.zeros_like(v) if "lora_B" in k else v for k, v in tensors.items()}
        save_file(zero, adapter / ADAPTER_WEIGHTS, {"format": "pt"})

    (found,) = judge("train.max_steps=1", seed=seed, spoil=reset).findings
    assert (found.kind, "inert" in found.because) == ("did not take", True)
