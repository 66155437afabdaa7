"""Linear layers with LoRA, several on one input, with a backward pass of their own.

    y_i = x W_i' + b_i + s_i drop(x) A_i' B_i'

PEFT's own layer casts the input to float32, multiplies by a Bernoulli sample and lets autograd keep
what it meets. Here the input stays in the base's format and is kept once for all projections of it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from offbook.engine import kernels
from offbook.engine.dropout import drop, drop_, drop_probability, keep_mask
from offbook.model import Projection


def project(x: torch.Tensor, *layers: nn.Module) -> tuple[torch.Tensor, ...]:
    """Apply linear layers, with their adapters, to one input.

    Dropout acts in training mode, on each projection's adapter input independently, as in PEFT.

    Args:
        x: [..., in].
        layers: linear, of the same input width; see `Projection.of`.

    Returns:
        A tensor [..., out] for each projection.
    """
    flat = x.reshape(-1, x.shape[-1])
    projections = [Projection.of(layer) for layer in layers]
    adapters = [t for p in projections if p for t in (p.lora_A, p.lora_B)]
    outputs = _Project.apply(flat, projections, *adapters)
    return tuple(y.view(*x.shape[:-1], y.shape[-1]) for y in outputs)


class _Project(torch.autograd.Function):
    """Letters: T tokens, I inputs, O outputs, R the rank."""

    @staticmethod
    def forward(
        ctx: Any, x_TI: torch.Tensor, projections: list[Projection], *adapters: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        outputs: list[torch.Tensor] = []
        updates: list[Update | None] = []
        for p in projections:
            y_TO = F.linear(x_TI, p.weight(), p.bias)
            if p.lora_A is None:
                updates.append(None)
            elif kernels.fit(x_TI, y_TO):
                updates.append(_add_fused(p, x_TI, y_TO))
            else:
                updates.append(_add(p, x_TI, y_TO))
            outputs.append(y_TO)
        ctx.projections = projections
        ctx.dropouts = [update.dropout if update else None for update in updates]
        kept = [update.kept if update else (None, None, None) for update in updates]
        ctx.save_for_backward(x_TI, *(tensor for three in kept for tensor in three))
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x_TI, *saved = ctx.saved_tensors
        dx_TI: torch.Tensor | None = None
        adapters: list[torch.Tensor | None] = []
        kept = zip(saved[::3], saved[1::3], saved[2::3], strict=True)
        for p, dy_TO, of_p, dropout in zip(ctx.projections, grads, kept, ctx.dropouts, strict=True):
            if ctx.needs_input_grad[0]:
                dx_TI = dy_TO @ p.weight() if dx_TI is None else dx_TI.addmm_(dy_TO, p.weight())
            if p.lora_A is None:
                adapters += [None, None]
            elif dropout is not None:
                adapters += _backward_fused(p, x_TI, dy_TO, *of_p, dropout, dx_TI)
            else:
                adapters += _backward(p, x_TI, dy_TO, *of_p[:2], dx_TI)
        return dx_TI, None, *adapters


class Update(NamedTuple):
    """What the backward pass of an adapter needs.

    Attributes:
        kept: the hidden activations [T, R], and the mask [T, I]; or, fused, A and B as they were
            multiplied.
        dropout: fused, what makes the mask again.
    """

    kept: tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]
    dropout: kernels.Dropout | None = None


def _add(p: Projection, x_TI: torch.Tensor, y_TO: torch.Tensor) -> Update:
    """Add an adapter's part to `y`, in place."""
    assert p.lora_A is not None
    assert p.lora_B is not None
    a_RI, b_OR = p.lora_A.to(x_TI.dtype), p.lora_B.to(x_TI.dtype)
    mask_TI = keep_mask(x_TI, p.dropout) if p.dropout else None
    h_TR = (x_TI if mask_TI is None else drop(x_TI, mask_TI)) @ a_RI.t()
    y_TO.addmm_(h_TR, b_OR.t(), alpha=_scale(p))
    return Update((h_TR, mask_TI, None))


def _backward(
    p: Projection,
    x_TI: torch.Tensor,
    dy_TO: torch.Tensor,
    h_TR: torch.Tensor,
    mask_TI: torch.Tensor | None,
    dx_TI: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradients of A and B; that of `x` is added to `dx`, in place."""
    assert p.lora_A is not None
    assert p.lora_B is not None
    a_RI, b_OR, scale = p.lora_A.to(x_TI.dtype), p.lora_B.to(x_TI.dtype), _scale(p)
    dh_TR = (dy_TO @ b_OR).mul_(scale)
    db_OR = (h_TR.t() @ dy_TO).t().to(p.lora_B.dtype).mul_(scale)
    seen_TI = x_TI if mask_TI is None else drop(x_TI, mask_TI)
    da_RI = (dh_TR.t() @ seen_TI).to(p.lora_A.dtype)
    if dx_TI is not None:
        if mask_TI is None:
            dx_TI.addmm_(dh_TR, a_RI)
        else:
            dx_TI.add_(drop_(dh_TR @ a_RI, mask_TI))
    return da_RI, db_OR


def _add_fused(p: Projection, x_TI: torch.Tensor, y_TO: torch.Tensor) -> Update:
    """As `_add`, in two passes."""
    a_RI, b_RO = _wide(p)
    dropout = kernels.Dropout.draw(p.dropout)
    h_TR = kernels.down(x_TI, a_RI, dropout)
    kernels.add_up(y_TO, h_TR, b_RO)
    return Update((h_TR, a_RI, b_RO), dropout)


def _backward_fused(
    p: Projection,
    x_TI: torch.Tensor,
    dy_TO: torch.Tensor,
    h_TR: torch.Tensor,
    a_RI: torch.Tensor,
    b_RO: torch.Tensor,
    dropout: kernels.Dropout,
    dx_TI: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `_backward`, with the mask made again from its seed where it is applied."""
    assert p.lora_A is not None
    rank, dy_TO = len(p.lora_A), dy_TO.contiguous()
    dh_TR = kernels.down(dy_TO, b_RO)
    db_RO = kernels.outer(dy_TO, h_TR).mul_(_scale(p))
    da_RI = kernels.outer(x_TI, dh_TR, dropout)
    if dx_TI is not None:
        kernels.add_up(dx_TI, dh_TR, a_RI, dropout)
    return da_RI[:rank], db_RO[:rank].t()


def _wide(p: Projection) -> tuple[torch.Tensor, torch.Tensor]:
    """A, and B transposed with the scale on it, in float32, with zeros for missing ranks."""
    assert p.lora_A is not None
    assert p.lora_B is not None
    a_RI, b_RO = p.lora_A.float(), p.lora_B.float().t() * _scale(p)
    if missing := -len(a_RI) % kernels.RANKS:
        a_RI, b_RO = (F.pad(x, (0, 0, 0, missing)) for x in (a_RI, b_RO))
    return a_RI.contiguous(), b_RO.contiguous()


def _scale(p: Projection) -> float:
    """The adapter's scale, with dropout's: what is kept stands for what is dropped."""
    return p.scaling / (1 - drop_probability(p.dropout))
