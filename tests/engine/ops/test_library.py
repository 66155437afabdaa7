"""The kernels are compiled once, or it is said why not."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from offbook.engine.ops import library as module
from offbook.engine.ops.library import Library, library

needs_kernels = pytest.mark.skipif(
    library().code is None, reason=f"no kernels: {library().problem}"
)


def keep_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "cache_folder", lambda: folder)
    monkeypatch.setattr(module, "cache_folders", lambda: [folder])


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[], Library]:
    """Compiles into an empty cache."""
    keep_in(tmp_path, monkeypatch)
    monkeypatch.setattr(module, "TARGET", module.TARGET or "native")
    monkeypatch.delenv("CXX", raising=False)
    return library.__wrapped__


def test_without_a_compiler_the_user_is_told(
    fresh: Callable[[], Library], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setitem(sys.modules, "ziglang", None)
    assert "apt install g++" in fresh().problem
    assert "pip install 'offbook[compiler]'" in fresh().problem
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
    keep_in(source, monkeypatch)
    assert "could not be kept or loaded" in fresh().problem


@needs_kernels
def test_what_is_compiled_is_kept(
    fresh: Callable[[], Library], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert fresh().code is not None
    (kept,) = (tmp_path / "kernels").iterdir()
    monkeypatch.setattr(subprocess, "run", lambda *command, **options: pytest.fail("again"))
    assert fresh().code is not None
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert fresh().code is not None, "without a compiler, too"
    monkeypatch.undo()
    kept.unlink()  # its pages are in use
    kept.write_bytes(b"half a file")
    keep_in(tmp_path, monkeypatch)
    assert fresh().code is not None, "compiled again"


def write_compiler(file: Path, script: str) -> str:
    file.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    file.chmod(0o755)
    return f"'{file}'"


@needs_kernels
def test_the_compiler_is_the_one_that_cxx_names(
    fresh: Callable[[], Library], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Which may have arguments, and stand in a folder with any name."""
    folder = tmp_path / "my tools, 工具"
    folder.mkdir()
    keep_in(tmp_path / "a 'cache' \"of\" é", monkeypatch)
    log = tmp_path / "log"
    compiler = write_compiler(folder / "cc", f'echo "$1" >> {log}; shift; exec g++ "$@"')
    monkeypatch.setenv("CXX", f"{compiler} --first")
    assert fresh().code is not None, fresh().problem
    assert log.read_text().split() == ["--first"] * 3
    for missing in ("no-such-compiler -O2", "'not closed"):
        monkeypatch.setenv("CXX", missing)
        assert f"CXX={missing} is no program" in fresh().problem


@pytest.mark.skipif(
    sys.platform != "linux" or not (shutil.which("clang++") or find_spec("ziglang")),
    reason="needs Clang: pip install 'offbook[compiler]'",
)
def test_clang_compiles_them_too(
    fresh: Callable[[], Library], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that computes is tested by `CXX="python -m ziglang c++" pytest tests/engine`."""
    which = shutil.which
    monkeypatch.setattr("shutil.which", lambda name: which(name) if name != "g++" else None)
    found = fresh()
    assert found.code is not None, found.problem
    gate, up = torch.randn(2, 640).unbind()
    result = torch.empty_like(gate)
    found.code.swiglu_f32(gate.data_ptr(), up.data_ptr(), result.data_ptr(), 640, 1)
    torch.testing.assert_close(result, torch.nn.functional.silu(gate) * up)


@needs_kernels
def test_what_a_compiler_says_may_have_any_encoding(
    fresh: Callable[[], Library], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    says = r"printf '\344\270\255 \377\376 erreur: \351chec\n' >&2; exit 1"
    monkeypatch.setenv("CXX", write_compiler(tmp_path / "cc", says))
    problem = fresh().problem
    assert "could not compile the fused kernels: 中" in problem
    assert "chec" in problem
