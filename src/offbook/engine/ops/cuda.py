"""The operations on an NVIDIA GPU from Ampere on, in bfloat16 or float16.

Products are cuBLAS's, attention is FlashAttention, and what lies between them is Triton's.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from itertools import repeat
from typing import Any

import torch
from torch.nn import functional as F

from offbook.engine.dropout import LEVELS, Masks
from offbook.engine.layout import Layout
from offbook.engine.ops.cuda_attention import WIDEST_HEAD, AttendPacked, can_attend
from offbook.engine.ops.torch import Torch
from offbook.engine.projection import Part, Projection

if find_spec("triton"):
    from offbook.engine.ops import cuda_kernels as kernels

WIDEST_RANK = 128  # whose parts of a product fit in registers
AMPERE = (8, 0)


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_THC: torch.Tensor, cos_TC: torch.Tensor, sin_TC: torch.Tensor
    ) -> torch.Tensor:
        ctx.save_for_backward(cos_TC, sin_TC)
        return kernels.rotate(x_THC, cos_TC, sin_TC, 1)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        cos_TC, sin_TC = ctx.saved_tensors
        return kernels.rotate(grads[0], cos_TC, sin_TC, -1), None, None


class _Gate(torch.autograd.Function):
    """`silu(gate) x`."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x, gate)
        return kernels.gate(x, gate)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return kernels.gate_backward(grads[0].contiguous(), *ctx.saved_tensors)


