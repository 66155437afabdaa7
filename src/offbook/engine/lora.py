"""Linear layers with LoRA, several on one input, with a backward pass of their own.

    y_i = x W_i' + b_i + s_i drop(x) A_i' B_i'

The input may be a gated one, `silu(gate) x`.

PEFT's own layer casts the input to float32, draws a Bernoulli mask for it, and autograd saves every
intermediate result. Here the input stays in the base's format, and is saved once for all layers
that share it.
"""

from __future__ import annotations

import torch
from torch import nn

from offbook.engine.dropout import Masks
from offbook.engine.joint import JointMasks
from offbook.engine.ops import Backend, choose
from offbook.engine.projection import Projection


def backend_for(device: torch.device, dtype: torch.dtype, *layers: nn.Module) -> Backend:
    """The backend for `project` with these layers."""
    projections = [p for p in map(Projection.of, layers) if p is not None]
    return choose(device, dtype, [width for p in projections for width in p.weight_shape])


def project(
    ops: Backend,
    x: torch.Tensor,
    *layers: nn.Module,
    gate: torch.Tensor | None = None,
    masks: Masks | None = None,
) -> tuple[torch.Tensor, ...]:
    """Apply linear layers, with their adapters, to one input.

    In training mode, dropout acts on each adapter's input independently, as in PEFT.

    Args:
        ops: the backend that computes it.
        x: [..., I].
        layers: linear, of the same input width; see `Projection.of`.
        gate: of the shape of `x`; if there is one, the input is `silu(gate) x`.
        masks: of dropout; needed in training mode.

    Returns:
        A tensor [..., O] for each layer.
    """
    x_TI = x.reshape(-1, x.shape[-1])
    gate_TI = None if gate is None else gate.reshape(x_TI.shape)
    if isinstance(masks, JointMasks):
        outputs = ops.project_parts(x_TI, gate_TI, masks.parts(layers))
    else:
        projections = [p for p in map(Projection.of, layers) if p is not None]
        assert len(projections) == len(layers)
        outputs = ops.project(x_TI, gate_TI, projections, masks)
    return tuple(y_TO.view(*x.shape[:-1], y_TO.shape[-1]) for y_TO in outputs)
