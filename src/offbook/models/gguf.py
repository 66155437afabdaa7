"""GGUF files: are they what they claim to be, and as folders with safetensors weights."""

from __future__ import annotations

import hashlib
import math
import mmap
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from offbook.errors import ModelError
from offbook.files.cache import cache_folder
from offbook.libraries import LIBRARY_ERRORS, quiet_transformers

GGUF_VERSIONS = (2, 3)


# The bytes of each type of number.
GGUF_SCALARS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}


GGUF_STRING, GGUF_ARRAY = 8, 9


GGUF_MOST_DIMENSIONS = 8


def check_gguf(path: Path) -> None:
    """Walk through the header of a GGUF file, and prove every count and length in it.

    Raises:
        ModelError: when something in it is larger than the file.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            _walk(_Cursor(data))
    except (OSError, ValueError, LookupError) as problem:
        raise ModelError(
            f"not a GGUF that can be read: {problem}", where=str(path), fix="fetch it anew"
        ) from None


class _Cursor:
    """A place in a file; nothing beyond its end is ever asked for."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.at, self.size = data, 0, len(data)

    def take(self, count: int) -> bytes:
        start = self.at
        self.skip(count)
        return self.data[start : self.at]

    def skip(self, count: int) -> None:
        if count > self.size - self.at:
            raise ValueError(f"{count:,} bytes at {self.at:,} are beyond its end")
        self.at += count

    def integer(self, width: int = 8) -> int:
        return int.from_bytes(self.take(width), "little")

    def count(self, least: int) -> int:
        """A number of things that take `least` bytes each."""
        number = self.integer()
        if number * least > self.size - self.at:
            raise ValueError(f"a count of {number:,} at {self.at - 8:,} is beyond its end")
        return number

    def string(self) -> str:
        return self.take(self.count(1)).decode()


def _walk(cursor: _Cursor) -> None:
    if cursor.take(4) != b"GGUF":
        raise ValueError("it does not begin with GGUF")
    version = cursor.integer(4)
    if version not in GGUF_VERSIONS:
        raise ValueError(f"version {version} is not known")
    # The shortest tensor entry has 24 bytes, the shortest key 13.
    tensors, keys = cursor.count(24), cursor.count(13)
    for _ in range(keys):
        _check_value(cursor, tensors)
    ends = [_tensor_end(cursor) for _ in range(tensors)]
    if max(ends, default=0) > cursor.size - cursor.at:
        raise ValueError("its tensors are larger than the file")


def _check_value(cursor: _Cursor, tensors: int) -> None:
    key, kind = cursor.string(), cursor.integer(4)
    if kind == GGUF_STRING:
        cursor.skip(cursor.count(1))
    elif kind == GGUF_ARRAY:
        kind = cursor.integer(4)
        if kind == GGUF_STRING:
            for _ in range(cursor.count(8)):
                cursor.skip(cursor.count(1))
        else:  # an array of arrays is a KeyError
            cursor.skip(cursor.count(GGUF_SCALARS[kind]) * GGUF_SCALARS[kind])
    else:
        value = cursor.integer(GGUF_SCALARS[kind])
        if key.endswith(".block_count") and value > tensors:
            raise ValueError(f"it claims {value:,} layers")


def _tensor_end(cursor: _Cursor) -> int:
    """Where a tensor's data end, counted from where all data begin."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    cursor.string()
    dimensions = cursor.integer(4)
    if dimensions > GGUF_MOST_DIMENSIONS:
        raise ValueError(f"a tensor of {dimensions:,} dimensions")
    elements = math.prod(cursor.integer() for _ in range(dimensions))
    block, width = GGML_QUANT_SIZES[GGMLQuantizationType(cursor.integer(4))]
    return cursor.integer() + elements // block * width


# What transformers remembers of a model read from GGUF, and what it holds for a plain one.
PLAIN_WEIGHTS = {"hf_quantizer": None, "is_quantized": False, "quantization_method": None}


GGUF_NAME = "model.gguf"


MOST_PER_BYTE = 8  # weights; the coarsest quantization has 5


def from_gguf(path: Path, announce: Callable[[str], None]) -> Path:
    """Convert once to a safetensors folder in the cache; later calls find it there."""
    folder = cache_folder() / f"{path.stem}-{_fingerprint(path)}"
    if folder.is_dir():
        return folder
    announce(f"reading {path.name} for the first time (about 20 seconds for 135M parameters)")
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=".converting-", dir=folder.parent))
    try:
        _convert(path, partial)
        partial.rename(folder)
    except OSError:
        if not folder.is_dir():  # else another process finished first
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _convert(path: Path, folder: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    check_gguf(path)
    with quiet_transformers(), tempfile.TemporaryDirectory(dir=folder.parent) as alone:
        # By itself, so that nothing is read of what lies beside it, such as a config.json.
        Path(alone, GGUF_NAME).symlink_to(path.resolve())
        source: dict[str, Any] = {
            "pretrained_model_name_or_path": alone,
            "gguf_file": GGUF_NAME,
            "trust_remote_code": False,
            "local_files_only": True,
        }
        try:
            with torch.device("meta"):
                config = AutoConfig.from_pretrained(**source)
                described = AutoModelForCausalLM.from_config(config).num_parameters()
            if described > MOST_PER_BYTE * path.stat().st_size:
                raise ValueError(f"it describes {described:,} weights, more than it can hold")
            tokenizer = AutoTokenizer.from_pretrained(**source)
            # bfloat16 is the format these models were trained in; rounding to it is far below
            # what the GGUF quantization has already lost.
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                **source, dtype=torch.bfloat16, output_loading_info=True
            )
            model, report = loaded
            if report["missing_keys"]:
                raise ValueError(f"weights are missing, such as {min(report['missing_keys'])}")
        except LIBRARY_ERRORS as error:
            raise ModelError(f"not a GGUF that can be read: {error}", where=str(path)) from error
        # The weights are plain now; without this they would be saved as still quantized.
        del model.config.quantization_config
        for name, plain in PLAIN_WEIGHTS.items():
            setattr(model, name, plain)
        model.config._name_or_path = path.stem
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _fingerprint(path: Path) -> str:
    """Tells GGUF files apart without reading gigabytes: size, head and tail."""
    size, chunk = path.stat().st_size, 2**20
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        digest.update(file.read(chunk))
        file.seek(max(size - chunk, 0))
        digest.update(file.read(chunk))
    return digest.hexdigest()[:16]
