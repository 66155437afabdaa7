"""Records that are kept in a JSON file of their own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter

from offbook.errors import CheckpointError

Record = TypeVar("Record")


def read_record(kind: type[Record], file: Path, *, fix: str) -> Record:
    """The record in a file; keys that this version does not know are ignored.

    Args:
        kind: a dataclass.
        file: with its fields as JSON.
        fix: what to do about a damaged file.

    Raises:
        CheckpointError: when the file is damaged.
    """
    try:
        return TypeAdapter(kind).validate_python(json.loads(file.read_bytes()))
    except ValueError:
        raise CheckpointError("the file is damaged", where=str(file), fix=fix) from None
