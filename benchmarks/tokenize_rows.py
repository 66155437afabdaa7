"""How fast rows become examples, against the tokenizer alone, and how much memory they take.

    python benchmarks/tokenize_rows.py [--rows 1000000] [--base smollm2-135m]

Prints rows a second, the share of the time spent inside the tokenizer, and peak memory.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import tempfile
import time
from pathlib import Path

from offbook.data.conversations import read_conversations
from offbook.models.base import resolve_base
from offbook.tokens.encoding import TextEncoder
from offbook.tokens.examples import tokenize
from offbook.tokens.template import ChatTemplate
from offbook.tokens.tokenizer import load_tokenizer


class Timed(TextEncoder):
    """An encoder that adds up the time spent in the tokenizer."""

    seconds = 0.0

    def encode(self, texts: list[str]) -> list[list[int]]:
        start = time.perf_counter()
        ids = super().encode(texts)
        self.seconds += time.perf_counter() - start
        return ids


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--rows", type=int, default=1_000_000)
parser.add_argument("--base", default="smollm2-135m")
arguments = parser.parse_args()

with tempfile.TemporaryDirectory() as folder:
    file = Path(folder) / "rows.jsonl"
    with file.open("w") as out:
        for k in range(arguments.rows):
            row = {"instruction": f"What is number {k}?", "output": f"Aye, little boat, it is {k}."}
            out.write(json.dumps(row) + "\n")
    template = ChatTemplate(load_tokenizer(resolve_base(arguments.base)))
    template.encoder = timed = Timed(template.tokenizer)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    examples = tokenize(read_conversations(str(file)), template)
    total = time.perf_counter() - start

peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(f"{platform.machine()}, Python {platform.python_version()}")
print(f"{len(examples):,} rows, {examples.lengths.mean():.0f} tokens each, in {total:.0f} s")
share = timed.seconds / total
print(f"{len(examples) / total:,.0f} rows/s; {share:.0%} of the time in the tokenizer")
print(f"peak memory {peak / 2**20:.2f} GiB, of which {before / 2**20:.2f} GiB before the first row")