class _Project(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_TI: torch.Tensor,
        projections: Sequence[Projection],
        masks: Masks | None,
        *adapters: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        outputs = [F.linear(x_TI, p.weight(), p.bias) for p in projections]
        adapted = [n for n, p in enumerate(projections) if p.lora_A is not None]
        ctx.projections, ctx.adapted = projections, adapted
        if not adapted:
            ctx.save_for_backward(x_TI)
            return tuple(outputs)
        ctx.dropout = _dropout(projections[adapted[0]], masks)
        a_NRI = torch.stack([adapters[2 * n] for n in adapted])
        b = [adapters[2 * n + 1] for n in adapted]
        sizes = [len(b_OR) for b_OR in b]
        # One launch for all matrices: launches are what a step of a few short rows consists of.
        b_SR = torch.cat(b, out=x_TI.new_empty(sum(sizes), b[0].shape[1]))
        h_NTR = kernels.down(x_TI, a_NRI, ctx.dropout)
        for n, h_TR, b_OR in zip(adapted, h_NTR, b_SR.split(sizes), strict=True):
            outputs[n].addmm_(h_TR, b_OR.t())
        ctx.sizes = sizes
        ctx.save_for_backward(x_TI, a_NRI, b_SR, h_NTR)
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x_TI, *saved = ctx.saved_tensors
        dx_TI: torch.Tensor | None = None
        adapters: list[torch.Tensor | None] = list(repeat(None, 2 * len(ctx.projections)))
        if ctx.needs_input_grad[0]:
            for p, dy_TO in zip(ctx.projections, grads, strict=True):
                dx_TI = dy_TO @ p.weight() if dx_TI is None else dx_TI.addmm_(dy_TO, p.weight())
        if saved:
            a_NRI, b_SR, h_NTR = saved
            dh_NTR = torch.empty_like(h_NTR)
            parts = zip(ctx.adapted, h_NTR, dh_NTR, b_SR.split(ctx.sizes), strict=True)
            for n, h_TR, dh_TR, b_OR in parts:
                torch.mm(grads[n], b_OR, out=dh_TR)
                adapters[2 * n + 1] = _wide_product(grads[n].t(), h_TR)
            da_NRI = kernels.gradient_of_a(x_TI, dh_NTR, ctx.dropout)
            for n, da_RI in zip(ctx.adapted, da_NRI, strict=True):
                adapters[2 * n] = da_RI
            if dx_TI is not None:
                kernels.add_gradient_of_x(dx_TI, dh_NTR, a_NRI, ctx.dropout)
        return dx_TI, None, None, *adapters


class _ProjectParts(torch.autograd.Function):
    """As `_Project`, with one product for the tokens of all adapters; they are added to it."""

    @staticmethod
    def forward(
        ctx: Any, x_TI: torch.Tensor, parts: Sequence[Part], *adapters: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        outputs = [F.linear(x_TI, p.weight(), p.bias) for p in parts[0].projections]
        saved = [x_TI]
        ctx.parts, ctx.dropouts = parts, []
        own = iter(adapters)
        for part in parts:
            pairs = [(next(own), next(own)) for _ in part.projections]
            adapted = [n for n, p in enumerate(part.projections) if p.lora_A is not None]
            if not adapted:
                continue
            ctx.dropouts.append(_dropout(part.projections[adapted[0]], part.masks))
            a_NRI, b = torch.stack([pairs[n][0] for n in adapted]), [pairs[n][1] for n in adapted]
            b_SR = torch.cat(b, out=x_TI.new_empty(sum(map(len, b)), b[0].shape[1]))
            h_NTR = kernels.down(x_TI[part.rows], a_NRI, ctx.dropouts[-1])
            for n, h_TR, b_OR in zip(adapted, h_NTR, b_SR.split(list(map(len, b))), strict=True):
                outputs[n][part.rows].addmm_(h_TR, b_OR.t())
            saved += a_NRI, b_SR, h_NTR
        ctx.save_for_backward(*saved)
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x_TI, *saved = ctx.saved_tensors
        dx_TI: torch.Tensor | None = None
        if ctx.needs_input_grad[0]:
            for p, dy_TO in zip(ctx.parts[0].projections, grads, strict=True):
                dx_TI = dy_TO @ p.weight() if dx_TI is None else dx_TI.addmm_(dy_TO, p.weight())
        own = zip(saved[::3], saved[1::3], saved[2::3], ctx.dropouts, strict=True)
        adapters: list[torch.Tensor | None] = []
        for part in ctx.parts:
            found: list[torch.Tensor | None] = list(repeat(None, 2 * len(part.projections)))
            adapted = [n for n, p in enumerate(part.projections) if p.lora_A is not None]
            if adapted:
                a_NRI, b_SR, h_NTR, dropout = next(own)
                dh_NTR = torch.empty_like(h_NTR)
                heights = [part.projections[n].weight_shape[0] for n in adapted]
                of_layers = zip(adapted, h_NTR, dh_NTR, b_SR.split(heights), strict=True)
                for n, h_TR, dh_TR, b_OR in of_layers:
                    dy_TO = grads[n][part.rows]
                    torch.mm(dy_TO, b_OR, out=dh_TR)
                    found[2 * n + 1] = _wide_product(dy_TO.t(), h_TR)
                da_NRI = kernels.gradient_of_a(x_TI[part.rows], dh_NTR, dropout)
                for n, da_RI in zip(adapted, da_NRI, strict=True):
                    found[2 * n] = da_RI
                if dx_TI is not None:
                    kernels.add_gradient_of_x(dx_TI[part.rows], dh_NTR, a_NRI, dropout)
            adapters += found
        return dx_TI, None, *adapters


def _dropout(first: Projection, masks: Masks | None) -> kernels.Dropout:
    """That of projections of which this is the first."""
    return kernels.Dropout(first.scale, round(first.dropout * LEVELS), first.place, masks)


def _have_one_kernel(projections: Sequence[Projection]) -> bool:
    """Whether one launch computes the adapters of all of them."""
    adapted = [p for p in projections if p.lora_A is not None]
    kinds = {
        (p.scale, p.dropout, p.place - n, len(p.lora_A))
        for n, p in enumerate(adapted)
        if p.lora_A is not None
    }
    return len(kinds) <= 1 and all(rank <= WIDEST_RANK for *_, rank in kinds)


def _wide_product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """A product in float32, of factors in half precision."""
    if a.is_cuda and torch.__version__ >= "2.8":
        return torch.mm(a, b, out_dtype=torch.float32)
    return (a @ b).float()


class Cuda(Torch):
    """Faster than PyTorch's operations, for what it supports; the rest is left to them."""

    def supports(self, device: torch.device, dtype: torch.dtype, widths: Sequence[int]) -> bool:
        """As in `Backend`: half precision, on cards from Ampere on, where Triton is installed."""
        if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16):
            return False
        if not torch.cuda.is_available():
            return True  # planned for a card that is not here
        return bool(find_spec("triton")) and _is_ampere(device)

    def norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        return F.rms_norm(x, weight.shape, weight, eps)

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
        if gate_TI is not None:
            x_TI = _Gate.apply(x_TI.contiguous(), gate_TI.contiguous())
        if not _have_one_kernel(projections):
            return super().project(x_TI, None, projections, masks)
        adapters = [t for p in projections for t in (p.lora_A, p.lora_B)]
        outputs: tuple[torch.Tensor, ...] = _Project.apply(
            x_TI.contiguous(), projections, masks, *adapters
        )
        return outputs

    def project_parts(
        self, x_TI: torch.Tensor, gate_TI: torch.Tensor | None, parts: Sequence[Part]
    ) -> tuple[torch.Tensor, ...]:
        if gate_TI is not None:
            x_TI = _Gate.apply(x_TI.contiguous(), gate_TI.contiguous())
        if not all(_have_one_kernel(part.projections) for part in parts):
            return super().project_parts(x_TI, None, parts)
        adapters = [t for part in parts for p in part.projections for t in (p.lora_A, p.lora_B)]
        outputs: tuple[torch.Tensor, ...] = _ProjectParts.apply(x_TI.contiguous(), parts, *adapters)
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
        channels = q_THC.shape[2]
        if channels % 8 or channels > WIDEST_HEAD or not can_attend(layout, bool(past), window):
            return super().attend(q_THC, k_TKC, v_TKC, past, layout, scaling, window)
        past_k, past_v = past or (None, None)
        o_THC: torch.Tensor = AttendPacked.apply(
            q_THC, k_TKC, v_TKC, past_k, past_v, layout, scaling, window
        )
        return o_THC

    def cross_entropy(
        self, logits_NV: torch.Tensor, targets_N: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        logits_NV = logits_NV.contiguous()
        return kernels.cross_entropy(logits_NV, targets_N), logits_NV

    def saved_by_projection(
        self, width: int, projections: int, *, gated: bool, dropout: bool
    ) -> int:
        """As in `Backend`: the input, and what it is gated from; masks are computed again."""
        return width * (1 + 2 * gated)

    def saved_by_attention(self, heads: int, key_heads: int, channels: int, longest: int) -> int:
        """As in `Backend`: queries, keys and values; the output is `project`'s input."""
        return (heads + 2 * key_heads) * channels

    def bytes_per_logit(self, dtype: torch.dtype) -> int:
        """As in `Backend`: a logit, which its gradient overwrites."""
        return dtype.itemsize


@cache
def _is_ampere(device: torch.device) -> bool:
    return torch.version.hip is None and torch.cuda.get_device_capability(device) >= AMPERE
