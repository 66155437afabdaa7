"""What went into a run: hashes and versions, so that a result can be traced and repeated."""

from __future__ import annotations

import datetime
import hashlib
import json
import math
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path

from offbook.files.storage import sha256
from offbook.files.untrusted import read_base_tensors
from offbook.models.base import require_weights
from offbook.models.gguf import source_of
from offbook.runs.records import read_record

PACKAGES = ("offbook", "torch", "transformers", "peft", "tokenizers", "safetensors", "numpy")
# A base's weights are hashed in part: this many tensors, this many bytes from the middle of each.
SAMPLED_TENSORS = 64
SAMPLED_BYTES = 2**14


@dataclass(frozen=True)
class Rows:
    """The rows a run was given.

    Attributes:
        training, validation: how many examples there are.
        cut: `file:line` of rows whose prompt was truncated.
        dropped: `file:line`, and which reply, of replies left out because they alone are too long.
    """

    training: int
    validation: int
    cut: list[str]
    dropped: list[str]

    @property
    def counts(self) -> tuple[int, int]:
        """The numbers of examples, on which the order of the data depends."""
        return self.training, self.validation


@dataclass(frozen=True)
class Device:
    """What computed a run. Its last bits can depend on each of these.

    Attributes:
        name: of the GPU, or the architecture of the processor.
        threads: of PyTorch.
        fused_kernels: whether our C++ kernels were compiled; None where an older version did not
            write it.
        processes: that trained together.
    """

    name: str
    threads: int
    fused_kernels: bool | None = None
    processes: int = 1


@dataclass(frozen=True)
class Ancestor:
    """An adapter that a run went on from.

    Attributes:
        name: of its run or folder.
        weights: hash of its file.
        data: hashes of what it was trained on, as in a receipt; empty where that is not known.
    """

    name: str
    weights: str
    data: dict[str, str]


@dataclass(frozen=True)
class Receipt:
    """`receipt.json`. Fields with a default are missing from files of older versions.

    Attributes:
        base: hashes of the base, as `hash_base` gives them.
        chat_template: hash of the template's text.
        data: hash of each data file, by file name, those for training first.
        rows: the rows that were read from them.
        versions: of Python and the packages that compute.
        device: what the run was started on.
        micro_batch_tokens: most tokens of a micro-batch, as planned at the start.
        date: the day that the chat template prints; None where it prints none.
        commits: of what came from the hub, by setting: `{"model.base": "c0ffee..."}`.
        places: of local files, by setting, as paths from the run directory.
        ancestry: the adapters that the run went on from, the first one first.
    """

    base: dict[str, str] = field(default_factory=dict)
    chat_template: str | None = None
    data: dict[str, str] = field(default_factory=dict)
    rows: Rows | None = None
    versions: dict[str, str] = field(default_factory=dict)
    device: Device | None = None
    micro_batch_tokens: int | None = None
    date: datetime.date | None = None
    commits: dict[str, str] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)
    ancestry: list[Ancestor] = field(default_factory=list)

    @classmethod
    def read(cls, file: Path) -> Receipt:
        """The receipt in a file, as `read_record`."""
        return read_record(cls, file, fix="restore it from a copy")

    def to_json(self) -> bytes:
        """The contents of the file."""
        values = asdict(self)
        for name in ("date", "commits", "places", "ancestry"):
            if not values[name]:
                del values[name]
        if self.device and self.device.processes == 1:
            del values["device"]["processes"]
        text = json.dumps(values, indent=2, ensure_ascii=False, default=str)
        return f"{text}\n".encode()

    def missing_date(self, printed: datetime.date | None) -> str | None:
        """What to say when a template prints a date, and an older version did not record it."""
        if printed is None or self.date is not None:
            return None
        return (
            "the chat template prints the date, and the run does not say which one it was trained "
            f"with; {printed} is used, so prompts may differ from those of its training"
        )

    def other_conversion(self, base: dict[str, str]) -> str | None:
        """What to say when an older version converted the base from GGUF in another way."""
        if "gguf" not in base or "tokenizer.json" not in self.base:
            return None
        return (
            "the base was converted from GGUF by an older version when the run was started; rare "
            "text, such as digits that are not ASCII, has other tokens now"
        )

    def differing_parts(self, base: dict[str, str], chat_template: str | None = None) -> list[str]:
        """The parts in which a base is not the one that the run was started with.

        Hashes that the receipt does not have, because an older version wrote it, are not compared.

        Args:
            base: `hash_base` of the base.
            chat_template: `hash_text` of its chat template, where that is known.
        """
        pairs = {part: (self.base.get(part), base[part]) for part in base}
        if chat_template is not None:
            pairs["chat template"] = (self.chat_template, chat_template)
        return [part for part, (old, new) in pairs.items() if old not in (None, new)]

    def has_data(self, now: Receipt) -> bool:
        """Whether another receipt is of the same data; its files may have other names."""
        hashes = list(self.data.values())
        # Version 0.1 has one hash for two files of the same name.
        by_name = {Path(path).name: value for path, value in now.data.items()}
        return hashes in (list(now.data.values()), list(by_name.values()))

    def changes_to_last_bits(self, now: Receipt) -> list[str]:
        """What differs in `now` that can change a resumed run's result in its last bits.

        Each is told as in `threads was 2, is 4`.
        """
        before = self._computed_by()
        return [
            f"{name.replace('_', ' ')} was {before.get(name, 'unknown')}, is {value}"
            for name, value in now._computed_by().items()
            if before.get(name) != value
        ]

    def _computed_by(self) -> dict[str, object]:
        """All that the last bits of a result can depend on, where it is known."""
        device = asdict(self.device) if self.device else {}
        values = {**self.versions, "device": device.pop("name", None), **device}
        values["micro_batch_tokens"] = self.micro_batch_tokens
        return {name: value for name, value in values.items() if value is not None}


