"""The kernels are compiled once, or it is said why not."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from offbook.engine.ops import library as module
from offbook.engine.ops.library import Library, library

needs_kernels = pytest.mark.skipif(
    library().code is None, reason=f"no kernels: {library().problem}"
)


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[], Library]:
    """Compiles into an empty cache."""
    monkeypatch.setattr(module, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr(module, "TARGET", module.TARGET or "native")
    return library.__wrapped__


def test_without_a_compiler_the_user_is_told(
    fresh: Callable[[], Library], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert "apt install g++" in fresh().problem
    monkeypatch.setattr("sys.platform", "darwin")
    assert "Linux" in fresh().problem


@pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("g++") is None or module.TARGET is None,
    reason="needs Linux and g++",
)
def test_there_are_kernels_where_there_is_a_compiler() -> None:
    assert library().code is not None, library().problem


@needs_kernels
def test_a_compiler_that_fails_is_named(
    fresh: Callable[[], Library], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    source = tmp_path / "broken.cpp"
    source.write_text("no program")
    monkeypatch.setattr(module, "SOURCE", source)
    assert "g++ could not compile" in fresh().problem
    monkeypatch.setattr(module, "cache_folder", lambda: source)
    assert "could not be kept or loaded" in fresh().problem


@needs_kernels
def test_what_is_compiled_is_kept(
    fresh: Callable[[], Library], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert fresh().code is not None
    (kept,) = (tmp_path / "kernels").iterdir()
    monkeypatch.setattr(subprocess, "run", lambda *command, **options: pytest.fail("again"))
    assert fresh().code is not None
    monkeypatch.undo()
    kept.unlink()  # its pages are in use
    kept.write_bytes(b"half a file")
    monkeypatch.setattr(module, "cache_folder", lambda: tmp_path)
    assert fresh().code is not None, "compiled again"
