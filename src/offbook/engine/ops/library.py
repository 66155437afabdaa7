"""The kernels of `native/`, compiled once for this processor by the user's own compiler."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import torch

from offbook.files.cache import cache_folder, cache_folders, temporary_folder

NATIVE = Path(__file__).with_name("native")
SOURCE = NATIVE / "kernels.cpp"
COMPILE = (
    *("-std=c++17", "-O3", "-fno-math-errno", "-fno-trapping-math", "-fno-exceptions"),
    *("-fPIC", "-Wno-psabi", "-c"),
)
# The processor to compile for, as `g++ -march` names it. Tests and benchmarks set another one, or
# None for no kernels, before the library is first used.
TARGET: str | None = "native"
# Not linked with an OpenMP runtime: PyTorch has loaded one, GNU's, and two would compete for the
# cores. Clang's code needs another one, so there all threads are the kernels' own.
LINK = ("-shared", "-nodefaultlibs")

_TENSOR, _INT, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
_DROPOUT = (("seed", ctypes.c_uint64), ("threshold", ctypes.c_uint32), ("numbers", _TENSOR))


class Facts(ctypes.Structure):
    """Constants of the compiled code; `Facts` in `kernels.cpp`."""

    _fields_ = tuple(
        (name, _INT) for name in ("width_multiple", "rank_multiple", "multiplies_bf16")
    )


class Term(ctypes.Structure):
    """A term of a sum of products; `Term` in `linear.h`."""

    _fields_ = (
        *(("x", _TENSOR), ("weight", _TENSOR), ("inner", _INT), ("transposed", _INT)),
        *(("h", _TENSOR), ("b", _TENSOR), ("rank", _INT), *_DROPOUT),
        *(("first", _INT), ("last", _INT)),
    )


class Linear(ctypes.Structure):
    """A sum of products; `Linear` in `linear.h`."""

    _fields_ = (
        *(("y", _TENSOR), ("terms", ctypes.POINTER(Term)), ("count", _INT), ("bias", _TENSOR)),
        *(("rows", _INT), ("width", _INT), ("workspace", _TENSOR), ("threads", _INT)),
    )


class LoraBackward(ctypes.Structure):
    """Gradients of an adapter; `LoraBackward` in `lora.h`."""

    _fields_ = (
        *((name, _TENSOR) for name in ("x", "dy", "b", "h", "dh", "da", "db")),
        *((name, _INT) for name in ("rows", "inputs", "outputs", "rank")),
        *(*_DROPOUT, ("workspace", _TENSOR), ("threads", _INT)),
    )


class Heads(ctypes.Structure):
    """Shapes of the heads, and what a query sees; `Heads` in `attention.h`."""

    _fields_ = (
        *((name, _INT) for name in ("queries", "keys", "channels", "prefix", "window")),
        ("scaling", _FLOAT),
    )


class Attention(ctypes.Structure):
    """Attention, forward or backward; `Attention` in `attention.h`."""

    _fields_ = (
        *((name, _TENSOR) for name in ("q", "k", "v", "past_k", "past_v", "o", "grad")),
        *((name, _TENSOR) for name in ("dq", "dk", "dv", "dpast_k", "dpast_v", "starts")),
        *(("sequences", _INT), ("heads", Heads), ("workspace", _TENSOR), ("threads", _INT)),
    )


_LORA = (_TENSOR, _TENSOR, _TENSOR, _INT, _INT, _INT, *(kind for _, kind in _DROPOUT), _INT)
# The kernels, of which there is one for each format. Where the last argument is not a pointer, it
# is the number of threads.
KERNELS = {
    "lora_a": _LORA,
    "lora_b": _LORA,
    "lora_backward": (ctypes.POINTER(LoraBackward),),
    "linear": (ctypes.POINTER(Linear),),
    "rms_norm": (_TENSOR, _TENSOR, _TENSOR, _TENSOR, _INT, _INT, _FLOAT, _INT),
    "rms_norm_backward": (_TENSOR, _TENSOR, _TENSOR, _TENSOR, _TENSOR, _INT, _INT, _INT),
    "swiglu": (_TENSOR, _TENSOR, _TENSOR, _INT, _INT),
    "swiglu_backward": (_TENSOR, _TENSOR, _TENSOR, _TENSOR, _TENSOR, _INT, _INT),
    "rotate": (_TENSOR, _TENSOR, _TENSOR, _TENSOR, _INT, _INT, _INT, _FLOAT, _INT),
    "cross_entropy": (_TENSOR, _TENSOR, _TENSOR, _INT, _INT, _INT),
    "attend": (ctypes.POINTER(Attention),),
    "attend_backward": (ctypes.POINTER(Attention),),
}
# Bytes of workspace that a call needs for each thread.
WORKSPACES = {
    "lora_workspace_bytes": (ctypes.POINTER(LoraBackward),),
    "attention_workspace_bytes": (ctypes.POINTER(Attention),),
}
FORMATS = ("bf16", "f32")


@dataclass(frozen=True)
class Library:
    """The compiled kernels, or why there are none.

    Attributes:
        code: the loaded library.
        problem: why there are no kernels; empty if there are.
        width_multiple: widths of tensors must be multiples of this.
        rank_multiple: ranks of adapters must be multiples of this.
        multiplies_bf16: whether its bfloat16 products are faster than oneDNN's.
    """

    code: ctypes.CDLL | None
    problem: str = ""
    width_multiple: int = 1
    rank_multiple: int = 1
    multiplies_bf16: bool = False

    def multiplies(self, dtype: torch.dtype) -> bool:
        """Whether it computes the products of a format, and not PyTorch."""
        return self.code is not None and (dtype != torch.bfloat16 or self.multiplies_bf16)


def is_compiled() -> bool:
    """Whether `library` has nothing to compile."""
    if TARGET is None or sys.platform != "linux":
        return True
    name = _file_name()
    return any((folder / name).exists() for folder in cache_folders())


@lru_cache(maxsize=1)
def library() -> Library:
    """The kernels; compiled, unless the cache has them, which takes seconds to a minute."""
    if TARGET is None:
        return Library(None, "the fused kernels are turned off")
    if sys.platform != "linux":
        return Library(None, "fused kernels are for Linux so far")
    name = _file_name()
    code = next(filter(None, (_load(folder / name) for folder in cache_folders())), None)
    if code is None:
        compiler = _compiler()
        if not compiler or shutil.which(compiler[0]) is None:
            if os.environ.get("CXX"):
                return Library(None, f"CXX={os.environ['CXX']} is no program, so no fused kernels")
            return Library(
                None,
                "no C++ compiler here; with one, training is faster: `apt install g++` (Debian) or "
                "`pip install 'offbook[compiler]'`",
            )
        try:
            file = cache_folder() / name
            _compile(file)
            code = ctypes.CDLL(str(file))
        except subprocess.CalledProcessError as error:
            # In the system's language and encoding, whatever these are.
            lines = error.stderr.decode(errors="replace").strip().splitlines() or [str(error)]
            reason = f"{compiler[0]} could not compile the fused kernels: {lines[0]}"
            return Library(None, reason)
        except OSError as error:
            return Library(None, f"the fused kernels could not be kept or loaded: {error}")
    for signatures, result in ((KERNELS, None), (WORKSPACES, _INT)):
        for name, signature in signatures.items():
            for suffix in FORMATS:
                function = getattr(code, f"{name}_{suffix}")
                function.argtypes, function.restype = signature, result
    code.linear_workspace_bytes.argtypes = (_INT, _INT)
    code.linear_workspace_bytes.restype = _INT
    code.use_own_threads.argtypes, code.use_own_threads.restype = (_INT,), None
    code.facts.restype = Facts
    facts = code.facts()
    return Library(code, "", facts.width_multiple, facts.rank_multiple, bool(facts.multiplies_bf16))


def _load(file: Path) -> ctypes.CDLL | None:
    """The library that an earlier process compiled, if it is there and whole."""
    try:
        return ctypes.CDLL(str(file))
    except OSError:
        return None


def _compiler() -> list[str]:
    """The command that compiles: `$CXX`, which may have arguments, or what is found."""
    try:
        if given := shlex.split(os.environ.get("CXX", "")):
            return given
    except ValueError:  # a quotation mark without its end
        return []
    if found := next(filter(shutil.which, ("g++", "clang++")), None):
        return [found]
    return [sys.executable, "-m", "ziglang", "c++"] if find_spec("ziglang") else []


def _file_name() -> str:
    """With a hash of sources, flags, `$CXX` and processor; which compiler is found is not in it."""
    info = Path("/proc/cpuinfo")
    processor = info.read_text(encoding="utf-8").split("\n\n")[0] if info.exists() else ""
    # The clock speed changes from one reading to the next.
    kept = [line for line in processor.splitlines() if "MHz" not in line]
    sources = [file.read_text(encoding="utf-8") for file in sorted(NATIVE.iterdir())]
    flags = [os.environ.get("CXX", ""), *COMPILE, str(TARGET), *LINK]
    facts = [*sources, *flags, platform.machine(), *kept]
    digest = hashlib.sha256("\n".join(facts).encode()).hexdigest()
    return f"kernels/{digest[:16]}.so"


def _compile(file: Path) -> None:
    """Compile in a temporary folder, so that no other process sees half a file."""
    with temporary_folder(file.parent, ".compiling-") as folder:
        parts, whole = folder / "kernels.o", folder / file.name
        caches = ("ZIG_GLOBAL_CACHE_DIR", "ZIG_LOCAL_CACHE_DIR")  # else it leaves 95 MB in another
        environment = os.environ | dict.fromkeys(caches, str(folder))

        def run(*options: str) -> bytes:
            command = [*_compiler(), *options]
            done = subprocess.run(  # noqa: S603
                command, check=True, capture_output=True, env=environment
            )
            return done.stdout

        openmp = [] if b"clang" in run("--version") else ["-fopenmp"]
        run(*COMPILE, *openmp, f"-march={TARGET}", str(SOURCE), "-o", str(parts))
        run(*LINK, str(parts), "-o", str(whole))
        with whole.open("rb") as written:
            os.fsync(written.fileno())
        whole.replace(file)
