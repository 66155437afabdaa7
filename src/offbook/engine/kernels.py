"""The fused loops of `kernels.cpp`: compiled once for this processor, then called on tensors.

They take bfloat16 and float32 on a processor, in rows whose width is a multiple of 32. Without
them (no Linux, no g++) the layers do the same with PyTorch's operations, in more passes over
memory. Letters: T tokens, I and O widths, R the rank, padded to a multiple of 8.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch

from offbook.base import cache_folder
from offbook.engine.dropout import drop_probability

SOURCE = Path(__file__).with_name("kernels.cpp")
COMPILE = (
    *("g++", "-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math"),
    *("-fno-exceptions", "-fopenmp", "-fPIC", "-Wno-psabi", "-c"),
)
# Not linked with a runtime of OpenMP: PyTorch has loaded one, and two would fight for the cores.
LINK = ("g++", "-shared", "-nodefaultlibs")
SUFFIXES = {torch.bfloat16: "bf16", torch.float32: "f32"}
WIDTHS, RANKS, LANES, QUERIES = 32, 8, 16, 24  # constants of the source

_TENSOR, _INT, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
_DROPOUT = (ctypes.c_uint64, ctypes.c_uint32)


class Heads(ctypes.Structure):
    """The heads' shape, and what a query sees; see `attend`."""

    _fields_ = (
        *((name, _INT) for name in ("queries", "keys", "width", "prefix", "window")),
        ("scaling", _FLOAT),
    )


_HEADS = ctypes.POINTER(Heads)
SIGNATURES = {
    "down": (_TENSOR, _TENSOR, _TENSOR, _INT, _INT, _INT, *_DROPOUT),
    "up": (_TENSOR, _TENSOR, _TENSOR, _INT, _INT, _INT, *_DROPOUT),
    "outer": (_TENSOR, _TENSOR, _TENSOR, _INT, _INT, _INT, *_DROPOUT, _INT),
    "rms_norm": (_TENSOR, _TENSOR, _TENSOR, _TENSOR, _INT, _INT, _FLOAT),
    "rms_norm_backward": (_TENSOR, _TENSOR, _TENSOR, _TENSOR, _TENSOR, _INT, _INT),
    "swiglu": (_TENSOR, _TENSOR, _TENSOR, _INT),
    "swiglu_backward": (_TENSOR, _TENSOR, _TENSOR, _TENSOR, _TENSOR, _INT),
    "rotate": (_TENSOR, _TENSOR, _TENSOR, _TENSOR, _INT, _INT, _INT, _FLOAT),
    "cross_entropy": (_TENSOR, _TENSOR, _TENSOR, _INT, _INT),
    "attend": (*[_TENSOR] * 7, _INT, _HEADS, _TENSOR, _INT, _INT, _INT),
    "attend_backward": (*[_TENSOR] * 12, _INT, _HEADS, _TENSOR, _INT, _INT, _INT),
}


@dataclass(frozen=True)
class Dropout:
    """Which elements of a matrix are dropped: a function of the seed and of their places.

    Attributes:
        seed: 64 bits.
        threshold: the probability, in parts of 65,536.
    """

    seed: int = 0
    threshold: int = 0

    @classmethod
    def draw(cls, p: float) -> Dropout:
        """A new one with `drop_probability(p)`; `torch.manual_seed` fixes the seeds drawn."""
        if not p:
            return NONE
        seed = int(torch.randint(-(2**63), 2**63 - 1, ()))
        return cls(seed % 2**64, round(drop_probability(p) * 2**16))


NONE = Dropout()
Past = tuple[torch.Tensor | None, torch.Tensor | None]  # keys and values of a prefix


@dataclass(frozen=True)
class Library:
    """The compiled kernels, or why there are none.

    Attributes:
        code: what was loaded.
        problem: what a user can mend; empty when all is well.
    """

    code: ctypes.CDLL | None
    problem: str = ""


