"""The operations, computed by PyTorch, for any device and format."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional as F

from offbook.engine.dropout import Masks
from offbook.engine.layout import Layout
from offbook.engine.ops.backend import Backend
from offbook.engine.ops.torch_attention import SAVED_SCORES, AttendInBlocks, attend_by_group
from offbook.engine.projection import Projection


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        scale = torch.rsqrt((wide * wide).mean(-1, keepdim=True) + eps)
        ctx.save_for_backward(x, weight, scale)
        return (wide * scale).to(x.dtype) * weight

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, scale = ctx.saved_tensors
        wide, dy = x.to(scale.dtype), (grads[0] * weight).to(scale.dtype)
        # The scale depends on x, which gives a gradient along x.
        along = (dy * wide).sum(-1, keepdim=True).mul_(scale * scale / -x.shape[-1])
        return torch.addcmul(dy, wide, along).mul_(scale).to(x.dtype), None, None


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_THC: torch.Tensor, cos_TC: torch.Tensor, sin_TC: torch.Tensor
    ) -> torch.Tensor:
        ctx.save_for_backward(cos_TC, sin_TC)
        return _rotated(x_THC, cos_TC, sin_TC, 1)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        cos_TC, sin_TC = ctx.saved_tensors
        return _rotated(grads[0], cos_TC, sin_TC, -1), None, None


def _rotated(
    x_THC: torch.Tensor, cos_TC: torch.Tensor, sin_TC: torch.Tensor, sign: int
) -> torch.Tensor:
    half = x_THC.shape[-1] // 2
    cos_T1C, sin_T1C = cos_TC.unsqueeze(1), sin_TC.unsqueeze(1)
    y_THC = x_THC * cos_T1C
    y_THC[..., :half].addcmul_(x_THC[..., half:], sin_T1C[..., :half], value=-sign)
    y_THC[..., half:].addcmul_(x_THC[..., :half], sin_T1C[..., half:], value=sign)
    return y_THC


class _Gate(torch.autograd.Function):
    """`silu(gate) x`."""

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
    @staticmethod
    def forward(
        ctx: Any,
        x_TI: torch.Tensor,
        projections: Sequence[Projection],
        masks: Masks | None,
        *adapters: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        outputs: list[torch.Tensor] = []
        saved: list[torch.Tensor | None] = [x_TI]
        for p in projections:
            y_TO = F.linear(x_TI, p.weight(), p.bias)
            h_TR = kept_TI = None
            if p.lora_A is not None and p.lora_B is not None:
                a_RI, b_OR = p.lora_A.to(x_TI.dtype), p.lora_B.to(x_TI.dtype)
                if p.dropout:
                    assert masks is not None
                    kept_TI = masks.keep(p.place, x_TI.shape[1], p.dropout)
                h_TR = _drop(x_TI, kept_TI) @ a_RI.t()
                y_TO.addmm_(h_TR, b_OR.t(), alpha=p.scale)
            outputs.append(y_TO)
            saved += h_TR, kept_TI
        ctx.projections = projections
        ctx.save_for_backward(*saved)
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x_TI, *saved = ctx.saved_tensors
        dx_TI: torch.Tensor | None = None
        adapters: list[torch.Tensor | None] = []
        for p, dy_TO, h_TR, kept_TI in zip(
            ctx.projections, grads, saved[::2], saved[1::2], strict=True
        ):
            if ctx.needs_input_grad[0]:
                dx_TI = dy_TO @ p.weight() if dx_TI is None else dx_TI.addmm_(dy_TO, p.weight())
            if p.lora_A is None:
                adapters += None, None
                continue
            a_RI, b_OR, scale = p.lora_A.to(x_TI.dtype), p.lora_B.to(x_TI.dtype), p.scale
            dh_TR = (dy_TO @ b_OR).mul_(scale)
            adapters.append((dh_TR.t() @ _drop(x_TI, kept_TI)).to(p.lora_A.dtype))
            adapters.append((h_TR.t() @ dy_TO).t().to(p.lora_B.dtype).mul_(scale))
            if dx_TI is not None:
                if kept_TI is None:
                    dx_TI.addmm_(dh_TR, a_RI)
                else:
                    dx_TI.add_(_drop(dh_TR @ a_RI, kept_TI))
        return dx_TI, None, None, *adapters


def _drop(x_TI: torch.Tensor, kept_TI: torch.Tensor | None) -> torch.Tensor:
    return x_TI if kept_TI is None else torch.where(kept_TI, x_TI, 0)


class Torch(Backend):
    """PyTorch's operations."""

    def supports(self, device: torch.device, dtype: torch.dtype, widths: Sequence[int]) -> bool:
        """As in `Backend`; PyTorch computes everything."""
        return True

    def norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        y: torch.Tensor = _Norm.apply(x, weight, eps)
        return y

    def rotate(
        self, x_THC: torch.Tensor, cos_TC: torch.Tensor, sin_TC: torch.Tensor
    ) -> torch.Tensor:
        y_THC: torch.Tensor = _Rotate.apply(x_THC, cos_TC, sin_TC)
        return y_THC

    def project(
        self,
        x_TI: torch.Tensor,
        gate_TI: torch.Tensor | None,
        projections: Sequence[Projection],
        masks: Masks | None = None,
    ) -> tuple[torch.Tensor, ...]:
        adapters = [t for p in projections for t in (p.lora_A, p.lora_B)]
        gated_TI = x_TI if gate_TI is None else _Gate.apply(x_TI, gate_TI)
        outputs: tuple[torch.Tensor, ...] = _Project.apply(gated_TI, projections, masks, *adapters)
        return outputs

    def attend(
        self,
        q_THC: torch.Tensor,
        k_TKC: torch.Tensor,
        v_TKC: torch.Tensor,
        past: tuple[torch.Tensor, torch.Tensor] | None,
        layout: Layout,
        scaling: float,
        window: int | None,
    ) -> torch.Tensor:
        compute = AttendInBlocks.apply if q_THC.device.type == "cpu" else attend_by_group
        past_k, past_v = past or (None, None)
        o_THC: torch.Tensor = compute(q_THC, k_TKC, v_TKC, past_k, past_v, layout, scaling, window)
        return o_THC

    def linear(
        self, x_TI: torch.Tensor, weight_OI: torch.Tensor, bias_O: torch.Tensor | None = None
    ) -> torch.Tensor:
        return F.linear(x_TI, weight_OI, bias_O)

    def cross_entropy(
        self, logits_NV: torch.Tensor, targets_N: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        wide = torch.promote_types(logits_NV.dtype, torch.float32)
        log_p_NV = torch.log_softmax(logits_NV.to(wide), -1)
        loss_N = -log_p_NV.gather(1, targets_N[:, None])[:, 0]
        gradient_NV = log_p_NV.exp_()  # probabilities, minus one at the target
        gradient_NV[torch.arange(len(targets_N), device=targets_N.device), targets_N] -= 1
        return loss_N, gradient_NV.to(logits_NV.dtype)

    def saved_by_projection(
        self, width: int, projections: int, *, gated: bool, dropout: bool
    ) -> int:
        """As in `Backend`: the input, what it is gated from, and masks, a quarter of a float32."""
        return width * (1 + 2 * gated) + width * projections * dropout // 4

    def saved_by_attention(self, heads: int, key_heads: int, channels: int, longest: int) -> int:
        """As in `Backend`: queries, keys, values, and the probabilities of short sequences."""
        return (heads + 2 * key_heads) * channels + min(heads * longest, SAVED_SCORES)

    def bytes_per_logit(self, dtype: torch.dtype) -> int:
        """As in `Backend`: a logit and its gradient, and both in float32 or wider."""
        return 2 * dtype.itemsize + 2 * torch.promote_types(dtype, torch.float32).itemsize

    def linear_workspace_bytes(self, width: int, dtype: torch.dtype) -> int:
        """As in `Backend`; PyTorch's own workspace is not known."""
        return 0
