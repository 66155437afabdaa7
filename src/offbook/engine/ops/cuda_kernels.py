"""Kernels for NVIDIA GPUs, in Triton, and the functions that launch them.

Each reads its tensors once and keeps what is between in registers: on a GPU, small operations cost
their memory traffic and their launch, not their arithmetic. Dropout's masks are never stored: a
mask is computed again in the backward pass, as `offbook/engine/dropout.py` says.

With `TRITON_INTERPRET=1` in the environment they run on a processor, for tests.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import ParamSpec, TypeVar

import torch
import triton
import triton.language as tl

from offbook.engine.dropout import Masks

# Elements that a program computes at a time: the fastest of some sizes, measured on an H200.
ROWS, COLUMNS = 32, 128
A_ROWS, A_COLUMNS = 64, 32  # of the gradient of A
FLAT = 1024
LOGITS = 4096
P = ParamSpec("P")
T = TypeVar("T")


@triton.jit
def _kept(seed, number, column, width: tl.constexpr, dropped: tl.constexpr):
    """Whether elements are kept, with `dropped` of 32,768 chances that they are not."""
    first = number.to(tl.uint32) * ((width + 31) // 32 * 16)
    x = (first + (column // 32 * 16 + column % 16).to(tl.uint32)) ^ seed.to(tl.uint32)
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15) ^ (seed >> 32).to(tl.uint32)) * 0x846CA68B
    x = x ^ (x >> 16)
    return ((x >> (column & 16).to(tl.uint32)) & 0xFFFF).to(tl.int32) >= 2 * dropped


@triton.jit(do_not_specialize=["first", "rows"])
def _down(
    x_TI, a_NRI, h_NTR, scale, seeds, numbers, first, rows, dropped: tl.constexpr,
    width: tl.constexpr, rank: tl.constexpr, PADDED: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(1)
    t = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    r = tl.arange(0, PADDED)
    h = tl.zeros((ROWS, PADDED), tl.float32)
    if dropped:
        seed = tl.load(seeds + first + n)
        number = tl.load(numbers + t, t < rows, 0)
    for start in range(0, width, COLUMNS):
        c = start + tl.arange(0, COLUMNS)
        inside = (t[:, None] < rows) & (c[None, :] < width)
        x = tl.load(x_TI + t[:, None].to(tl.int64) * width + c[None, :], inside, 0.0)
        if dropped:
            x = tl.where(_kept(seed, number[:, None], c[None, :], width, dropped), x, 0.0)
        at = (n * rank + r[None, :]) * width + c[:, None]
        a = tl.load(a_NRI + at, (r[None, :] < rank) & (c[:, None] < width), 0.0)
        h = tl.dot(x, a.to(x.dtype), h)
    place = (n * rows + t[:, None]).to(tl.int64) * rank + r[None, :]
    inside = (t[:, None] < rows) & (r[None, :] < rank)
    tl.store(h_NTR + place, (h * scale).to(h_NTR.dtype.element_ty), inside)


@triton.jit(do_not_specialize=["first", "rows"])
def _gradient_of_a(
    x_TI, dh_NTR, da_NRI, scale, seeds, numbers, first, rows, dropped: tl.constexpr,
    width: tl.constexpr, rank: tl.constexpr, PADDED: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(1)
    c = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    r = tl.arange(0, PADDED)
    da = tl.zeros((PADDED, COLUMNS), tl.float32)
    if dropped:
        seed = tl.load(seeds + first + n)
    for start in range(0, rows, ROWS):
        t = start + tl.arange(0, ROWS)
        inside = (t[:, None] < rows) & (c[None, :] < width)
        x = tl.load(x_TI + t[:, None].to(tl.int64) * width + c[None, :], inside, 0.0)
        if dropped:
            number = tl.load(numbers + t, t < rows, 0)
            x = tl.where(_kept(seed, number[:, None], c[None, :], width, dropped), x, 0.0)
        place = (n * rows + t[None, :]).to(tl.int64) * rank + r[:, None]
        dh = tl.load(dh_NTR + place, (t[None, :] < rows) & (r[:, None] < rank), 0.0)
        da = tl.dot(dh, x, da)
    at = (n * rank + r[:, None]) * width + c[None, :]
    tl.store(da_NRI + at, da * scale, (r[:, None] < rank) & (c[None, :] < width))


@triton.jit(do_not_specialize=["first", "rows"])
def _add_gradient_of_x(
    dx_TI, dh_NTR, a_NRI, scale, seeds, numbers, first, rows, dropped: tl.constexpr,
    width: tl.constexpr, rank: tl.constexpr, N: tl.constexpr, PADDED: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    t = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    c = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    r = tl.arange(0, PADDED)
    inside = (t[:, None] < rows) & (c[None, :] < width)
    at = t[:, None].to(tl.int64) * width + c[None, :]
    dx = tl.load(dx_TI + at, inside, 0.0).to(tl.float32)
    if dropped:
        number = tl.load(numbers + t, t < rows, 0)
    for n in tl.static_range(N):
        place = (n * rows + t[:, None]).to(tl.int64) * rank + r[None, :]
        dh = tl.load(dh_NTR + place, (t[:, None] < rows) & (r[None, :] < rank), 0.0)
        of_a = (n * rank + r[:, None]) * width + c[None, :]
        a = tl.load(a_NRI + of_a, (r[:, None] < rank) & (c[None, :] < width), 0.0)
        part = tl.dot(dh, a.to(dh.dtype))
        if dropped:
            seed = tl.load(seeds + first + n)
            part = tl.where(_kept(seed, number[:, None], c[None, :], width, dropped), part, 0.0)
        dx += part * scale
    tl.store(dx_TI + at, dx.to(dx_TI.dtype.element_ty), inside)


@triton.jit
def _rotate(
    x_THC, y_THC, cos_TC, sin_TC, row, head, sign: tl.constexpr, HEADS: tl.constexpr,
    HALF: tl.constexpr, PADDED_HEADS: tl.constexpr, PADDED_HALF: tl.constexpr,
):  # fmt: skip
    t = tl.program_id(0).to(tl.int64)
    h, c = tl.arange(0, PADDED_HEADS)[:, None], tl.arange(0, PADDED_HALF)[None, :]
    inside = (h < HEADS) & (c < HALF)
    at = t * row + h * head + c
    first = tl.load(x_THC + at, inside, 0.0).to(tl.float32)
    second = tl.load(x_THC + at + HALF, inside, 0.0).to(tl.float32)
    angle = t * 2 * HALF + c
    cos_1 = tl.load(cos_TC + angle, c < HALF, 0.0).to(tl.float32)
    cos_2 = tl.load(cos_TC + angle + HALF, c < HALF, 0.0).to(tl.float32)
    sin_1 = tl.load(sin_TC + angle, c < HALF, 0.0).to(tl.float32) * sign
    sin_2 = tl.load(sin_TC + angle + HALF, c < HALF, 0.0).to(tl.float32) * sign
    to = (t * HEADS + h) * 2 * HALF + c
    dtype = y_THC.dtype.element_ty
    tl.store(y_THC + to, (first * cos_1 - second * sin_1).to(dtype), inside)
    tl.store(y_THC + to + HALF, (second * cos_2 + first * sin_2).to(dtype), inside)


@triton.jit
def _gate(x, gate, y, count, FLAT: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * FLAT + tl.arange(0, FLAT)
    g = tl.load(gate + at, at < count, 0.0).to(tl.float32)
    value = g * tl.sigmoid(g) * tl.load(x + at, at < count, 0.0).to(tl.float32)
    tl.store(y + at, value.to(y.dtype.element_ty), at < count)


@triton.jit
def _gate_backward(dy, x, gate, dx, dgate, count, FLAT: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * FLAT + tl.arange(0, FLAT)
    d = tl.load(dy + at, at < count, 0.0).to(tl.float32)
    g = tl.load(gate + at, at < count, 0.0).to(tl.float32)
    share = tl.sigmoid(g)
    along = d * tl.load(x + at, at < count, 0.0).to(tl.float32)
    tl.store(dx + at, (d * g * share).to(dx.dtype.element_ty), at < count)
    slope = share * (1 + g * (1 - share))
    tl.store(dgate + at, (along * slope).to(dgate.dtype.element_ty), at < count)


@triton.jit
def _cross_entropy(logits_NV, targets_N, loss_N, width, LOGITS: tl.constexpr):
    n = tl.program_id(0).to(tl.int64)
    row = logits_NV + n * width
    target = tl.load(targets_N + n)
    of_target = tl.load(row + target).to(tl.float32)
    highest, total = float("-inf"), 0.0
    for start in range(0, width, LOGITS):
        v = start + tl.arange(0, LOGITS)
        x = tl.load(row + v, v < width, float("-inf")).to(tl.float32)
        higher = tl.maximum(highest, tl.max(x, 0))
        total = total * tl.exp(highest - higher) + tl.sum(tl.exp(x - higher), 0)
        highest = higher
    tl.store(loss_N + n, highest + tl.log(total) - of_target)
    for start in range(0, width, LOGITS):
        v = start + tl.arange(0, LOGITS)
        x = tl.load(row + v, v < width, float("-inf")).to(tl.float32)
        p = tl.exp(x - highest) / total - (v == target).to(tl.float32)
        tl.store(row + v, p.to(logits_NV.dtype.element_ty), v < width)


@dataclass(frozen=True)
class Dropout:
    """What adapters do to their input.

    Attributes:
        scale: of their outputs.
        dropped: chances of 32,768 that an element of the input is zeroed.
        first: the place of the first of them among the projections with an adapter.
        masks: where something is dropped.
    """

    scale: float
    dropped: int = 0
    first: int = 0
    masks: Masks | None = None

    def arguments(self, rows: int) -> tuple[float, torch.Tensor | None, torch.Tensor | None, int]:
        """What a kernel gets, for so many tokens.

        Raises:
            ValueError: when there is not a number for each: the kernel would read beyond them.
        """
        if not self.dropped:
            return self.scale, None, None, self.first
        assert self.masks is not None
        numbers = self.masks.numbers.contiguous()
        if len(numbers) != rows:
            raise ValueError(f"{len(numbers)} numbers for {rows} tokens")
        return self.scale, self.masks.seeds_on_device, numbers, self.first


def _on_its_device(launch: Callable[P, T]) -> Callable[P, T]:
    """Launch kernels on the device of the first tensor; Triton itself takes the current one."""

    @wraps(launch)
    def launched(*args: P.args, **kwargs: P.kwargs) -> T:
        assert isinstance(args[0], torch.Tensor)
        with torch.cuda.device_of(args[0]):
            return launch(*args, **kwargs)

    return launched


@_on_its_device
def down(x_TI: torch.Tensor, a_NRI: torch.Tensor, dropout: Dropout) -> torch.Tensor:
    """`scale drop(x) A'` for N matrices in float32, each with masks of its own: [N, T, R]."""
    (rows, width), (n, rank, _) = x_TI.shape, a_NRI.shape
    h_NTR = x_TI.new_empty(n, rows, rank)
    grid = triton.cdiv(rows, ROWS), n
    _down[grid](
        x_TI, a_NRI, h_NTR, *dropout.arguments(rows), rows, dropout.dropped, width, rank,
        PADDED=_padded(rank), ROWS=ROWS, COLUMNS=COLUMNS,
    )  # fmt: skip
    return h_NTR


@_on_its_device
def gradient_of_a(x_TI: torch.Tensor, dh_NTR: torch.Tensor, dropout: Dropout) -> torch.Tensor:
    """`scale dh' drop(x)` for N matrices: float32 [N, R, I]; the masks are those of `down`."""
    (rows, width), (n, _, rank) = x_TI.shape, dh_NTR.shape
    da_NRI = torch.empty(n, rank, width, dtype=torch.float32, device=x_TI.device)
    grid = triton.cdiv(width, A_COLUMNS), n
    _gradient_of_a[grid](
        x_TI, dh_NTR, da_NRI, *dropout.arguments(rows), rows, dropout.dropped, width, rank,
        PADDED=_padded(rank), ROWS=A_ROWS, COLUMNS=A_COLUMNS,
    )  # fmt: skip
    return da_NRI


@_on_its_device
def add_gradient_of_x(
    dx_TI: torch.Tensor, dh_NTR: torch.Tensor, a_NRI: torch.Tensor, dropout: Dropout
) -> None:
    """Add `scale drop(dh A)` of N matrices to `dx`; the masks are those of `down`."""
    (rows, width), (n, rank, _) = dx_TI.shape, a_NRI.shape
    grid = triton.cdiv(rows, ROWS), triton.cdiv(width, COLUMNS)
    _add_gradient_of_x[grid](
        dx_TI, dh_NTR, a_NRI, *dropout.arguments(rows), rows, dropout.dropped, width, rank, n,
        PADDED=_padded(rank), ROWS=ROWS, COLUMNS=COLUMNS,
    )  # fmt: skip


@_on_its_device
def rotate(
    x_THC: torch.Tensor, cos_TC: torch.Tensor, sin_TC: torch.Tensor, sign: int
) -> torch.Tensor:
    """Rotary positions; with the sign -1, the gradient. `x` may be strided but in its channels."""
    x_THC = x_THC if x_THC.stride(2) == 1 else x_THC.contiguous()
    rows, heads, channels = x_THC.shape
    y_THC = torch.empty_like(x_THC, memory_format=torch.contiguous_format)
    _rotate[(rows,)](
        x_THC, y_THC, cos_TC.contiguous(), sin_TC.contiguous(), x_THC.stride(0), x_THC.stride(1),
        sign, heads, channels // 2, triton.next_power_of_2(heads),
        triton.next_power_of_2(channels // 2),
    )  # fmt: skip
    return y_THC


@_on_its_device
def gate(x: torch.Tensor, gates: torch.Tensor) -> torch.Tensor:
    """`silu(gates) x`; both are contiguous."""
    y = torch.empty_like(x)
    _gate[(triton.cdiv(x.numel(), FLAT),)](x, gates, y, x.numel(), FLAT)
    return y


@_on_its_device
def gate_backward(
    dy: torch.Tensor, x: torch.Tensor, gates: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradients of `gate`; all are contiguous."""
    dx, dgates = torch.empty_like(x), torch.empty_like(gates)
    _gate_backward[(triton.cdiv(x.numel(), FLAT),)](dy, x, gates, dx, dgates, x.numel(), FLAT)
    return dx, dgates


@_on_its_device
def cross_entropy(logits_NV: torch.Tensor, targets_N: torch.Tensor) -> torch.Tensor:
    """The loss of each row, float32 [N]; the logits become their gradient."""
    loss_N = torch.empty(len(logits_NV), dtype=torch.float32, device=logits_NV.device)
    _cross_entropy[(len(logits_NV),)](
        logits_NV, targets_N, loss_N, logits_NV.shape[1], LOGITS, num_warps=8
    )
    return loss_N


def _padded(rank: int) -> int:
    """A matrix product's smallest side is 16."""
    return max(int(triton.next_power_of_2(rank)), 16)
