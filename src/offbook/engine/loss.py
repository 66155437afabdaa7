"""The output head and the cross-entropy, of supervised tokens only."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from offbook.engine.memory import ByDevice
from offbook.engine.ops import Backend

# Memory for the logits of a chunk of tokens and what is computed from them: enough tokens for an
# efficient product. A GPU reads the whole head for each chunk.
CHUNK_BYTES = ByDevice(cpu=48_000_000, gpu=256_000_000)
FEWEST_TOKENS = 16  # of a chunk


def workspace_bytes(
    ops: Backend, vocabulary: int, dtype: torch.dtype, device: torch.device, tokens: int
) -> int:
    """Bytes of workspace that the loss of so many tokens needs."""
    all_logits = tokens * vocabulary * ops.bytes_per_logit(dtype)
    chunk = min(int(CHUNK_BYTES.on(device)), all_logits)
    return chunk + ops.linear_workspace_bytes(vocabulary, dtype)


def cross_entropy(
    ops: Backend, hidden_ND: torch.Tensor, head: nn.Module, targets_N: torch.Tensor
) -> torch.Tensor:
    """The cross-entropy of each of a frozen linear head's predictions, in nats.

    The gradient is computed along with the losses, in chunks of tokens, so that no tensor of all
    tokens x vocabulary is needed.

    Args:
        ops: the backend that computes it.
        hidden_ND: last hidden states of supervised tokens.
        head: linear, from D to V; it gets no gradient.
        targets_N: the ids to predict.

    Returns:
        Losses [N], in float32 or wider.
    """
    bias = getattr(head, "bias", None)
    loss_N: torch.Tensor = _CrossEntropy.apply(hidden_ND, head.weight, bias, targets_N, ops)
    return loss_N


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: torch.Tensor,
        weight_VD: torch.Tensor,
        bias_V: torch.Tensor | None,
        targets_N: torch.Tensor,
        ops: Backend,
    ) -> torch.Tensor:
        losses, gradients = [], []
        per_token = len(weight_VD) * ops.bytes_per_logit(weight_VD.dtype)
        tokens = max(int(CHUNK_BYTES.on(hidden_ND.device)) // per_token, FEWEST_TOKENS)
        chunks = max(math.ceil(len(targets_N) / tokens), 1)
        for h_ND, y_N in zip(*(x.chunk(chunks) for x in (hidden_ND, targets_N)), strict=True):
            loss_N, gradient_NV = ops.cross_entropy(ops.linear(h_ND, weight_VD, bias_V), y_N)
            losses.append(loss_N)
            if ctx.needs_input_grad[0]:
                gradients.append(ops.linear(gradient_NV, weight_VD.t()))
            del gradient_NV  # or it would be in memory beside the next chunk's logits
        ctx.save_for_backward(*gradients)
        return torch.cat(losses)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        dhidden_ND = torch.cat(ctx.saved_tensors)
        weights_N = grads[0].to(dhidden_ND.dtype)
        return dhidden_ND.mul_(weights_N[:, None]), None, None, None, None