@lru_cache(maxsize=1)
def library() -> Library:
    """The kernels, compiled where the cache does not hold them yet: about a second."""
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
        for suffix in SUFFIXES.values():
            function = getattr(code, f"{name}_{suffix}")
            function.argtypes, function.restype = signature, None
    return Library(code)


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
    facts = [SOURCE.read_text(encoding="utf-8"), *COMPILE, *LINK, platform.machine(), *kept]
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]


def _compile(file: Path) -> None:
    """Compile into a folder of its own, so that no other process sees half a file."""
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=file.parent) as scratch:
        parts, whole = Path(scratch, "kernels.o"), Path(scratch, file.name)
        for command in (
            [*COMPILE, str(SOURCE), "-o", str(parts)],
            [*LINK, str(parts), "-o", str(whole)],
        ):
            subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603
        with whole.open("rb") as written:
            os.fsync(written.fileno())
        whole.replace(file)


def take(device: torch.device, dtype: torch.dtype, *widths: int) -> bool:
    """Whether there are kernels for rows of these widths."""
    return (
        device.type == "cpu"
        and dtype in SUFFIXES
        and all(width % WIDTHS == 0 for width in widths)
        and library().code is not None
    )


def fit(*tensors: torch.Tensor) -> bool:
    """Whether there are kernels for tensors [..., width], all of one format."""
    first = tensors[0]
    alike = all(x.dtype == first.dtype for x in tensors)
    return alike and take(first.device, first.dtype, *(x.shape[-1] for x in tensors))


def _call(name: str, x: torch.Tensor, *rest: Any) -> None:
    """Call the kernel for `x`'s format; the caller has seen to it that tensors are contiguous."""
    function = getattr(library().code, f"{name}_{SUFFIXES[x.dtype]}")
    function(*(a.data_ptr() if isinstance(a, torch.Tensor) else a for a in (x, *rest)))


def down(x_TI: torch.Tensor, a_RI: torch.Tensor, dropout: Dropout = NONE) -> torch.Tensor:
    """`drop(x) A'`, in float32 [T, R]; `A` is float32."""
    h_TR = x_TI.new_empty(len(x_TI), len(a_RI), dtype=torch.float32)
    sizes = (*x_TI.shape, len(a_RI))
    _call("down", x_TI, a_RI, h_TR, *sizes, dropout.seed, dropout.threshold)
    return h_TR


def add_up(
    y_TO: torch.Tensor, h_TR: torch.Tensor, b_RO: torch.Tensor, dropout: Dropout = NONE
) -> None:
    """`y += drop(h B)`, in place; `h` and `B` are float32."""
    _call("up", y_TO, h_TR, b_RO, *y_TO.shape, len(b_RO), dropout.seed, dropout.threshold)


def outer(x_TI: torch.Tensor, h_TR: torch.Tensor, dropout: Dropout = NONE) -> torch.Tensor:
    """`h' drop(x)`, in float32 [R, I]; `h` is float32."""
    rank, threads = h_TR.shape[1], torch.get_num_threads()
    d_NRI = torch.zeros(threads, rank, x_TI.shape[1])  # of each thread
    sizes = (*x_TI.shape, rank)
    _call("outer", x_TI, h_TR, d_NRI, *sizes, dropout.seed, dropout.threshold, threads)
    return d_NRI.sum(0)


