"""Linear layers with LoRA, several on one input, with a backward pass of their own.

    y_i = x W_i' + b_i + s_i drop(x) A_i' B_i'

PEFT's own layer casts the input to float32, multiplies by a Bernoulli sample and lets autograd keep
what it meets. Here the input stays in the base's format and is kept once for all projections of it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

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
        hidden: list[torch.Tensor | None] = []
        masks: list[torch.Tensor | None] = []
        for p in projections:
            y_TO = F.linear(x_TI, p.weight(), p.bias)
            if p.lora_A is not None and p.lora_B is not None:
                a_RI, b_OR = p.lora_A.to(x_TI.dtype), p.lora_B.to(x_TI.dtype)
                mask = keep_mask(x_TI, p.dropout) if p.dropout else None
                h_TR = (x_TI if mask is None else drop(x_TI, mask)) @ a_RI.t()
                y_TO.addmm_(h_TR, b_OR.t(), alpha=_scale(p))
                hidden.append(h_TR)
                masks.append(mask)
            else:
                hidden.append(None)
                masks.append(None)
            outputs.append(y_TO)
        ctx.projections = projections
        ctx.save_for_backward(x_TI, *hidden, *masks)
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x_TI, *saved = ctx.saved_tensors
        hidden, masks = saved[: len(grads)], saved[len(grads) :]
        dx_TI: torch.Tensor | None = None
        adapters: list[torch.Tensor | None] = []
        for p, dy_TO, h_TR, mask in zip(ctx.projections, grads, hidden, masks, strict=True):
            if ctx.needs_input_grad[0]:
                dx_TI = dy_TO @ p.weight() if dx_TI is None else dx_TI.addmm_(dy_TO, p.weight())
            if h_TR is None:
                adapters += [None, None]
                continue
            a_RI, b_OR, scale = p.lora_A.to(x_TI.dtype), p.lora_B.to(x_TI.dtype), _scale(p)
            dh_TR = (dy_TO @ b_OR).mul_(scale)
            db_OR = (h_TR.t() @ dy_TO).t().to(p.lora_B.dtype).mul_(scale)
            seen_TI = x_TI if mask is None else drop(x_TI, mask)
            da_RI = (dh_TR.t() @ seen_TI).to(p.lora_A.dtype)
            adapters += [da_RI, db_OR]
            if dx_TI is not None:
                if mask is None:
                    dx_TI.addmm_(dh_TR, a_RI)
                else:
                    dx_TI.add_(drop_(dh_TR @ a_RI, mask))
        return dx_TI, None, *adapters


def _scale(p: Projection) -> float:
    """The adapter's scale, with dropout's: what is kept stands for what is dropped."""
    return p.scaling / (1 - drop_probability(p.dropout))
