"""What several processes bring on one machine, each with one thread: speed, and the difference.

    python benchmarks/processes.py --counts 1 2 --steps 5

The included model is trained on the sample role in float32. Other programs on the machine change
the speed; processor seconds, which are those of all processes, less so.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

import torch
from safetensors.torch import load_file


def train(count: int, steps: int, folder: Path) -> tuple[float, float, torch.Tensor]:
    """Examples per second of the median step, processor seconds, and the adapter."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [
            *(sys.executable, "-m", "offbook", "train", "model.precision=float32", "--no-eval"),
            *(f"train.max_steps={steps}", "train.logging_steps=1", "data.validation=0"),
            *(f"output_dir={folder}", "--nproc", str(count)),
        ],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=True,
        capture_output=True,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    speeds = [line["examples_per_second"] for line in lines if "examples_per_second" in line]
    adapter = load_file(folder / "adapter" / "adapter_model.safetensors")
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    weights = torch.cat([adapter[name].flatten() for name in sorted(adapter)])
    return median(speeds), seconds, weights


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--steps", type=int, default=5)
    options = parser.parse_args()
    print("| processes | examples/s | times as fast | processor seconds | largest difference |")
    print("|--:|--:|--:|--:|--:|")
    first: tuple[float, torch.Tensor] | None = None
    with tempfile.TemporaryDirectory() as folder:
        for count in options.counts:
            speed, seconds, adapter = train(count, options.steps, Path(folder) / str(count))
            first = first or (speed, adapter)
            difference = (adapter - first[1]).abs().max().item()
            ratio = speed / first[0]
            print(f"| {count} | {speed:.2f} | {ratio:.2f} | {seconds:.0f} | {difference:.1g} |")


if __name__ == "__main__":
    main()
