"""What rounding to bfloat16 costs at the beginning of training, in the loss of each step.

    python benchmarks/rounding.py [--rows FILE] [--base smollm2-135m] [--steps 8]

The same steps of 16 rows, without dropout: in float32 and in bfloat16 with transformers' and PEFT's
layers, and in bfloat16 with offbook's. B is zero at first, so an adapter's first outputs are small
beside its base's. PEFT adds the two in bfloat16, whose steps are coarser than what is added.
"""

from __future__ import annotations

import argparse
from statistics import mean

from contestants import STEP, Job, steps
from machine import describe_machine
from train_speed import build_rows

from offbook.models.base import resolve_base

PATHS = {
    "float32, transformers and PEFT": (False, "float32"),
    "bfloat16, transformers and PEFT": (False, "bfloat16"),
    "bfloat16, offbook": (True, "bfloat16"),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", default="lighthouse", help="a file or a sample role")
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--steps", type=int, default=8)
    options = parser.parse_args()

    folder = resolve_base(options.base)
    rows = build_rows(options.rows, folder, STEP * options.steps, 0)
    print(f"| | {' | '.join(str(k + 1) for k in range(options.steps))} | mean |")
    print(f"|---|{'--:|' * (options.steps + 1)}")
    for name, (fast, precision) in PATHS.items():
        job = Job(str(folder), rows, 0.0, precision, "native", scratch="")
        losses = [loss for _, loss in steps(job, fast=fast)]
        print(f"| {name} | {' | '.join(f'{x:.3f}' for x in losses)} | {mean(losses):.3f} |")
    print(f"\n{describe_machine(job.dtype)}.")


if __name__ == "__main__":
    main()
