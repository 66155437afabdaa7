"""Where what is made once and used again is kept: converted models and compiled kernels."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """Where converted models are kept: `$XDG_CACHE_HOME/offbook`, by default `~/.cache/offbook`."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "offbook"
