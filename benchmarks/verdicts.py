"""Whether runs with a known fault get the verdict that names it, and healthy ones do not.

    python benchmarks/verdicts.py [--seeds 5] [--cases healthy underfitted ...] [--markdown FILE]

Runs of SmolLM2 on the sample role: healthy; with three steps; with 40 epochs on 30 rows; with a
rate 30 times too high; trained without the token that ends a reply; and with an adapter that was
never updated. Each is judged by the same 60 rows, in the short form.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from machine import describe_machine
from safetensors.numpy import load_file, save_file

from offbook.evaluation.evaluate import evaluate
from offbook.evaluation.subject import find_subject
from offbook.models.base import ADAPTER_WEIGHTS
from offbook.monitor import Monitor
from offbook.settings.config import Config
from offbook.tokens.examples import IGNORED, Examples, tokenize
from offbook.training import data
from offbook.training.train import train

EXPECTED = {
    "healthy": "took",
    "underfitted": "did not take",
    "overfitted": "overfitted",
    "forgotten": "forgot",
    "without stop token": "does not stop",
    "inert": "did not take",
}
RATE = 1e-3


@contextmanager
def without_stop_token() -> Iterator[None]:
    """Training examples whose last token, which ends the reply, is not supervised."""

    def tokenize_without(*arguments: Any) -> Examples:
        examples = tokenize(*arguments)
        labels = examples.labels.copy()
        for begin, end in pairwise(examples.offsets):
            labels[begin + np.flatnonzero(labels[begin:end] != IGNORED)[-1]] = IGNORED
        return replace(examples, labels=labels)

    with patch.object(data, "tokenize", tokenize_without):
        yield


def make_run(case: str, seed: int, folder: Path) -> Path:
    """Train a run with a fault."""
    lines = (files("offbook") / "samples" / "lighthouse.jsonl").read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    order = np.random.default_rng(seed).permutation(len(rows))
    held_out, training = order[:60], order[60:]
    if case == "overfitted":
        training = training[:30]
    for name, chosen in (("held-out.jsonl", held_out), ("rows.jsonl", training)):
        text = "\n".join(json.dumps(rows[k]) for k in chosen)
        (folder / name).write_text(text, encoding="utf-8")
    options = {
        "underfitted": ["train.max_steps=3"],
        "overfitted": ["train.num_train_epochs=40"],
        "forgotten": [f"train.learning_rate={30 * RATE}"],
        "inert": ["train.max_steps=1"],
    }
    run = folder / "run"
    config = Config().override(
        f"data.train={folder / 'rows.jsonl'}",
        f"data.validation={folder / 'held-out.jsonl'}",
        f"train.learning_rate={RATE}",
        "train.num_train_epochs=3",
        f"train.seed={seed}",
        f"output_dir={run}",
        *options.get(case, []),
    )
    if case == "without stop token":
        with without_stop_token():
            train(config, monitor=Monitor())
    else:
        train(config, monitor=Monitor())
    if case == "inert":
        tensors = load_file(run / "adapter" / ADAPTER_WEIGHTS)
        zeroed = {k: np.zeros_like(v) if "lora_B" in k else v for k, v in tensors.items()}
        save_file(zeroed, run / "adapter" / ADAPTER_WEIGHTS, {"format": "pt"})
    return run


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--cases", nargs="+", choices=EXPECTED, default=list(EXPECTED))
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    lines = ["| run | expected | verdicts |", "|---|---|---|"]
    for case in options.cases:
        verdicts: Counter[str] = Counter()
        for seed in range(options.seeds):
            with tempfile.TemporaryDirectory() as folder:
                run = make_run(case, seed, Path(folder))
                found, _ = evaluate(find_subject(run, print), short=True)
            verdicts[found.verdict] += 1
            for finding in found.findings:
                print(f"{case}, seed {seed}: {finding.kind}: {finding.because}", flush=True)
        counted = ", ".join(f"{verdict} ({count})" for verdict, count in verdicts.items())
        lines.append(f"| {case} | {EXPECTED[case]} | {counted} |")
    lines.append(f"\n{describe_machine(torch.float32)}")
    print("\n".join(lines))
    if options.markdown:
        options.markdown.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
