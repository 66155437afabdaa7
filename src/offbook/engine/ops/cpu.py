"""The operations as fused C++ kernels, for bfloat16 and float32 on a CPU.

A fused operation goes over memory once, and saves less for backward: a gated input is computed
again there, and dropout masks are computed wherever they are applied.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.nn import functional as F

from offbook.engine.dropout import Masks
from offbook.engine.layout import Layout
from offbook.engine.ops import kernels
from offbook.engine.ops.backend import Backend
from offbook.engine.ops.library import library
from offbook.engine.ops.threads import own_threads
from offbook.engine.projection import Part, Projection


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        x_TI = x.contiguous().view(-1, x.shape[-1])
        y_TI, scale_T = kernels.rms_norm(x_TI, weight, eps)
        ctx.save_for_backward(x_TI, weight, scale_T)
        return y_TI.view(x.shape)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x_TI, weight, scale_T = ctx.saved_tensors
        dy_TI = grads[0].contiguous().view(x_TI.shape)
        dx_TI = kernels.rms_norm_backward(dy_TI, x_TI, weight, scale_T)
        return dx_TI.view(grads[0].shape), None, None


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_THC: torch.Tensor, cos_TC: torch.Tensor, sin_TC: torch.Tensor
    ) -> torch.Tensor:
        ctx.save_for_backward(cos_TC, sin_TC)
        return kernels.rotate(*(x.contiguous() for x in (x_THC, cos_TC, sin_TC)))

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        tensors = (x.contiguous() for x in (grads[0], *ctx.saved_tensors))
        return kernels.rotate(*tensors, back=True), None, None


class _Project(torch.autograd.Function):
    """Frozen products for all tokens, and to each of these, the adapter of its part."""

    @staticmethod
    def forward(
        ctx: Any,
        x_TI: torch.Tensor,
        gate_TI: torch.Tensor | None,
        parts: Sequence[Part],
        *adapters: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        outputs: list[torch.Tensor] = []
        saved: list[torch.Tensor | None] = [x_TI, gate_TI]
        if gate_TI is not None:
            x_TI = kernels.swiglu(gate_TI, x_TI)
        ctx.parts, ctx.dropouts = parts, []
        for n, frozen in enumerate(parts[0].projections):
            products = [kernels.Product(x_TI, frozen.weight().contiguous())]
            for part in parts:
                p, h_TR, a_RI, b_RO = part.projections[n], None, None, None
                dropout = kernels.NONE
                if p.lora_A is not None:
                    a_RI, b_RO = _adapter(p)
                    dropout = kernels.Dropout.of(p, part.masks)
                    h_TR = kernels.lora_a(x_TI[part.rows], a_RI, dropout)
                    _add(products, part.rows, h_TR, b_RO)
                ctx.dropouts.append(dropout)
                saved += h_TR, a_RI, b_RO
            outputs.append(kernels.multiply(products, frozen.bias))
        ctx.save_for_backward(*saved)
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x_TI, gate_TI, *saved = ctx.saved_tensors
        up_TI, dgate_TI = x_TI, None
        if gate_TI is not None:
            x_TI = kernels.swiglu(gate_TI, up_TI)
        products: list[kernels.Product] = []
        adapters: list[torch.Tensor | None] = []
        own = zip(saved[::3], saved[1::3], saved[2::3], ctx.dropouts, strict=True)
        for n, dy_TO in enumerate(grads):
            dy_TO = dy_TO.contiguous()
            weight_IO = ctx.parts[0].projections[n].weight().contiguous().t()
            of_layer = [kernels.Product(dy_TO, weight_IO)]
            for part in ctx.parts:
                h_TR, a_RI, b_RO, dropout = next(own)
                p, rows = part.projections[n], part.rows
                if p.lora_A is None:
                    adapters += None, None
                    continue
                dh_TR, da_RI, db_RO = kernels.lora_backward(
                    x_TI[rows], dy_TO[rows], b_RO, h_TR, dropout
                )
                rank = len(p.lora_A)
                # Contiguous as B is, or autograd would copy it.
                adapters += da_RI[:rank], db_RO[:rank].t().contiguous().mul_(p.scale)
                _add(of_layer, rows, dh_TR, a_RI, dropout)
            products += of_layer
        dx_TI = kernels.multiply(products) if any(ctx.needs_input_grad[:2]) else None
        if dx_TI is not None and gate_TI is not None:
            dgate_TI, dx_TI = kernels.swiglu_backward(dx_TI, gate_TI, up_TI)
        return dx_TI, dgate_TI, None, *adapters


def _add(
    products: list[kernels.Product],
    rows: slice,
    h_TR: torch.Tensor,
    b_RO: torch.Tensor,
    dropout: kernels.Dropout = kernels.NONE,
) -> None:
    """Add an adapter to the product of some rows: a term of its own, where that has one already."""
    last = products[-1]
    if last.h is None:
        products[-1] = kernels.Product(last.x, last.weight, h_TR, b_RO, dropout, rows)
    else:
        nothing = last.x[:, :0], last.weight[:, :0]
        products.append(kernels.Product(*nothing, h_TR, b_RO, dropout, rows))


def _adapter(p: Projection) -> tuple[torch.Tensor, torch.Tensor]:
    """A [R, I], and B transposed and scaled [R, O], in float32; the rank is padded with zeros."""
    assert p.lora_A is not None
    assert p.lora_B is not None
    a_RI = p.lora_A.float().contiguous()
    if missing := -len(a_RI) % library().rank_multiple:
        a_RI = F.pad(a_RI, (0, 0, 0, missing))
    b_RO = a_RI.new_zeros(len(a_RI), len(p.lora_B))
    torch.mul(p.lora_B.t(), p.scale, out=b_RO[: p.lora_B.shape[1]])
    return a_RI, b_RO


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q_THC: torch.Tensor,
        k_TKC: torch.Tensor,
        v_TKC: torch.Tensor,
        past_k: torch.Tensor | None,
        past_v: torch.Tensor | None,
        *facts: Any,
    ) -> torch.Tensor:
        q_THC, k_TKC, v_TKC = (x.contiguous() for x in (q_THC, k_TKC, v_TKC))
        if past_k is not None and past_v is not None:
            past_k, past_v = past_k.contiguous(), past_v.contiguous()
        ctx.facts = facts
        ctx.save_for_backward(q_THC, k_TKC, v_TKC, past_k, past_v)
        return kernels.attend(q_THC, k_TKC, v_TKC, (past_k, past_v), *facts)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q_THC, k_TKC, v_TKC, *past = ctx.saved_tensors
        do_THC = grads[0].contiguous()
        gradients = kernels.attend_backward(do_THC, q_THC, k_TKC, v_TKC, tuple(past), *ctx.facts)
        return *gradients, None, None, None


class Cpu(Backend):
    """The kernels of `native/`."""

    def supports(self, device: torch.device, dtype: torch.dtype, widths: Sequence[int]) -> bool:
        """As in `Backend`: whether there are kernels for this device, format and widths."""
        return (
            device.type == "cpu"
            and dtype in kernels.SUFFIXES
            and library().code is not None
            and all(width % library().width_multiple == 0 for width in widths)
        )

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
        return self.project_parts(x_TI, gate_TI, [Part(slice(len(x_TI)), projections, masks)])

    def project_parts(
        self, x_TI: torch.Tensor, gate_TI: torch.Tensor | None, parts: Sequence[Part]
    ) -> tuple[torch.Tensor, ...]:
        of_layers = zip(*(part.projections for part in parts), strict=True)
        adapters = [t for layer in of_layers for p in layer for t in (p.lora_A, p.lora_B)]
        outputs: tuple[torch.Tensor, ...] = _Project.apply(x_TI, gate_TI, parts, *adapters)
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
        facts = layout.lengths, scaling, window
        o_THC: torch.Tensor = _Attend.apply(q_THC, k_TKC, v_TKC, *(past or (None, None)), *facts)
        return o_THC

    def linear(
        self, x_TI: torch.Tensor, weight_OI: torch.Tensor, bias_O: torch.Tensor | None = None
    ) -> torch.Tensor:
        return kernels.linear(x_TI, weight_OI, bias_O)

    def cross_entropy(
        self, logits_NV: torch.Tensor, targets_N: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As in `Backend`: the gradient overwrites the logits."""
        return kernels.cross_entropy_(logits_NV, targets_N), logits_NV

    def saved_by_projection(
        self, width: int, projections: int, *, gated: bool, dropout: bool
    ) -> int:
        """As in `Backend`: the input, and the gate."""
        return width * (1 + gated)

    def saved_by_attention(self, heads: int, key_heads: int, channels: int, longest: int) -> int:
        """As in `Backend`: queries, keys and values; probabilities are computed again."""
        return (heads + 2 * key_heads) * channels

    def bytes_per_logit(self, dtype: torch.dtype) -> int:
        return dtype.itemsize

    def linear_workspace_bytes(self, width: int, dtype: torch.dtype) -> int:
        return kernels.linear_workspace_bytes(width, dtype)


def threads_for(backends: Iterable[Backend], dtype: torch.dtype) -> AbstractContextManager[None]:
    """The threads to compute a model on: the kernels' own where kernels compute all its layers."""
    fused = all(isinstance(backend, Cpu) for backend in backends)
    return own_threads() if fused and library().multiplies(dtype) else nullcontext()
