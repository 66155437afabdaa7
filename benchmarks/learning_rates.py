"""What a learning rate teaches a small model in a few rows: `python benchmarks/learning_rates.py`.

For each rate, SmolLM2-135M is trained on 60 rows of the sample role with the default settings
(12 steps), without warm-up, and validated on 40 other rows.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from importlib.resources import files
from pathlib import Path

from offbook.settings.config import Config
from offbook.training.train import train

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("rates", nargs="*", type=float, default=[6.6e-4, 1.32e-3, 2.64e-3])
parser.add_argument("--precision", default="bfloat16", choices=["bfloat16", "float32"])
options = parser.parse_args()

rows = (files("offbook") / "samples" / "lighthouse.jsonl").read_text("utf-8").splitlines()
random.Random(1).shuffle(rows)
print("| learning rate | loss before | loss after |\n|--:|--:|--:|")
with tempfile.TemporaryDirectory() as temporary:
    folder = Path(temporary)
    (folder / "train.jsonl").write_text("\n".join(rows[:60]), encoding="utf-8")
    (folder / "validation.jsonl").write_text("\n".join(rows[60:100]), encoding="utf-8")
    for rate in options.rates:
        settings = (
            f"data.train={folder / 'train.jsonl'}",
            f"data.validation={folder / 'validation.jsonl'}",
            f"model.precision={options.precision}",
            f"train.learning_rate={rate}",
            "train.warmup_ratio=0",
            "train.eval_steps=100",
            f"output_dir={folder / 'run'}",
        )
        result = train(Config.load(None, settings), overwrite=True)
        print(f"| {rate:g} | {result.eval_loss_before:.3f} | {result.eval_loss:.3f} |", flush=True)