def rms_norm(
    x_TI: torch.Tensor, weight_I: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """`x` over its root mean square, times the weight; and one over that mean, float32 [T]."""
    y_TI, scale_T = torch.empty_like(x_TI), x_TI.new_empty(len(x_TI), dtype=torch.float32)
    _call("rms_norm", x_TI, weight_I, y_TI, scale_T, *x_TI.shape, eps)
    return y_TI, scale_T


def rms_norm_backward(
    dy_TI: torch.Tensor, x_TI: torch.Tensor, weight_I: torch.Tensor, scale_T: torch.Tensor
) -> torch.Tensor:
    """The gradient of `rms_norm`'s input."""
    dx_TI = torch.empty_like(x_TI)
    _call("rms_norm_backward", dy_TI, x_TI, weight_I, scale_T, dx_TI, *x_TI.shape)
    return dx_TI


def swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """`silu(gate) up`."""
    y = torch.empty_like(gate)
    _call("swiglu", gate, up, y, gate.numel())
    return y


def swiglu_backward(
    dy: torch.Tensor, gate: torch.Tensor, up: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradients of `gate` and `up`."""
    dgate, dup = torch.empty_like(gate), torch.empty_like(up)
    _call("swiglu_backward", dy, gate, up, dgate, dup, gate.numel())
    return dgate, dup


def rotate(
    x_TND: torch.Tensor, cos_TD: torch.Tensor, sin_TD: torch.Tensor, *, back: bool = False
) -> torch.Tensor:
    """Rotary positions: the halves of every head turned by the token's angle, or turned back."""
    y_TND = torch.empty_like(x_TND)
    _call("rotate", x_TND, cos_TD, sin_TD, y_TND, *x_TND.shape, -1.0 if back else 1.0)
    return y_TND


def cross_entropy_(logits_CV: torch.Tensor, targets_C: torch.Tensor) -> torch.Tensor:
    """The cross-entropy of every row, float32 [C]; the logits become its gradient."""
    loss_C = logits_CV.new_empty(len(logits_CV), dtype=torch.float32)
    _call("cross_entropy", logits_CV, targets_C, loss_C, *logits_CV.shape)
    return loss_C


def attend(
    q_THD: torch.Tensor,
    k_TKD: torch.Tensor,
    v_TKD: torch.Tensor,
    past: Past,
    lengths: Sequence[int],
    scaling: float,
    window: int | None,
) -> torch.Tensor:
    """Attention within each of the rows that lie end to end, and to the prefix [P, K, D]."""
    o_THD = torch.empty_like(q_THD)
    rows = _rows(q_THD, k_TKD, past, lengths, scaling, window)
    _call("attend", q_THD, k_TKD, v_TKD, *past, o_THD, *rows)
    return o_THD


def attend_backward(
    do_THD: torch.Tensor,
    q_THD: torch.Tensor,
    k_TKD: torch.Tensor,
    v_TKD: torch.Tensor,
    past: Past,
    lengths: Sequence[int],
    scaling: float,
    window: int | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """The gradients of queries, keys, values, and of the prefix's keys and values."""
    dq_THD, dk_TKD, dv_TKD = map(torch.empty_like, (q_THD, k_TKD, v_TKD))
    dpast: list[torch.Tensor | None] = [None, None]
    if past[0] is not None:
        shape = (torch.get_num_threads(), *past[0].shape)
        dpast = [torch.zeros(shape), torch.zeros(shape)]  # of each thread
    rows = _rows(q_THD, k_TKD, past, lengths, scaling, window)
    _call(
        *("attend_backward", q_THD, k_TKD, v_TKD, *past, do_THD),
        *(dq_THD, dk_TKD, dv_TKD, *dpast, *rows),
    )
    dpast_k, dpast_v = (None if d is None else d.sum(0).to(q_THD.dtype) for d in dpast)
    return dq_THD, dk_TKD, dv_TKD, dpast_k, dpast_v


def _rows(
    q_THD: torch.Tensor,
    k_TKD: torch.Tensor,
    past: Past,
    lengths: Sequence[int],
    scaling: float,
    window: int | None,
) -> tuple[Any, ...]:
    """The last arguments of the attention kernels."""
    prefix, width = 0 if past[0] is None else len(past[0]), q_THD.shape[2]
    heads = Heads(q_THD.shape[1], k_TKD.shape[1], width, prefix, window or 0, scaling)
    starts = torch.tensor([0, *accumulate(lengths)])
    longest, threads = prefix + max(lengths) + LANES, torch.get_num_threads()
    size = 6 * longest * width + 4 * QUERIES * (width + longest)
    return starts, len(lengths), heads, torch.empty(threads, size), longest, size, threads