def hash_base(base: Path) -> dict[str, str]:
    """Hashes that tell a base from others, as a receipt holds them.

    Those of its config.json and tokenizer.json, and the `fingerprint` of its weights. If it was
    converted from GGUF, that of the GGUF file instead of the first two, which another version of
    offbook may write in another way.
    """
    if source := source_of(base):
        return {"gguf": str(source["sha256"]), "weights": fingerprint(base)}
    files = {name: sha256(base / name) for name in ("config.json", "tokenizer.json")}
    return files | {"weights": fingerprint(base)}


def hash_data(files: Sequence[Path]) -> dict[str, str]:
    """The hash of each data file, by its name, or with its folders where names are equal."""
    hashes: dict[str, str] = {}
    for path in files:
        name = path.name
        for folder in path.parents:
            if name not in hashes:
                break
            name = f"{folder.name}/{name}"
        hashes[name] = sha256(path)
    return hashes


def hash_text(text: str) -> str:
    """The SHA-256 of a text, in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


def installed_versions() -> dict[str, str]:
    """Versions of Python and of the packages that compute."""
    return {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}


def fingerprint(base: Path) -> str:
    """A hash of a base's weights that tells models apart without reading gigabytes.

    It covers the name, type and shape of every tensor and a sample of the bytes, but not how the
    tensors are divided into files. It detects mistakes, not a deliberate change of a few numbers.

    Raises:
        ModelError: when there are no weights, or they cannot be read.
    """
    require_weights(base)
    tensors = sorted(read_base_tensors(base).items())
    digest = hashlib.sha256()
    for name, (_, tensor) in tensors:
        digest.update(f"{name} {tensor.dtype} {tensor.shape}\n".encode())
    for _, (path, tensor) in tensors[:: math.ceil(len(tensors) / SAMPLED_TENSORS) or 1]:
        middle = (tensor.begin + tensor.end - SAMPLED_BYTES) // 2
        begin = max(middle, tensor.begin)
        with path.open("rb") as file:
            file.seek(begin)
            digest.update(file.read(min(SAMPLED_BYTES, tensor.end - begin)))
    return digest.hexdigest()
