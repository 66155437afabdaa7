"""Search for input that ends in a traceback, guided by the lines of offbook that it covers.

    pip install atheris
    python tests/fuzz/fuzz.py rows runs/fuzz -max_total_time=300

The targets: `rows`, a byte that selects the file type, then a data file; `scripts`, the same for
the files of `offbook lines`; `settings`, a YAML file; `adapter`, a byte that selects one of an
adapter's files, then its content. The folder collects the inputs that covered something new;
libFuzzer's options follow it. An input that ends in a traceback stops the search and is written to
`crash-*`.
"""

from __future__ import annotations

import contextlib
import copy
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import atheris
import pyarrow as pa
import pyarrow.parquet as pq
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

with atheris.instrument_imports(include=["offbook", "peft"]):
    from offbook.data.conversations import read_conversations
    from offbook.data.personal import Replacer
    from offbook.data.scripts.reading import Play
    from offbook.data.scripts.rows import Cast, Made
    from offbook.errors import OffbookError
    from offbook.models.adapter import attach_adapter, load_adapter
    from offbook.models.load import load_base
    from offbook.settings.config import Config
    from offbook.settings.sections import LoraSettings
    from support.tiny import ROWS, make_base, save_adapter

Target = tuple[Callable[[bytes], object], list[bytes]]  # what is fuzzed, and inputs to start from


def rows(folder: Path) -> Target:
    paths = [folder / f"rows.{suffix}" for suffix in ("json", "jsonl", "csv", "tsv", "parquet")]
    values = [json.loads(line) for line in ROWS.splitlines()]
    paths[0].write_text(json.dumps(values))
    paths[1].write_text(ROWS)
    paths[2].write_text('instruction,input,output\n"who are you",,"I am, ""the"" keeper"\n')
    paths[3].write_text("instruction\tinput\toutput\nwho are you\t\tI am the keeper\n")
    pq.write_table(pa.Table.from_pylist(values), paths[4])

    def read(data: bytes) -> None:
        path = paths[data[0] % len(paths)]
        path.write_bytes(data[1:])
        for _ in read_conversations(str(path)):
            pass

    return read, [bytes([number]) + path.read_bytes() for number, path in enumerate(paths)]


def scripts(folder: Path) -> Target:
    samples = Path(__file__).parents[1] / "data" / "scripts" / "samples"
    seeds = sorted(path for path in samples.rglob("*") if path.is_file())
    paths = [folder / f"script{path.suffix}" for path in seeds]

    def read(data: bytes) -> None:
        path = paths[data[0] % len(paths)]
        path.write_bytes(data[1:])
        play = Play([str(path)])
        for name in list(Cast(line for line, _ in play).lines)[:2]:
            for _ in Made(Replacer()).of(play, [name]):
                pass

    return read, [bytes([number]) + path.read_bytes() for number, path in enumerate(seeds)]


def settings(folder: Path) -> Target:
    path = folder / "role.yaml"

    def load(data: bytes) -> None:
        path.write_bytes(data)
        Config.load(path).to_yaml()

    return load, [Config().to_yaml().encode()]


def adapter(folder: Path) -> Target:
    base = load_base(make_base(folder / "base"), torch.float32, torch.device("cpu"))
    small = LoraSettings(r=1, target_modules=("q_proj",))  # small enough for libFuzzer
    saved = folder / "adapter"
    save_adapter(attach_adapter(copy.deepcopy(base), small, 0, "tiny"), saved)
    contents = {path: path.read_bytes() for path in sorted(saved.iterdir())}

    def load(data: bytes) -> None:
        for path, content in contents.items():
            path.write_bytes(content)
        list(contents)[data[0] % len(contents)].write_bytes(data[1:])
        load_adapter(copy.deepcopy(base), saved)

    return load, [bytes([number]) + content for number, content in enumerate(contents.values())]


def main() -> None:
    make = {"rows": rows, "scripts": scripts, "settings": settings, "adapter": adapter}[
        sys.argv.pop(1)
    ]
    corpus = Path(sys.argv[1])
    corpus.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        act, seeds = make(Path(folder))
        for number, seed in enumerate(seeds):
            (corpus / f"seed-{number}").write_bytes(seed)

        def once(data: bytes) -> None:
            with contextlib.suppress(OffbookError):
                act(data or b"\0")

        atheris.Setup(sys.argv, once)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
