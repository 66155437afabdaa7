"""What a GPU does with offbook: tests, memory and speed, as a report to attach to an issue.

    python benchmarks/gpu_report.py [--out gpu-report] [--rows FILE] [--quick]

Runs the engine's tests and those marked `gpu` on the card, then `train_speed.py` and `replies.py`
on SmolLM2 and on a base of DeepSeek-7B's shape with random weights (15 GB on disk while it runs).
Peers take part where they are installed. `--quick` does a little of it, on any machine. The report
holds the names of the card and the versions, but no path, host or user.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from machine import DEVICE, describe_machine

from offbook.models.base import resolve_base

HERE = Path(__file__).resolve().parent
TESTS = ("tests/engine/ops/test_conformance.py", "tests/engine/test_engine.py", "tests/test_gpu.py")
SHAPES = {"7B": "deepseek-7b"}


def run_tests(quick: bool) -> str:
    """The last lines of pytest's output: failures and counts."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "", "--device", DEVICE.type, "-rf"]
    command += [TESTS[0], "-k", "norm"] if quick else TESTS
    process = subprocess.run(command, cwd=HERE.parent, capture_output=True, text=True)
    lines = process.stdout.splitlines()
    return "\n".join(line for line in lines if re.match(r"FAILED|ERROR|.*\d (passed|failed)", line))


def measure(report: dict[str, object], name: str, base: str, steps: list[str], rounds: str) -> None:
    """Add the tables that other benchmarks print for a base, which is called by `name`."""
    for what, script, arguments in (
        ("speed", "train_speed.py", ["--base", base, "--rounds", "1", *steps]),
        ("replies", "replies.py", [base, "--rounds", rounds]),
    ):
        command = [sys.executable, str(HERE / script), *arguments]
        process = subprocess.run(command, capture_output=True, text=True)
        printed = process.stdout.replace(base, Path(base).name)
        lines = process.stderr.strip().splitlines() or [f"exit code {process.returncode}"]
        report[f"{what}, {name}"] = f"failed: {lines[-1]}" if process.returncode else printed


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", default="gpu-report", help="name of the files, without .md, .json")
    parser.add_argument("--rows", default="lighthouse", help="a file or a sample role")
    parser.add_argument("--quick", action="store_true", help="a little of it, on any machine")
    options = parser.parse_args()
    embedded = resolve_base("smollm2-135m")
    steps = ["--rows", options.rows, "--steps", "1" if options.quick else "8"]
    rounds = "1" if options.quick else "3"
    report: dict[str, object] = {
        "machine": describe_machine(torch.bfloat16),
        "memory": torch.cuda.get_device_properties(DEVICE).total_memory if cuda() else 0,
        "tests": run_tests(options.quick),
    }
    with tempfile.TemporaryDirectory() as folder:
        shapes = {"small": "qwen2-small"} if options.quick else SHAPES
        for name, shape in shapes.items():
            base = Path(folder, name)
            command = [sys.executable, str(HERE / "random_base.py"), str(base)]
            command += ["--tokenizer", str(embedded), "--shape", shape]
            subprocess.run(command + ["--layers", "1"] * options.quick, check=True)
            measure(report, f"{name} shape", str(base), steps, rounds)
    if not options.quick:
        measure(report, "SmolLM2", "smollm2-135m", steps, rounds)
    Path(f"{options.out}.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
    text = "\n\n".join(f"## {name}\n\n{value}" for name, value in report.items())
    Path(f"{options.out}.md").write_text(f"# GPU report\n\n{text}\n", encoding="utf-8")
    print(text)


def cuda() -> bool:
    return DEVICE.type == "cuda"


if __name__ == "__main__":
    main()
