"""GGUF files: checked, and converted to folders with safetensors weights."""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from offbook.errors import ModelError
from offbook.files.cache import cache_folder, cache_folders, temporary_folder
from offbook.files.storage import sha256
from offbook.files.untrusted import read_json, refuse_pointer
from offbook.libraries import LIBRARY_ERRORS, quiet_transformers
from offbook.models.gguf_rope import scaling_from_gguf
from offbook.models.gguf_tokenizer import tokenizer_from_gguf
from offbook.models.skeleton import make_skeleton

GGUF_VERSIONS = (2, 3)
# The code in `struct` of each type of number, little-endian.
GGUF_SCALARS = dict(zip((*range(8), 10, 11, 12), "BbHhIif?Qqd", strict=True))
GGUF_STRING, GGUF_ARRAY = 8, 9
MAX_DIMENSIONS = 8
MAX_PER_BYTE = 8  # weights; the coarsest quantization has 5
GGUF_NAME = "model.gguf"
# The attributes that mark a model as read from GGUF, and their values for a plain model.
PLAIN_WEIGHTS = {"hf_quantizer": None, "is_quantized": False, "quantization_method": None}
SOURCE = "converted_from.json"
CONVERSION = 2  # of the files beside the weights
SAMPLES, SAMPLED_BYTES = 2**14, 2**12  # what tells a file from others: 64 MiB of it


def from_gguf(path: Path, announce: Callable[[str], None]) -> Path:
    """A folder in the cache with the weights of a GGUF file as safetensors, converted once.

    Raises:
        ModelError: when the file cannot be read.
    """
    refuse_pointer(path, ModelError)
    name = f"{path.stem}-{_fingerprint(path)}-{CONVERSION}"
    for cache in cache_folders():
        if (cache / name).is_dir():
            return cache / name
    files, scaling = _describe(path)  # first, since it is quick, and weights may take minutes
    cache = cache_folder()
    folder = cache / name
    announce(
        f"reading {path.name} for the first time (about 20 seconds for 135M parameters), into "
        f"{cache}"
    )
    with temporary_folder(cache, ".converting-") as partial:
        _convert(path, partial)
        config = read_json(partial / "config.json", ModelError)
        files["config.json"] = _to_json(_with_scaling(config, scaling))
        for file, content in files.items():
            (partial / file).write_bytes(content)
        try:
            partial.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process finished first
                raise
    return folder


def source_of(folder: Path) -> dict[str, Any]:
    """Of which GGUF file a folder was converted: `file`, `sha256` and the version of `conversion`.

    Empty for the folder of another base.
    """
    return read_json(folder / SOURCE, ModelError) if (folder / SOURCE).exists() else {}


