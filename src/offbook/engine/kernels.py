"""The fused loops of `native/`, called on tensors.

They take bfloat16 and float32 on a processor, in rows whose width is a multiple of 32. Without
them (no Linux, no g++) the layers do the same with PyTorch's operations, in more passes over
memory. Letters: T tokens, I and O widths, R the rank, padded to a multiple of 8.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F

from offbook.engine.dropout import drop_probability
from offbook.engine.library import Heads, Term, library

SUFFIXES = {torch.bfloat16: "bf16", torch.float32: "f32"}
WIDTHS, RANKS, LANES, QUERIES, PANEL = 32, 8, 16, 24, 64  # constants of the sources


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


def adapter_backward(
    x_TI: torch.Tensor,
    dy_TO: torch.Tensor,
    b_RO: torch.Tensor,
    h_TR: torch.Tensor,
    dropout: Dropout = NONE,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The gradients of `h`, `dy B'`, of `A`, `dh' drop(x)`, and of `B`, `h' dy`; all float32."""
    rank, threads = h_TR.shape[1], torch.get_num_threads()
    dh_TR, db_RO = torch.empty_like(h_TR), torch.empty_like(b_RO)
    da_RI = h_TR.new_empty(rank, x_TI.shape[1])
    sizes = (*x_TI.shape, dy_TO.shape[1], rank, dropout.seed, dropout.threshold)
    scratch = h_TR.new_empty(threads, da_RI.numel() + db_RO.numel())
    tensors = (x_TI, dy_TO, b_RO, h_TR, dh_TR, da_RI, db_RO)
    _call("adapter_backward", *tensors, *sizes, scratch, threads)
    return dh_TR, da_RI, db_RO


class Product(NamedTuple):
    """`x W' + drop(h A)`; or without its adapter, `x W'`.

    Attributes:
        x: [T, I], in the weight's format.
        weight: [O, I], of a linear layer; or the transpose, `W.t()`, of one that goes backwards.
        h: [T, R], float32.
        a: [R, O], float32.
        dropout: of `h A`.
    """

    x: torch.Tensor
    weight: torch.Tensor
    h: torch.Tensor | None = None
    a: torch.Tensor | None = None
    dropout: Dropout = NONE


def linear(
    x_TI: torch.Tensor, w_OI: torch.Tensor, bias_O: torch.Tensor | None = None
) -> torch.Tensor:
    """`x W'` and the bias; [T, O]."""
    return multiply([Product(x_TI, w_OI)], bias_O)


def multiply(products: Sequence[Product], bias_O: torch.Tensor | None = None) -> torch.Tensor:
    """The sum of products, and of the bias; [T, O]."""
    first = products[0].x
    if first.dtype == torch.bfloat16 and not library().multiplies_bf16:
        return _multiply_in_pytorch(products, bias_O)
    terms, inputs = (Term * len(products))(), 0
    for term, (x, weight, h, a, dropout) in zip(terms, products, strict=True):
        assert x.dtype == weight.dtype == first.dtype
        assert weight.is_contiguous() or weight.t().is_contiguous()
        term.x, term.weight, term.inner = x.data_ptr(), weight.data_ptr(), x.shape[1]
        term.transposed = weight.is_contiguous()
        if h is not None and a is not None:
            term.h, term.a, term.rank = h.data_ptr(), a.data_ptr(), len(a)
            term.seed, term.threshold = dropout.seed, dropout.threshold
        inputs += x.shape[1]
    y_TO = first.new_empty(len(first), len(products[0].weight))
    # The weights, as they are multiplied.
    scratch = first.new_empty(torch.get_num_threads(), PANEL * inputs)
    of_a_thread = PANEL * inputs * first.itemsize // 4
    sizes = (*y_TO.shape, scratch, of_a_thread, len(scratch))
    _call("linear", y_TO, terms, len(terms), bias_O, *sizes)
    return y_TO


def _multiply_in_pytorch(products: Sequence[Product], bias_O: torch.Tensor | None) -> torch.Tensor:
    first, *others = products
    y_TO = F.linear(first.x, first.weight, bias_O)
    for other in others:
        y_TO.addmm_(other.x, other.weight.t())
    for _, _, h, a, dropout in products:
        if h is not None and a is not None:
            add_up(y_TO, h, a, dropout)
    return y_TO


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
