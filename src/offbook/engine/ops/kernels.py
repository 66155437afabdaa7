"""The kernels of `native/`, called on tensors.

They take bfloat16 and float32 on a processor. Widths are multiples of `Library.width_multiple`,
ranks of `Library.rank_multiple`, and tensors are contiguous: the caller makes them so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F

from offbook.engine.dropout import Masks, drop_probability
from offbook.engine.ops.library import Attention, Heads, Linear, LoraBackward, Term, library
from offbook.engine.ops.threads import threads
from offbook.engine.projection import Projection
from offbook.errors import EngineError

SUFFIXES = {torch.bfloat16: "bf16", torch.float32: "f32"}


@dataclass(frozen=True)
class Dropout:
    """Which elements of a matrix are dropped: a function of the seed, the token and the column.

    Attributes:
        seed: 64 bits.
        threshold: the probability times 65,536.
        numbers: int64 [T]; the number of the token in each row. None where rows are numbered
            themselves.
    """

    seed: int = 0
    threshold: int = 0
    numbers: torch.Tensor | None = None

    @classmethod
    def of(cls, p: Projection, masks: Masks | None) -> Dropout:
        """The masks of a projection's input."""
        if not p.dropout:
            return NONE
        assert masks is not None
        seed, threshold = masks.seeds[p.place], round(drop_probability(p.dropout) * 2**16)
        return cls(seed % 2**64, threshold, masks.numbers.contiguous())

    def arguments(self, rows: int) -> tuple[int, int, int | None]:
        """What a kernel gets, for a matrix of so many rows.

        Raises:
            ValueError: when there is not a number for each row: the kernel would read beyond them.
        """
        if self.numbers is not None and len(self.numbers) != rows:
            raise ValueError(f"{len(self.numbers)} numbers for {rows} tokens")
        return self.seed, self.threshold, _address(self.numbers)


NONE = Dropout()
Past = tuple[torch.Tensor | None, torch.Tensor | None]  # keys and values of a prefix


def _call(name: str, dtype: torch.dtype, *arguments: Any) -> Any:
    """Call the kernel for a format."""
    function = getattr(library().code, f"{name}_{SUFFIXES[dtype]}")
    return function(*(_address(a) if isinstance(a, torch.Tensor) else a for a in arguments))


def _address(x: torch.Tensor | None) -> int | None:
    """Where the numbers of a tensor are.

    Raises:
        EngineError: when that is nowhere, as of a weight that several processes share.
    """
    if x is None:
        return None
    if type(x) not in (torch.Tensor, torch.nn.Parameter):
        raise EngineError(f"a kernel cannot read a {type(x).__name__}")
    return x.data_ptr()


def _workspace(size: int) -> torch.Tensor:
    """Memory for a kernel to work in: `size` bytes for each thread."""
    return torch.empty(threads() * size, dtype=torch.uint8)


def lora_a(x_TI: torch.Tensor, a_RI: torch.Tensor, dropout: Dropout = NONE) -> torch.Tensor:
    """`drop(x) A'`, in float32 [T, R]; `A` is float32."""
    h_TR = x_TI.new_empty(len(x_TI), len(a_RI), dtype=torch.float32)
    sizes, drop = (*x_TI.shape, len(a_RI)), dropout.arguments(len(x_TI))
    _call("lora_a", x_TI.dtype, x_TI, a_RI, h_TR, *sizes, *drop, threads())
    return h_TR


def lora_b_(
    y_TO: torch.Tensor, h_TR: torch.Tensor, b_RO: torch.Tensor, dropout: Dropout = NONE
) -> None:
    """`y += drop(h B)`, in place; `h` and `B` are float32."""
    sizes, drop = (*y_TO.shape, len(b_RO)), dropout.arguments(len(y_TO))
    _call("lora_b", y_TO.dtype, y_TO, h_TR, b_RO, *sizes, *drop, threads())