def _convert(path: Path, folder: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

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


def _describe(path: Path) -> tuple[dict[str, bytes], dict[str, Any]]:
    """The files that do not depend on the weights, and the scaling of rotary frequencies."""
    metadata, tensors = check_gguf(path)
    try:
        files = dict(tokenizer_from_gguf(metadata, str(path)))
        scaling = scaling_from_gguf(path, metadata, tensors)
    except ModelError:
        raise
    except LIBRARY_ERRORS as error:
        raise ModelError(f"not a GGUF that can be read: {error!r}", where=str(path)) from error
    source = {"file": path.name, "sha256": sha256(path), "conversion": CONVERSION}
    return files | {SOURCE: _to_json(source)}, scaling


def _with_scaling(config: dict[str, Any], scaling: dict[str, Any]) -> dict[str, Any]:
    """A configuration with its rotary frequencies as this and older versions of transformers read.

    Before transformers 5 they are looked for in `rope_theta` and `rope_scaling`; where these are
    missing, 10,000 is used, and no scaling.
    """
    rope = config.get("rope_parameters") or {}
    if "rope_theta" not in rope:
        return config
    return config | {
        "rope_parameters": rope | scaling,
        "rope_theta": rope["rope_theta"],
        "rope_scaling": scaling or None,
    }


def _to_json(contents: dict[str, Any]) -> bytes:
    return json.dumps(contents, indent=2).encode()


def _fingerprint(path: Path) -> str:
    """A hash of a file's size and of samples from all of it: 0.1 seconds for 7 GB in memory.

    Files of one base differ where an adapter was merged into it, in most numbers of some matrices.
    Samples are less far apart than a matrix is long: the smallest of Llama 3.1 70B has one part in
    8,400 of the file. A few numbers that were changed by hand may be missed.
    """
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb", buffering=0) as file:
        for begin in range(0, size, max(SAMPLED_BYTES, math.ceil(size / SAMPLES))):
            file.seek(begin)
            digest.update(file.read(SAMPLED_BYTES))
    return digest.hexdigest()[:16]


def check_gguf(path: Path) -> tuple[dict[str, Any], list[str]]:
    """Read the header of a GGUF file, and compare every count and length with the file's size.

    Returns:
        Its keys and their values, of arrays only those that describe the tokenizer; and the names
        of its tensors.

    Raises:
        ModelError: when the file is not GGUF, or a count or length is too large.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _read_header(_Cursor(data))
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

    def numbers(self, code: str, count: int) -> tuple[Any, ...]:
        """Read numbers of the type with this code in `struct`."""
        layout = struct.Struct(f"<{count}{code}")
        return layout.unpack(self.take(layout.size))

    def string(self) -> str:
        return self.take(self.count(1)).decode()


def _read_header(cursor: _Cursor) -> tuple[dict[str, Any], list[str]]:
    if cursor.take(4) != b"GGUF":
        raise ValueError("it does not begin with GGUF")
    version = cursor.integer(4)
    if version not in GGUF_VERSIONS:
        raise ValueError(f"version {version} is not known")
    # The shortest tensor entry has 24 bytes, the shortest key 13.
    tensors, keys = cursor.count(24), cursor.count(13)
    metadata = dict(_read_pair(cursor, tensors) for _ in range(keys))
    ends = dict(_read_tensor(cursor) for _ in range(tensors))
    if max(ends.values(), default=0) > cursor.size - cursor.position:
        raise ValueError("its tensors are larger than the file")
    return metadata, list(ends)


def _read_pair(cursor: _Cursor, tensors: int) -> tuple[str, Any]:
    """A key and its value; None for an array that is not of the tokenizer, which may be long."""
    key, kind = cursor.string(), cursor.integer(4)
    if kind == GGUF_STRING:
        return key, cursor.string()
    if kind != GGUF_ARRAY:
        value = cursor.numbers(GGUF_SCALARS[kind], 1)[0]
        if key.endswith(".block_count") and value > tensors:
            raise ValueError(f"it claims {value:,} layers")
        return key, value
    kind, wanted = cursor.integer(4), key.startswith("tokenizer.ggml.")
    if kind == GGUF_STRING:
        count = cursor.count(8)
        if wanted:
            return key, [cursor.string() for _ in range(count)]
        for _ in range(count):
            cursor.skip(cursor.count(1))
        return key, None
    code = GGUF_SCALARS[kind]  # an array of arrays is a KeyError
    count = cursor.count(struct.calcsize(code))
    if wanted:
        return key, cursor.numbers(code, count)
    cursor.skip(count * struct.calcsize(code))
    return key, None


def _read_tensor(cursor: _Cursor) -> tuple[str, int]:
    """A tensor's name, and the end of its data, in bytes after the beginning of all tensor data."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    name = cursor.string()
    dimensions = cursor.integer(4)
    if dimensions > MAX_DIMENSIONS:
        raise ValueError(f"a tensor of {dimensions:,} dimensions")
    elements = math.prod(cursor.integer() for _ in range(dimensions))
    block, width = GGML_QUANT_SIZES[GGMLQuantizationType(cursor.integer(4))]
    return name, cursor.integer() + elements // block * width
