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
        linear, errors = (kernels.linear, _fused_errors) if fused else (F.linear, _errors)
        chunks = max(math.ceil(len(targets_N) / _chunk_rows(weight_VD, fused=fused)), 1)
        for h_CD, y_C in zip(*(x.chunk(chunks) for x in (hidden_ND, targets_N)), strict=True):
            loss, error_CV = errors(linear(h_CD, weight_VD, bias_V), y_C)
            total += loss
            if ctx.needs_input_grad[0]:
                gradients.append(linear(error_CV, weight_VD.t()))
            del error_CV  # or it would be there beside the logits of the next chunk
        ctx.save_for_backward(*gradients)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        dhidden_ND = torch.cat(ctx.saved_tensors)
        return dhidden_ND.mul_(grads[0].to(dhidden_ND.dtype)), None, None, None


def _errors(logits_CV: torch.Tensor, targets_C: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The summed cross-entropy, and its gradient for the logits."""
    wide = torch.promote_types(logits_CV.dtype, torch.float32)
    log_p_CV = torch.log_softmax(logits_CV.to(wide), -1)
    loss = -log_p_CV.gather(1, targets_C[:, None]).sum()
    error_CV = log_p_CV.exp_()  # p, less one at the target
    error_CV[torch.arange(len(targets_C), device=targets_C.device), targets_C] -= 1
    return loss, error_CV.to(logits_CV.dtype)


def _fused_errors(
    logits_CV: torch.Tensor, targets_C: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `_errors`; the gradient takes the place of the logits."""
    return kernels.cross_entropy_(logits_CV, targets_C).sum(), logits_CV


def _chunk_rows(weight_VD: torch.Tensor, *, fused: bool) -> int:
    """Rows of hidden states that go through the head at a time."""
    vocabulary, dtype = len(weight_VD), weight_VD.dtype
    if fused:
        of_a_logit = dtype.itemsize  # the gradient takes its place
    else:
        of_a_logit = 2 * dtype.itemsize + 2 * torch.promote_types(dtype, torch.float32).itemsize
    return max(CHUNK_BYTES // (of_a_logit * vocabulary), 16)
