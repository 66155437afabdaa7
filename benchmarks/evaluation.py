"""What a full evaluation takes, by part: 200 held-out rows of the sample role, 60 training rows.

    python benchmarks/evaluation.py FOLDER

Trains SmolLM2 for two epochs on the training rows in FOLDER, unless that was done before, and
evaluates the run as `offbook eval` does. The peak memory of the first time is that of the training.
"""

from __future__ import annotations

import sys
import time
from importlib.resources import files
from itertools import pairwise
from pathlib import Path

from machine import DEVICE, describe_machine, peak_memory

from offbook.evaluation.evaluate import evaluate
from offbook.evaluation.subject import find_subject
from offbook.models.load import choose_precision
from offbook.monitor import Monitor
from offbook.settings.config import Config
from offbook.training.train import train

TRAINING, HELD_OUT = 60, 200


def make_run(folder: Path) -> Path:
    """A run on some rows of the sample role, validated on others."""
    run = folder / "run"
    if run.exists():
        return run
    folder.mkdir(parents=True, exist_ok=True)
    rows = (files("offbook") / "samples" / "lighthouse.jsonl").read_text("utf-8").splitlines()
    parts = {"rows.jsonl": rows[:TRAINING], "held-out.jsonl": rows[TRAINING:][:HELD_OUT]}
    for name, lines in parts.items():
        (folder / name).write_text("\n".join(lines), encoding="utf-8")
    config = Config().override(
        f"data.train={folder / 'rows.jsonl'}",
        f"data.validation={folder / 'held-out.jsonl'}",
        "train.num_train_epochs=2",
        "train.learning_rate=1e-3",
        f"output_dir={run}",
    )
    train(config, monitor=Monitor())
    return run


def main(folder: Path) -> None:
    subject = find_subject(make_run(folder), print)
    began: list[tuple[str, float]] = []

    def progress(what: str, done: int, total: int) -> None:
        if not began or what != began[-1][0]:
            began.append((what, time.perf_counter()))

    found, _ = evaluate(subject, progress)
    progress("", 0, 0)
    print(f"\n{len(subject.held_out)} held-out and {len(subject.training)} training rows:\n")
    print("| part | seconds |\n|---|--:|")
    for (what, start), (_, end) in pairwise(began):
        print(f"| {what} | {end - start:.1f} |")
    print(f"| all | {found.seconds:.1f} |\n")
    print(f"Peak memory: {peak_memory() / 1e9:.2f} GB.")
    print(describe_machine(choose_precision("auto", DEVICE)))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
