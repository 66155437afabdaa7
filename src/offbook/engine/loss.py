"""The output head and the cross-entropy, at supervised positions alone."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from offbook.engine import kernels

# Bytes of one chunk of logits and of what is made of them: enough rows for an efficient product.
CHUNK_BYTES = 48_000_000


def summed_cross_entropy(
    hidden_ND: torch.Tensor, head: nn.Module, targets_N: torch.Tensor
) -> torch.Tensor:
    """The summed cross-entropy of a frozen linear head's predictions, in nats.

    The gradient is computed along with the loss, chunk by chunk, so nothing of the size tokens x
    vocabulary is kept.

    Args:
        hidden_ND: last hidden states of supervised positions.
        head: linear, from D to the vocabulary; it gets no gradient.
        targets_N: the ids to predict.

    Returns:
        A scalar, in float32 or better.
    """
    bias = getattr(head, "bias", None)
    return _SummedCrossEntropy.apply(hidden_ND, head.weight, bias, targets_N)  # type: ignore[no-any-return]


class _SummedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: torch.Tensor,
        weight_VD: torch.Tensor,
        bias_V: torch.Tensor | None,
        targets_N: torch.Tensor,
    ) -> torch.Tensor:
        wide = torch.promote_types(hidden_ND.dtype, torch.float32)
        total = torch.zeros((), dtype=wide, device=hidden_ND.device)
        gradients = []
        fused = kernels.fit(hidden_ND, weight_VD) and kernels.fit(weight_VD.t())
        linear = kernels.linear if fused else F.linear
        chunks = max(math.ceil(len(targets_N) / _chunk_rows(weight_VD, fused=fused)), 1)
        for h_CD, y_C in zip(*(x.chunk(chunks) for x in (hidden_ND, targets_N)), strict=True):
            logits_CV = linear(h_CD, weight_VD, bias_V)
            if fused:
                total += kernels.cross_entropy_(logits_CV, y_C).sum()
                error_CV = logits_CV
            else:
                log_p_CV = torch.log_softmax(logits_CV.to(wide), -1)
                total -= log_p_CV.gather(1, y_C[:, None]).sum()
                error_CV = log_p_CV.exp_()  # p, less one at the target
                error_CV[torch.arange(len(y_C), device=y_C.device), y_C] -= 1
            if ctx.needs_input_grad[0]:
                gradients.append(linear(error_CV.to(hidden_ND.dtype), weight_VD.t()))
        ctx.save_for_backward(*gradients)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        dhidden_ND = torch.cat(ctx.saved_tensors)
        return dhidden_ND.mul_(grads[0].to(dhidden_ND.dtype)), None, None, None


def _chunk_rows(weight_VD: torch.Tensor, *, fused: bool) -> int:
    """Rows of hidden states that go through the head at a time."""
    vocabulary, dtype = len(weight_VD), weight_VD.dtype
    if fused:
        of_a_logit = dtype.itemsize  # the gradient takes its place
    else:
        of_a_logit = 2 * dtype.itemsize + 2 * torch.promote_types(dtype, torch.float32).itemsize
    return max(CHUNK_BYTES // (of_a_logit * vocabulary), 16)
