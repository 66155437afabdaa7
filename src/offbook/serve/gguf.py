"""A base as GGUF, converted once and kept in the cache."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from offbook.errors import CheckpointError, quoted
from offbook.export.gguf import write_lora, write_model
from offbook.export.weights import BaseWeights, LoraWeights
from offbook.files.cache import cache_folder, cache_folders, temporary_folder
from offbook.files.storage import sha256
from offbook.files.untrusted import read_base_tensors
from offbook.inference.model import FoundModel
from offbook.runs.receipt import hash_base, hash_text

CONVERSION = 1  # raise it when `export/gguf.py` writes another file
PARTIAL = ".serving-"


def base_gguf(found: FoundModel, kind: str, announce: Callable[[str], None]) -> Path:
    """The GGUF of a base in the cache.

    Args:
        found: a model on this base. Its tokenizer is in the file.
        kind: the number format of its matrices, a key of `gguf.TYPES`.
        announce: receives a line before it is converted.

    Raises:
        ModelError: when llama.cpp does not compute this type of model.
    """
    name = f"{found.base.name[:40]}-{_hash(found)}-{kind}.gguf"
    for cache in cache_folders():
        if (cache / name).is_file():
            return cache / name
    base, cache = BaseWeights.of(found.base), cache_folder()
    announce(f"converting the base for llama.cpp ({kind}), into {cache}")
    with temporary_folder(cache, PARTIAL) as folder:
        write_model(folder / name, base, None, kind, found.template)
        return (folder / name).replace(cache / name)


def adapter_gguf(found: FoundModel, path: Path) -> None:
    """Write the GGUF of a model's adapter.

    Raises:
        CheckpointError: when it is a DoRA adapter, or does not fit the base.
    """
    assert found.adapter is not None
    lora = LoraWeights.of(found.adapter, found.base)
    if lora.dora:
        raise CheckpointError(
            "llama.cpp has no DoRA adapters",
            where=str(found.path),
            fix=f"export it as a whole model: `offbook export {quoted(found.path)} --to gguf`",
        )
    write_lora(path, BaseWeights.of(found.base), lora)


def _hash(found: FoundModel) -> str:
    """Of all in the file that is used: not of the chat template, which may have today's date in it.

    Weights that were written again are converted again.
    """
    template = found.template
    weights = {path for path, _ in read_base_tensors(found.base).values()}
    parts = [
        CONVERSION,
        hash_base(found.base),
        sha256(found.base / "config.json"),
        template.tokenizer.backend_tokenizer.to_str(),
        template.tokenizer.special_tokens_map,
        template.encoder.control,
        template.stop_id,
        sorted((path.name, path.stat().st_mtime_ns) for path in weights),
    ]
    return hash_text(json.dumps(parts, sort_keys=True))[:16]
