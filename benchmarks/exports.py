"""How long exports take, how large they are, and what their certificates say of a run.

`python benchmarks/exports.py RUN` exports a run in every format, and prints a table.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from machine import describe_machine, now

from offbook.errors import ExportError
from offbook.export.export import export_run
from offbook.files.storage import size_of
from offbook.runs.trained import open_run

EXPORTS = (
    ("adapter", "f32"),
    ("merged", "f32"),
    ("gguf-lora", "f32"),
    *(("gguf", kind) for kind in ("f32", "f16", "bf16", "q8_0")),
    ("ollama", "f16"),
)

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("run", type=Path)
options = parser.parse_args()

run = open_run(options.run, print)
print(describe_machine(torch.float32))
with tempfile.TemporaryDirectory() as temporary:
    for target, kind in EXPORTS:
        folder = Path(temporary, f"{target}-{kind}")
        start = now()
        try:
            export = export_run(run, target, folder, kind=kind)
        except ExportError as error:
            print(f"\n{target} {kind}: {error}")
            continue
        seconds, size = now() - start, size_of(folder) / 1e6
        assert export.certificate is not None
        print(f"\n{target} {kind}: {seconds:.0f} s, {size:.0f} MB, {export.certificate.reader}")
        for check in export.certificate.checks:
            print(f"    {check.name}: {check.found}", flush=True)
