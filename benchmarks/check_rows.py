"""How long `offbook check` takes on many rows, and how much memory.

    python benchmarks/check_rows.py [--rows 1000000]

The rows are made of random words of a sample. Of a hundred, one repeats an earlier row, one nearly
does, and one has personal data. The command runs in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
from importlib.resources import files
from pathlib import Path


def write_rows(file: Path, count: int) -> None:
    """Rows of 22 random words each, some of them with a fault."""
    draw = random.Random(0)
    text = (files("offbook") / "samples" / "general-en.jsonl").read_text(encoding="utf-8")
    words = re.findall(r"\b[a-z]+\b", text)  # as often as in English
    pairs: list[tuple[str, str]] = []  # some earlier rows
    with file.open("w") as out:
        for k in range(count):
            said = f"{' '.join(draw.choices(words, k=6))}?"
            answer = f"{' '.join(draw.choices(words, k=16))}."
            if k % 100 == 1:
                said, answer = draw.choice(pairs)
            elif k % 100 == 2:
                said, answer = draw.choice(pairs)
                answer = f"{answer[:-1]} {draw.choice(words)}."
            elif k % 100 == 3:
                answer += f" Call +44 20 7946 {draw.randrange(10_000):04}."
            elif k % 100 == 0:
                pairs.append((said, answer))
            out.write(json.dumps({"instruction": said, "output": answer}) + "\n")


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--rows", type=int, default=1_000_000)
arguments = parser.parse_args()

with tempfile.TemporaryDirectory() as folder:
    file = Path(folder) / "rows.jsonl"
    write_rows(file, arguments.rows)
    start = time.perf_counter()
    command = [sys.executable, "-m", "offbook", "check", str(file), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds = time.perf_counter() - start

used = resource.getrusage(resource.RUSAGE_CHILDREN)
result = json.loads(done.stdout)
print(f"{platform.machine()}, Python {platform.python_version()}, {os.cpu_count()} processors")
print(f"{result['rows']:,} rows of {result['mean']:.0f} tokens in {seconds:.0f} s; ", end="")
print(f"{used.ru_utime + used.ru_stime:.0f} s of processor time")
print(f"peak memory {used.ru_maxrss / 2**20:.2f} GiB")
for finding in result["findings"]:
    print(f"{finding['severity']}: {finding['what']}: {finding['count']:,}")
