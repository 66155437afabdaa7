"""The manifest of a committed folder: what was written there, and whether it is intact."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

MANIFEST = "manifest.json"


def verify(folder: Path) -> str | None:
    """The reason why a committed folder is not what was written, or None when it is intact.

    Added files are ignored: file managers create some.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        for name, facts in manifest.items():
            size = (folder / name).stat().st_size
            if size != facts["bytes"]:
                return f"{name} has {size:,} bytes instead of {facts['bytes']:,}"
            if sha256(folder / name) != facts["sha256"]:
                return f"{name} is not what was written"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except OSError as error:
        # A file that was opened and then cannot be read has no name in the error.
        return f"{Path(error.filename or folder).name} cannot be read ({error.strerror})"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST} is damaged"
    return None


def listed(folder: Path) -> list[str] | None:
    """The names in a folder's manifest, then that of the manifest; None where none can be read."""
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
    except (OSError, ValueError):
        return None
    return [*manifest, MANIFEST] if isinstance(manifest, dict) else None


def sha256(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()