def lora_backward(
    x_TI: torch.Tensor,
    dy_TO: torch.Tensor,
    b_RO: torch.Tensor,
    h_TR: torch.Tensor,
    dropout: Dropout = NONE,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The gradients of `h`, `dy B'`, of `A`, `dh' drop(x)`, and of `B`, `h' dy`; all float32."""
    (rows, inputs), outputs, rank = x_TI.shape, dy_TO.shape[1], h_TR.shape[1]
    dh_TR, db_RO = torch.empty_like(h_TR), torch.empty_like(b_RO)
    da_RI = h_TR.new_empty(rank, inputs)
    tensors = (x_TI, dy_TO, b_RO, h_TR, dh_TR, da_RI, db_RO)
    call = LoraBackward(
        *(*map(_address, tensors), rows, inputs, outputs, rank),
        *(*dropout.arguments(rows), None, threads()),
    )
    workspace = _workspace(_call("lora_workspace_bytes", x_TI.dtype, call))
    call.workspace = _address(workspace)
    _call("lora_backward", x_TI.dtype, call)
    return dh_TR, da_RI, db_RO


class Product(NamedTuple):
    """`x W' + drop(h B)`; or without LoRA, `x W'`.

    Attributes:
        x: [T, I], in the weight's format.
        weight: [O, I], as a linear layer has it; or its transpose, `W.t()`, for the gradient.
        h: [T, R], float32.
        b: [R, O], float32.
        dropout: of `h B`.
        rows: that `h` has; the others have no LoRA. By default, all.
    """

    x: torch.Tensor
    weight: torch.Tensor
    h: torch.Tensor | None = None
    b: torch.Tensor | None = None
    dropout: Dropout = NONE
    rows: slice | None = None


def linear(
    x_TI: torch.Tensor, w_OI: torch.Tensor, bias_O: torch.Tensor | None = None
) -> torch.Tensor:
    """`x W'` and the bias; [T, O]."""
    return multiply([Product(x_TI, w_OI)], bias_O)


def multiply(products: Sequence[Product], bias_O: torch.Tensor | None = None) -> torch.Tensor:
    """The sum of products, and of the bias; [T, O]."""
    first = products[0].x
    if not library().multiplies(first.dtype):
        return _multiply_in_pytorch(products, bias_O)
    terms, inputs = (Term * len(products))(), 0
    for term, (x, weight, h, b, dropout, rows) in zip(terms, products, strict=True):
        assert x.dtype == weight.dtype == first.dtype
        assert weight.is_contiguous() or weight.t().is_contiguous()
        term.x, term.weight, term.inner = _address(x), _address(weight), x.shape[1]
        term.transposed = weight.is_contiguous()
        if h is not None and b is not None:
            term.h, term.b, term.rank = _address(h), _address(b), len(b)
            term.first, term.last, _ = (rows or slice(None)).indices(len(first))
            term.seed, term.threshold, term.numbers = dropout.arguments(term.last - term.first)
            assert len(h) == term.last - term.first
        inputs += x.shape[1]
    y_TO = first.new_empty(len(first), len(products[0].weight))
    workspace = _workspace(_linear_workspace(inputs, first.dtype))
    call = Linear(
        *(_address(y_TO), terms, len(terms), _address(bias_O), *y_TO.shape),
        *(_address(workspace), threads()),
    )
    _call("linear", first.dtype, call)
    return y_TO


def linear_workspace_bytes(inputs: int, dtype: torch.dtype) -> int:
    """Bytes of workspace of `multiply`, for products whose widths I add up to `inputs`."""
    return threads() * _linear_workspace(inputs, dtype)


def _linear_workspace(inputs: int, dtype: torch.dtype) -> int:
    """As `linear_workspace_bytes`, for each thread."""
    code = library().code
    assert code is not None
    size: int = code.linear_workspace_bytes(inputs, dtype.itemsize)
    return size


def _multiply_in_pytorch(products: Sequence[Product], bias_O: torch.Tensor | None) -> torch.Tensor:
    first, *others = products
    y_TO = F.linear(first.x, first.weight, bias_O)
    for other in others:
        if other.x.shape[1]:
            y_TO.addmm_(other.x, other.weight.t())
    for _, _, h, b, dropout, rows in products:
        if h is not None and b is not None:
            lora_b_(y_TO[rows or slice(None)], h, b, dropout)
    return y_TO


def rms_norm(
    x_TI: torch.Tensor, weight_I: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """`x` divided by its root mean square, times the weight; and the divisor's inverse [T]."""
    y_TI, scale_T = torch.empty_like(x_TI), x_TI.new_empty(len(x_TI), dtype=torch.float32)
    _call("rms_norm", x_TI.dtype, x_TI, weight_I, y_TI, scale_T, *x_TI.shape, eps, threads())
    return y_TI, scale_T


def rms_norm_backward(
    dy_TI: torch.Tensor, x_TI: torch.Tensor, weight_I: torch.Tensor, scale_T: torch.Tensor
) -> torch.Tensor:
    """The gradient of the input of `rms_norm`."""
    dx_TI = torch.empty_like(x_TI)
    tensors = dy_TI, x_TI, weight_I, scale_T, dx_TI
    _call("rms_norm_backward", x_TI.dtype, *tensors, *x_TI.shape, threads())
    return dx_TI


def swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """`silu(gate) up`."""
    y = torch.empty_like(gate)
    _call("swiglu", gate.dtype, gate, up, y, gate.numel(), threads())
    return y


def swiglu_backward(
    dy: torch.Tensor, gate: torch.Tensor, up: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradients of `gate` and `up`."""
    dgate, dup = torch.empty_like(gate), torch.empty_like(up)
    _call("swiglu_backward", gate.dtype, dy, gate, up, dgate, dup, gate.numel(), threads())
    return dgate, dup


def rotate(
    x_THC: torch.Tensor, cos_TC: torch.Tensor, sin_TC: torch.Tensor, *, back: bool = False
) -> torch.Tensor:
    """Rotary positions: the halves of every head rotated by the token's angles, or rotated back."""
    y_THC = torch.empty_like(x_THC)
    sign = -1.0 if back else 1.0
    _call("rotate", x_THC.dtype, x_THC, cos_TC, sin_TC, y_THC, *x_THC.shape, sign, threads())
    return y_THC


def cross_entropy_(logits_NV: torch.Tensor, targets_N: torch.Tensor) -> torch.Tensor:
    """The cross-entropy of every token, float32 [N]; its gradient overwrites the logits."""
    loss_N = logits_NV.new_empty(len(logits_NV), dtype=torch.float32)
    _call(
        "cross_entropy", logits_NV.dtype, logits_NV, targets_N, loss_N, *logits_NV.shape, threads()
    )
    return loss_N


def attend(
    q_THC: torch.Tensor,
    k_TKC: torch.Tensor,
    v_TKC: torch.Tensor,
    past: Past,
    lengths: Sequence[int],
    scaling: float,
    window: int | None,
) -> torch.Tensor:
    """Attention within each of the packed sequences, and to the prefix [P, K, C]."""
    o_THC = torch.empty_like(q_THC)
    _attention("attend", q_THC, k_TKC, v_TKC, past, lengths, scaling, window, o=o_THC)
    return o_THC


def attend_backward(
    do_THC: torch.Tensor,
    q_THC: torch.Tensor,
    k_TKC: torch.Tensor,
    v_TKC: torch.Tensor,
    past: Past,
    lengths: Sequence[int],
    scaling: float,
    window: int | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """The gradients of queries, keys, values, and of the prefix's keys and values."""
    dq_THC, dk_TKC, dv_TKC = map(torch.empty_like, (q_THC, k_TKC, v_TKC))
    dpast: list[torch.Tensor | None] = [None, None]
    if past[0] is not None:
        shape = (threads(), *past[0].shape)
        dpast = [torch.zeros(shape), torch.zeros(shape)]  # summed up by each thread
    _attention(
        "attend_backward",
        q_THC,
        k_TKC,
        v_TKC,
        past,
        lengths,
        scaling,
        window,
        grad=do_THC,
        dq=dq_THC,
        dk=dk_TKC,
        dv=dv_TKC,
        dpast_k=dpast[0],
        dpast_v=dpast[1],
    )
    dpast_k, dpast_v = (None if d is None else d.sum(0).to(q_THC.dtype) for d in dpast)
    return dq_THC, dk_TKC, dv_TKC, dpast_k, dpast_v


def _attention(
    name: str,
    q_THC: torch.Tensor,
    k_TKC: torch.Tensor,
    v_TKC: torch.Tensor,
    past: Past,
    lengths: Sequence[int],
    scaling: float,
    window: int | None,
    **others: torch.Tensor | None,
) -> None:
    """Call a kernel of attention; `others` are the fields of `Attention` that it alone needs."""
    prefix = 0 if past[0] is None else len(past[0])
    heads = Heads(q_THC.shape[1], k_TKC.shape[1], q_THC.shape[2], prefix, window or 0, scaling)
    starts = torch.tensor([0, *accumulate(lengths)])
    others |= {"q": q_THC, "k": k_TKC, "v": v_TKC, "past_k": past[0], "past_v": past[1]}
    others["starts"] = starts
    call = Attention(
        **{field: _address(x) for field, x in others.items()},
        **{"sequences": len(lengths), "heads": heads, "threads": threads()},
    )
    workspace = _workspace(_call("attention_workspace_bytes", q_THC.dtype, call))
    call.workspace = _address(workspace)
    _call(name, q_THC.dtype, call)
