"""What general rows, mixed in, keep and cost: `python benchmarks/mixing.py`.

SmolLM2-135M learns the demo role with and without `data.mix` at a share of 0.2, once for each seed.
Printed are the losses on held-out rows of the role, and on general questions and answers that were
not mixed in, in nats per token: of the base, and how they change. With `--quick`, one seed and 8
steps show that it runs.
"""

from __future__ import annotations

import argparse
import tempfile
from importlib.resources import files
from pathlib import Path

import numpy as np

from offbook.engine.engine import Engine
from offbook.evaluation.general import read_general
from offbook.evaluation.losses import Meter
from offbook.runs.trained import open_run
from offbook.settings.config import Config
from offbook.training.train import train

MIX = "data.mix={data: general, share: 0.2}"

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--seeds", type=int, default=3)
parser.add_argument("--quick", action="store_true")
options = parser.parse_args()
seeds = range(1 if options.quick else options.seeds)

recipe = files("offbook") / "samples" / "smollm2-demo.yaml"
print("| seed | mix | steps | role | change | general | change |\n|--:|---|--:|--:|--:|--:|--:|")
changes: dict[bool, list[tuple[float, float]]] = {False: [], True: []}
with tempfile.TemporaryDirectory() as temporary:
    for seed in seeds:
        for mixed in (False, True):
            run = Path(temporary) / f"{seed}-{mixed}"
            settings = [f"train.seed={seed}", f"output_dir={run}", "train.keep_best=false"]
            settings += [MIX] * mixed + ["train.max_steps=8"] * options.quick
            result = train(Config.load(str(recipe), settings))
            assert result.eval_loss_before is not None
            assert result.eval_loss is not None
            opened = open_run(run)
            examples = [row.example for row in read_general(opened.template)]
            scores = Meter(Engine(opened.load_model()), examples).measure()
            tokens = scores.tokens.sum()
            before, after = scores.base.sum() / tokens, scores.tuned.sum() / tokens
            gain = result.eval_loss - result.eval_loss_before
            changes[mixed].append((gain, after - before))
            print(
                f"| {seed} | {'0.2' if mixed else 'none'} | {result.steps} "
                f"| {result.eval_loss_before:.3f} | {gain:+.3f} "
                f"| {before:.3f} | {after - before:+.3f} |",
                flush=True,
            )
plain, mixing = (np.array(changes[mixed]).mean(axis=0) for mixed in (False, True))
print(f"\nof the gain on the role, {mixing[0] / plain[0]:.2f} is left with general rows mixed in;")
print(f"the loss on general rows changes by {mixing[1]:+.3f} instead of {plain[1]:+.3f}")
