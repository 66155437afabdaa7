"""The fused loops of `native/`, compiled once for this processor by the user's own g++."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from offbook.files.cache import cache_folder

NATIVE = Path(__file__).with_name("native")
SOURCE = NATIVE / "kernels.cpp"
COMPILE = (
    *("g++", "-std=c++17", "-O3", "-fno-math-errno", "-fno-trapping-math", "-fno-exceptions"),
    *("-fopenmp", "-fPIC", "-Wno-psabi", "-c"),
)
# The processor to compile for, as `g++ -march` names it. Tests and benchmarks set another one, or
# None to do without kernels, before the library is first used.
TARGET: str | None = "native"
# Not linked with a runtime of OpenMP: PyTorch has loaded one, and two would fight for the cores.
LINK = ("g++", "-shared", "-nodefaultlibs")

_TENSOR, _INT, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
_DROPOUT = (ctypes.c_uint64, ctypes.c_uint32)


class Heads(ctypes.Structure):
    """The heads' shape, and what a query sees; see `kernels.attend`."""

    _fields_ = (
        *((name, _INT) for name in ("queries", "keys", "width", "prefix", "window")),
        ("scaling", _FLOAT),
    )


class Term(ctypes.Structure):
    """A term of a sum of products; see `kernels.Product`."""

    _fields_ = (
        *(("x", _TENSOR), ("weight", _TENSOR), ("inner", _INT), ("transposed", _INT)),
        *(("h", _TENSOR), ("a", _TENSOR), ("rank", _INT)),
        *zip(("seed", "threshold"), _DROPOUT, strict=True),
    )


_HEADS, _TERMS = ctypes.POINTER(Heads), ctypes.POINTER(Term)
SIGNATURES = {
    "down": (_TENSOR, _TENSOR, _TENSOR, _INT, _INT, _INT, *_DROPOUT),
    "up": (_TENSOR, _TENSOR, _TENSOR, _INT, _INT, _INT, *_DROPOUT),
    "adapter_backward": (*[_TENSOR] * 7, *[_INT] * 4, *_DROPOUT, _TENSOR, _INT),
    "linear": (_TENSOR, _TERMS, _INT, _TENSOR, _INT, _INT, _TENSOR, _INT, _INT),
    "rms_norm": (_TENSOR, _TENSOR, _TENSOR, _TENSOR, _INT, _INT, _FLOAT),
    "rms_norm_backward": (_TENSOR, _TENSOR, _TENSOR, _TENSOR, _TENSOR, _INT, _INT),
    "swiglu": (_TENSOR, _TENSOR, _TENSOR, _INT),
    "swiglu_backward": (_TENSOR, _TENSOR, _TENSOR, _TENSOR, _TENSOR, _INT),
    "rotate": (_TENSOR, _TENSOR, _TENSOR, _TENSOR, _INT, _INT, _INT, _FLOAT),
    "cross_entropy": (_TENSOR, _TENSOR, _TENSOR, _INT, _INT),
    "attend": (*[_TENSOR] * 7, _INT, _HEADS, _TENSOR, _INT, _INT, _INT),
    "attend_backward": (*[_TENSOR] * 12, _INT, _HEADS, _TENSOR, _INT, _INT, _INT),
}
FORMATS = ("bf16", "f32")


@dataclass(frozen=True)
class Library:
    """The compiled kernels, or why there are none.

    Attributes:
        code: what was loaded.
        problem: what a user can mend; empty when all is well.
        multiplies_bf16: whether bfloat16 products are faster in it than in oneDNN.
    """

    code: ctypes.CDLL | None
    problem: str = ""
    multiplies_bf16: bool = False


@lru_cache(maxsize=1)
def library() -> Library:
    """The kernels, compiled where the cache does not hold them yet: seconds."""
    if TARGET is None:
        return Library(None, "the fused kernels are turned off")
    if sys.platform != "linux":
        return Library(None, "fused kernels are for Linux so far")
    if shutil.which(COMPILE[0]) is None:
        return Library(None, "no g++ here; with it (Debian: apt install g++) training is faster")
    file = cache_folder() / "kernels" / f"{_fingerprint()}.so"
    try:
        code = _load(file)
        if code is None:
            _compile(file)
            code = ctypes.CDLL(str(file))
    except subprocess.CalledProcessError as error:
        lines = error.stderr.strip().splitlines() or [str(error)]
        return Library(None, f"g++ could not compile the fused kernels: {lines[0]}")
    except OSError as error:
        return Library(None, f"the fused kernels could not be kept or loaded: {error}")
    for name, signature in SIGNATURES.items():
        for suffix in FORMATS:
            function = getattr(code, f"{name}_{suffix}")
            function.argtypes, function.restype = signature, None
    return Library(code, multiplies_bf16=bool(code.multiplies_bf16()))


def _load(file: Path) -> ctypes.CDLL | None:
    """What was kept, unless it is broken."""
    try:
        return ctypes.CDLL(str(file))
    except OSError:
        return None


def _fingerprint() -> str:
    """What the compiled code depends on: its source, how it is compiled, and for what processor."""
    info = Path("/proc/cpuinfo")
    processor = info.read_text(encoding="utf-8").split("\n\n")[0] if info.exists() else ""
    # The clock's speed changes from one reading to the next.
    kept = [line for line in processor.splitlines() if "MHz" not in line]
    sources = [file.read_text(encoding="utf-8") for file in sorted(NATIVE.iterdir())]
    facts = [*sources, *COMPILE, str(TARGET), *LINK, platform.machine(), *kept]
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]


def _compile(file: Path) -> None:
    """Compile into a folder of its own, so that no other process sees half a file."""
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=file.parent) as scratch:
        parts, whole = Path(scratch, "kernels.o"), Path(scratch, file.name)
        for command in (
            [*COMPILE, f"-march={TARGET}", str(SOURCE), "-o", str(parts)],
            [*LINK, str(parts), "-o", str(whole)],
        ):
            subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603
        with whole.open("rb") as written:
            os.fsync(written.fileno())
        whole.replace(file)
