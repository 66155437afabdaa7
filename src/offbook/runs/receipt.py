"""What went into a run: hashes and versions, so that a result can be traced and repeated."""

from __future__ import annotations

import hashlib
import math
import platform
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from offbook.errors import CheckpointError
from offbook.files.storage import sha256
from offbook.files.untrusted import read_base_tensors
from offbook.tokens.examples import Examples

PACKAGES = ("offbook", "torch", "transformers", "peft", "tokenizers", "safetensors", "numpy")
# What of a base's weights is hashed: so many tensors, so many bytes from the middle of each.
SAMPLED_TENSORS = 64
SAMPLED_BYTES = 2**14


def make_receipt(
    base: Path,
    chat_template: str,
    data: Iterable[Path],
    training: Examples,
    validation: Examples,
    device: torch.device,
    fused_kernels: bool,
    micro_batch_tokens: int,
) -> dict[str, Any]:
    """The contents of `receipt.json`."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return describe_base(base, chat_template) | {
        "data": {path.name: sha256(path) for path in data},
        "rows": {
            "training": len(training),
            "validation": len(validation),
            "cut": list(training.truncated),
            "dropped": list(training.dropped),
        },
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in PACKAGES},
        "device": {
            "name": gpu or platform.machine(),
            "threads": torch.get_num_threads(),
            "fused_kernels": fused_kernels,
        },
        "micro_batch_tokens": micro_batch_tokens,
    }


def describe_base(base: Path, chat_template: str) -> dict[str, Any]:
    """What an adapter belongs to, as `receipt.json` holds it."""
    files = {name: sha256(base / name) for name in ("config.json", "tokenizer.json")}
    return {
        "base": files | {"weights": fingerprint(base)},
        "chat_template": hashlib.sha256(chat_template.encode()).hexdigest(),
    }


def require_same_base(begun: dict[str, Any], now: dict[str, Any], run: Path) -> None:
    """Refuse a base on which the adapter of a run would answer wrongly.

    Args:
        begun: the run's receipt; what an older release did not write is not compared.
        now: the receipt, or `describe_base`, of the base in hand.
        run: the run's directory.

    Raises:
        CheckpointError: naming the parts that differ.
    """
    parts = {"chat template": (begun.get("chat_template"), now["chat_template"])}
    parts |= {part: (begun.get("base", {}).get(part), now["base"][part]) for part in now["base"]}
    changed = [part for part, (old, new) in parts.items() if old not in (None, new)]
    if changed:
        raise CheckpointError(
            f"the base is not the one the run was begun with: another {', another '.join(changed)}",
            where=str(run),
            fix="restore it, set model.revision in the run's config.yaml to the commit it was "
            "begun with, or train anew with --overwrite",
        )


def fingerprint(base: Path) -> str:
    """A hash of a base's weights that tells models apart without reading gigabytes.

    It covers name, type and shape of every tensor, and some bytes of some; not how the tensors are
    spread over files. It is made against mistakes, not against someone who changes a few numbers.
    """
    tensors = sorted(read_base_tensors(base).items())
    digest = hashlib.sha256()
    for name, (_, tensor) in tensors:
        digest.update(f"{name} {tensor.dtype} {tensor.shape}\n".encode())
    for _, (path, tensor) in tensors[:: math.ceil(len(tensors) / SAMPLED_TENSORS)]:
        middle = (tensor.begin + tensor.end - SAMPLED_BYTES) // 2
        begin = max(middle, tensor.begin)
        with path.open("rb") as file:
            file.seek(begin)
            digest.update(file.read(min(SAMPLED_BYTES, tensor.end - begin)))
    return digest.hexdigest()
