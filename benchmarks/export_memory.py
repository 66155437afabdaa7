"""How much memory is needed to write a GGUF, apart from the pages of the base's mapped files.

    python benchmarks/export_memory.py BASE [BASE ...]

Each base is written as f16 in a process of its own; its anonymous memory is read every 10 ms.
Bases with random weights come from `random_base.py`.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import threading
import time
from pathlib import Path

import torch
from machine import describe_machine, now

from offbook.export.gguf import write_model
from offbook.export.weights import BaseWeights
from offbook.tokens.template import ChatTemplate
from offbook.tokens.tokenizer import load_tokenizer


def anonymous_memory() -> int:
    """Bytes of this process that are not pages of files."""
    status = Path("/proc/self/status").read_text()
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if "RssAnon" in line)


def measure(folder: Path) -> None:
    base, template = BaseWeights.of(folder), ChatTemplate(load_tokenizer(folder))
    before = peak = anonymous_memory()
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.is_set():
            peak = max(peak, anonymous_memory())
            time.sleep(0.01)

    thread = threading.Thread(target=watch)
    thread.start()
    with tempfile.TemporaryDirectory() as temporary:
        path, start = Path(temporary, "model.gguf"), now()
        write_model(path, base, None, "f16", template)
        seconds, size = now() - start, path.stat().st_size
    done.set()
    thread.join()
    largest = max(tensor.elements for _, tensor in base.tensors.values())
    print(
        f"{folder.name}: {base.config['num_hidden_layers']} layers, {size / 1e9:.1f} GB written "
        f"in {seconds:.0f} s; peak {peak / 1e9:.2f} GB, {before / 1e9:.2f} of them before; the "
        f"largest tensor has {4 * largest / 1e9:.2f} GB in float32"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bases", type=Path, nargs="+")
    print(describe_machine(torch.float32))
    for folder in parser.parse_args().bases:
        process = multiprocessing.get_context("spawn").Process(target=measure, args=(folder,))
        process.start()
        process.join()
