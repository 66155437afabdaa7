"""Checks on downloaded files before a library opens them: is each file what it claims to be?

Bases, tokenizers and adapters are downloaded from strangers. The formats used here hold no code,
but a file may have the wrong format, name files outside its folder, or claim sizes that no machine
has. These checks read headers only, so they take milliseconds for a model of any size.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open

from offbook.errors import ModelError, OffbookError

WHOLE = "model.safetensors"  # all weights of a base in one file
INDEX = "model.safetensors.index.json"
MOST_JSON = 2**27  # bytes; the largest tokenizers are a quarter of that
MOST_HEADER = 100_000_000  # bytes; the format's own limit
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
PICKLED = {b"\x80": "a pickle", b"PK": "a zip archive, as pickled weights are"}


class Tensor(NamedTuple):
    """A tensor in a safetensors file: its dtype, shape, and position in the file, [begin, end)."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def elements(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)


def read_json(path: Path, error: type[OffbookError]) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        OffbookError: of the class `error`, when it is too large, too deeply nested, or no object.
    """
    require_inside(path, error)
    refuse_pointer(path, error)
    try:
        size = path.stat().st_size
        if size > MOST_JSON:
            raise ValueError(f"{size:,} bytes are too many")
        contents = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(contents, dict):
            raise ValueError("it is not a JSON object")
    except (OSError, ValueError, RecursionError, MemoryError) as problem:
        reason = "it is nested too deeply" if isinstance(problem, RecursionError) else problem
        raise error(f"cannot be read: {reason}", where=str(path), fix="download it again") from None
    return contents


def require_inside(path: Path, error: type[OffbookError]) -> None:
    """Refuse a file that is not a regular file in its own folder, after following links.

    The hub's cache is a folder of links into its `blobs` folder; these are allowed.

    Raises:
        OffbookError: of the class `error`, when it is elsewhere or not a regular file.
    """
    folder, real = path.parent.resolve(), path.resolve()
    homes = [folder]
    if folder.parent.name == "snapshots":
        homes.append(folder.parent.parent / "blobs")
    if not any(home in real.parents for home in homes):
        raise error(
            f"links to {real}, outside its folder",
            where=str(path),
            fix="replace the link with the file",
        )
    if not real.is_file():
        raise error("not a regular file", where=str(path), fix="download it again")


def refuse_pointer(path: Path, error: type[OffbookError]) -> None:
    """Refuse a Git LFS pointer: a few lines of text that stand for a large file.

    Raises:
        OffbookError: of the class `error`, also when the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            start = file.read(len(LFS_POINTER))
    except OSError as problem:
        raise error(f"cannot be read ({problem.strerror})", where=str(path)) from None
    if start == LFS_POINTER:
        raise error(
            "a Git LFS pointer, not the file that it stands for",
            where=str(path),
            fix=f"run `git lfs pull` in {path.parent}, or download the file again",
        )


def read_tensors(path: Path, error: type[OffbookError]) -> dict[str, Tensor]:
    """The tensors of a safetensors file, from its header alone.

    Raises:
        OffbookError: of the class `error`, when it has another format or is damaged.
    """
    require_inside(path, error)
    refuse_pointer(path, error)
    with path.open("rb") as file:
        head = file.read(8)
        length = int.from_bytes(head, "little")
        for magic, kind in PICKLED.items():
            # The length of a short header may begin with the same bytes; that of a pickle is huge.
            if head.startswith(magic) and length > MOST_HEADER:
                raise error(
                    f"{kind}, not safetensors; loading it could run code, so it is not loaded",
                    where=str(path),
                    fix="use weights in the safetensors format",
                )
        if len(head) < 8 or length > min(MOST_HEADER, path.stat().st_size - 8):
            raise _damaged(path, error, f"it claims a header of {length:,} bytes")
        try:
            with safe_open(path, framework="numpy"):
                pass  # checks names, shapes and offsets against the size of the file
            header = json.loads(file.read(length))
        except (SafetensorError, OSError, ValueError, RecursionError) as problem:
            raise _damaged(path, error, str(problem)) from None
    header.pop("__metadata__", None)
    return {
        name: Tensor(t["dtype"], tuple(t["shape"]), *(8 + length + at for at in t["data_offsets"]))
        for name, t in header.items()
    }


def weight_files(folder: Path) -> list[str]:
    """The names of a base's files of weights, which may be missing.

    They are those that transformers loads: `model.safetensors`, or what the index names. Others may
    be beside them, such as the same weights in Mistral's own format.

    Raises:
        ModelError: when the index cannot be read, or names a file outside the folder.
    """
    index = folder / INDEX
    if (folder / WHOLE).exists():
        return [WHOLE]
    if not index.exists():
        return []
    mapped = read_json(index, ModelError).get("weight_map")
    if not isinstance(mapped, dict):
        raise ModelError("has no weight_map", where=str(index), fix="download it again")
    names = sorted(set(map(str, mapped.values())))
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors") or "\\" in name:
            raise ModelError(
                f"names {name!r}, which is not a safetensors file in its folder",
                where=str(index),
                fix="use another copy of the model",
            )
    return names


def read_base_tensors(folder: Path) -> dict[str, tuple[Path, Tensor]]:
    """All tensors of a base by name, each with the file it is in.

    Raises:
        ModelError: when a file is missing or not safetensors; or as `weight_files` does.
    """
    found = {}
    for name in weight_files(folder):
        if not (folder / name).exists():
            raise ModelError(f"{name} is missing", where=str(folder), fix="download it again")
        tensors = read_tensors(folder / name, ModelError)
        found.update({tensor: (folder / name, about) for tensor, about in tensors.items()})
    return found


def _damaged(path: Path, error: type[OffbookError], reason: str) -> OffbookError:
    return error(f"not safetensors, or damaged: {reason}", where=str(path), fix="download it again")
