"""Linear layers with LoRA, several on one input, with a backward pass of their own.

    y_i = x W_i' + b_i + s_i drop(x) A_i' B_i'

The input may be a gated one, `silu(gate) x`.

PEFT's own layer casts the input to float32, multiplies by a Bernoulli sample and lets autograd keep
what it meets. Here the input stays in the base's format and is kept once for all projections of it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from offbook.engine import kernels
from offbook.engine.dropout import drop, drop_, drop_probability, keep_mask
from offbook.engine.projection import Projection


def project(
    x: torch.Tensor, *layers: nn.Module, gate: torch.Tensor | None = None
) -> tuple[torch.Tensor, ...]:
    """Apply linear layers, with their adapters, to one input.

    Dropout acts in training mode, on each projection's adapter input independently, as in PEFT.

    Args:
        x: [..., in].
        layers: linear, of the same input width; see `Projection.of`.
        gate: as `x`; where there is one, the input is `silu(gate) x`.

    Returns:
        A tensor [..., out] for each projection.
    """
    flat = x.reshape(-1, x.shape[-1])
    flat_gate = None if gate is None else gate.reshape(flat.shape)
    projections = [p for p in map(Projection.of, layers) if p is not None]
    assert len(projections) == len(layers)
    adapters = [t for p in projections for t in (p.lora_A, p.lora_B)]
    widths = (side for p in projections for side in p.weight_shape)
    fused = kernels.take(flat.device, flat.dtype, *widths)
    if fused:
        outputs = _FusedProject.apply(flat, flat_gate, projections, *adapters)
    else:
        gated = flat if flat_gate is None else _Gate.apply(flat, flat_gate)
        outputs = _Project.apply(gated, projections, *adapters)
    return tuple(y.view(*x.shape[:-1], y.shape[-1]) for y in outputs)


class _Gate(torch.autograd.Function):
    """`silu(gate) x`, in PyTorch's operations."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x, gate)
        return F.silu(gate).mul_(x)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x, gate = ctx.saved_tensors
        dgate: torch.Tensor = torch.ops.aten.silu_backward(grads[0] * x, gate)
        return F.silu(gate).mul_(grads[0]), dgate


