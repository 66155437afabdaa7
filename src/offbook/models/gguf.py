"""GGUF files: checked, and converted to folders with safetensors weights."""

from __future__ import annotations

import hashlib
import math
import mmap
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from offbook.errors import ModelError
from offbook.files.cache import cache_folder, cache_folders, temporary_folder
from offbook.files.untrusted import refuse_pointer
from offbook.libraries import LIBRARY_ERRORS, quiet_transformers
from offbook.models.skeleton import make_skeleton

GGUF_VERSIONS = (2, 3)
# The bytes of each type of number.
GGUF_SCALARS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
GGUF_STRING, GGUF_ARRAY = 8, 9
MAX_DIMENSIONS = 8
MAX_PER_BYTE = 8  # weights; the coarsest quantization has 5
GGUF_NAME = "model.gguf"
# The attributes that mark a model as read from GGUF, and their values for a plain model.
PLAIN_WEIGHTS = {"hf_quantizer": None, "is_quantized": False, "quantization_method": None}


def from_gguf(path: Path, announce: Callable[[str], None]) -> Path:
    """A folder in the cache with the weights of a GGUF file as safetensors, converted once.

    Raises:
        ModelError: when the file cannot be read.
    """
    refuse_pointer(path, ModelError)
    name = f"{path.stem}-{_fingerprint(path)}"
    for cache in cache_folders():
        if (cache / name).is_dir():
            return cache / name
    cache = cache_folder()
    folder = cache / name
    announce(
        f"reading {path.name} for the first time (about 20 seconds for 135M parameters), "
        f"into {cache}"
    )
    with temporary_folder(cache, ".converting-") as partial:
        _convert(path, partial)
        try:
            partial.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process finished first
                raise
    return folder


def _convert(path: Path, folder: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    check_gguf(path)
    with quiet_transformers(), tempfile.TemporaryDirectory(dir=folder) as own_folder:
        # In a folder of its own, or transformers would also read a config.json beside it.
        Path(own_folder, GGUF_NAME).symlink_to(path.resolve())
        source: dict[str, Any] = {
            "pretrained_model_name_or_path": own_folder,
            "gguf_file": GGUF_NAME,
            "trust_remote_code": False,
            "local_files_only": True,
        }
        try:
            described = make_skeleton(AutoConfig.from_pretrained(**source)).num_parameters()
            if described > MAX_PER_BYTE * path.stat().st_size:
                raise ValueError(f"it describes {described:,} weights, more than it can hold")
            tokenizer = AutoTokenizer.from_pretrained(**source)
            # These models were trained in bfloat16. Rounding to it loses far less than the GGUF
            # quantization has already lost.
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                **source, dtype=torch.bfloat16, output_loading_info=True
            )
            model, report = loaded
            if report["missing_keys"]:
                raise ValueError(f"weights are missing, such as {min(report['missing_keys'])}")
        except LIBRARY_ERRORS as error:
            raise ModelError(f"not a GGUF that can be read: {error}", where=str(path)) from error
        # The weights are no longer quantized; without this they would be saved as if they were.
        del model.config.quantization_config
        for name, plain in PLAIN_WEIGHTS.items():
            setattr(model, name, plain)
        model.config._name_or_path = path.stem
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _fingerprint(path: Path) -> str:
    """A hash of a file's size, beginning and end, which takes no time for gigabytes."""
    size, chunk = path.stat().st_size, 2**20
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        digest.update(file.read(chunk))
        file.seek(max(size - chunk, 0))
        digest.update(file.read(chunk))
    return digest.hexdigest()[:16]


def check_gguf(path: Path) -> None:
    """Read the header of a GGUF file, and compare every count and length with the file's size.

    Raises:
        ModelError: when the file is not GGUF, or a count or length is too large.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            _check_header(_Cursor(data))
    except (OSError, ValueError, LookupError) as problem:
        raise ModelError(
            f"not a GGUF that can be read: {problem}", where=str(path), fix="download it again"
        ) from None


class _Cursor:
    """Reads a file from its beginning, and never beyond its end."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.position, self.size = data, 0, len(data)

    def take(self, count: int) -> bytes:
        start = self.position
        self.skip(count)
        return self.data[start : self.position]

    def skip(self, count: int) -> None:
        if count > self.size - self.position:
            raise ValueError(f"{count:,} bytes at {self.position:,} are beyond its end")
        self.position += count

    def integer(self, width: int = 8) -> int:
        return int.from_bytes(self.take(width), "little")

    def count(self, item_bytes: int) -> int:
        """Read the number of items that follow, each of at least `item_bytes`."""
        number = self.integer()
        if number * item_bytes > self.size - self.position:
            raise ValueError(f"a count of {number:,} at {self.position - 8:,} is beyond its end")
        return number

    def string(self) -> str:
        return self.take(self.count(1)).decode()


def _check_header(cursor: _Cursor) -> None:
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
    if max(ends, default=0) > cursor.size - cursor.position:
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
    """The end of a tensor's data, in bytes after the beginning of all tensor data."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    cursor.string()
    dimensions = cursor.integer(4)
    if dimensions > MAX_DIMENSIONS:
        raise ValueError(f"a tensor of {dimensions:,} dimensions")
    elements = math.prod(cursor.integer() for _ in range(dimensions))
    block, width = GGML_QUANT_SIZES[GGMLQuantizationType(cursor.integer(4))]
    return cursor.integer() + elements // block * width
