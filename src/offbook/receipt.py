"""What went into a run: hashes and versions, so that a result can be traced and repeated."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from offbook.examples import Examples
from offbook.storage import sha256

PACKAGES = ("offbook", "torch", "transformers", "peft", "tokenizers", "safetensors", "numpy")


def make_receipt(
    base: Path,
    chat_template: str,
    data: Iterable[Path],
    training: Examples,
    validation: Examples,
    device: torch.device,
    micro_batch_tokens: int,
) -> dict[str, Any]:
    """The contents of `receipt.json`."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "base": {name: sha256(base / name) for name in ("config.json", "tokenizer.json")},
        "chat_template": hashlib.sha256(chat_template.encode()).hexdigest(),
        "data": {path.name: sha256(path) for path in data},
        "rows": {
            "training": len(training),
            "validation": len(validation),
            "cut": list(training.cut),
            "dropped": list(training.dropped),
        },
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in PACKAGES},
        "device": {"name": gpu or platform.machine(), "threads": torch.get_num_threads()},
        "micro_batch_tokens": micro_batch_tokens,
    }