class _Project(torch.autograd.Function):
    """In PyTorch's operations. Letters: T tokens, I inputs, O outputs, R the rank."""

    @staticmethod
    def forward(
        ctx: Any, x_TI: torch.Tensor, projections: list[Projection], *adapters: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        outputs: list[torch.Tensor] = []
        kept: list[torch.Tensor | None] = [x_TI]
        for p in projections:
            y_TO = F.linear(x_TI, p.weight(), p.bias)
            h_TR = mask_TI = None
            if p.lora_A is not None and p.lora_B is not None:
                a_RI, b_OR = p.lora_A.to(x_TI.dtype), p.lora_B.to(x_TI.dtype)
                mask_TI = keep_mask(x_TI, p.dropout) if p.dropout else None
                h_TR = (x_TI if mask_TI is None else drop(x_TI, mask_TI)) @ a_RI.t()
                y_TO.addmm_(h_TR, b_OR.t(), alpha=_scale(p))
            outputs.append(y_TO)
            kept += h_TR, mask_TI
        ctx.projections = projections
        ctx.save_for_backward(*kept)
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x_TI, *kept = ctx.saved_tensors
        dx_TI: torch.Tensor | None = None
        adapters: list[torch.Tensor | None] = []
        for p, dy_TO, h_TR, mask_TI in zip(
            ctx.projections, grads, kept[::2], kept[1::2], strict=True
        ):
            if ctx.needs_input_grad[0]:
                dx_TI = dy_TO @ p.weight() if dx_TI is None else dx_TI.addmm_(dy_TO, p.weight())
            if p.lora_A is None:
                adapters += None, None
                continue
            a_RI, b_OR, scale = p.lora_A.to(x_TI.dtype), p.lora_B.to(x_TI.dtype), _scale(p)
            dh_TR = (dy_TO @ b_OR).mul_(scale)
            seen_TI = x_TI if mask_TI is None else drop(x_TI, mask_TI)
            adapters.append((dh_TR.t() @ seen_TI).to(p.lora_A.dtype))
            adapters.append((h_TR.t() @ dy_TO).t().to(p.lora_B.dtype).mul_(scale))
            if dx_TI is not None:
                if mask_TI is None:
                    dx_TI.addmm_(dh_TR, a_RI)
                else:
                    dx_TI.add_(drop_(dh_TR @ a_RI, mask_TI))
        return dx_TI, None, *adapters


class _FusedProject(torch.autograd.Function):
    """As `_Gate` and `_Project`. The gated input is made again for the backward pass, and masks,
    from their seeds, wherever they are applied.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x_TI: torch.Tensor,
        gate_TI: torch.Tensor | None,
        projections: list[Projection],
        *adapters: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        outputs: list[torch.Tensor] = []
        kept: list[torch.Tensor | None] = [x_TI, gate_TI]
        if gate_TI is not None:
            x_TI = kernels.swiglu(gate_TI, x_TI)
        ctx.projections, ctx.dropouts = projections, []
        for p in projections:
            h_TR = a_RI = b_RO = None
            dropout = kernels.NONE
            if p.lora_A is not None:
                a_RI, b_RO = _wide(p)
                dropout = kernels.Dropout.draw(p.dropout)
                h_TR = kernels.down(x_TI, a_RI, dropout)
            product = kernels.Product(x_TI, p.weight().contiguous(), h_TR, b_RO)
            outputs.append(kernels.multiply([product], p.bias))
            ctx.dropouts.append(dropout)
            kept += h_TR, a_RI, b_RO
        ctx.save_for_backward(*kept)
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x_TI, gate_TI, *kept = ctx.saved_tensors
        up_TI, dgate_TI = x_TI, None
        if gate_TI is not None:
            x_TI = kernels.swiglu(gate_TI, up_TI)
        products: list[kernels.Product] = []
        adapters: list[torch.Tensor | None] = []
        for p, dy_TO, h_TR, a_RI, b_RO, dropout in zip(
            ctx.projections, grads, kept[::3], kept[1::3], kept[2::3], ctx.dropouts, strict=True
        ):
            dy_TO, dh_TR = dy_TO.contiguous(), None
            if p.lora_A is None:
                adapters += None, None
            else:
                dh_TR, da_RI, db_RO = kernels.adapter_backward(x_TI, dy_TO, b_RO, h_TR, dropout)
                rank = len(p.lora_A)
                # In B's own order, or autograd would copy it.
                adapters += da_RI[:rank], db_RO[:rank].t().contiguous().mul_(_scale(p))
            weight_IO = p.weight().contiguous().t()
            products.append(kernels.Product(dy_TO, weight_IO, dh_TR, a_RI, dropout))
        dx_TI = kernels.multiply(products) if any(ctx.needs_input_grad[:2]) else None
        if dx_TI is not None and gate_TI is not None:
            dgate_TI, dx_TI = kernels.swiglu_backward(dx_TI, gate_TI, up_TI)
        return dx_TI, dgate_TI, None, *adapters


def _wide(p: Projection) -> tuple[torch.Tensor, torch.Tensor]:
    """A, and B transposed with the scale on it, in float32, with zeros for missing ranks."""
    assert p.lora_A is not None
    assert p.lora_B is not None
    a_RI = p.lora_A.float().contiguous()
    if missing := -len(a_RI) % kernels.RANKS:
        a_RI = F.pad(a_RI, (0, 0, 0, missing))
    b_RO = a_RI.new_zeros(len(a_RI), len(p.lora_B))
    torch.mul(p.lora_B.t(), _scale(p), out=b_RO[: p.lora_B.shape[1]])
    return a_RI, b_RO


def _scale(p: Projection) -> float:
    """The adapter's scale, with dropout's: what is kept stands for what is dropped."""
    return p.scaling / (1 - drop_probability(p.dropout))
