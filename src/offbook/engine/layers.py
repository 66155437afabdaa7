"""The parts of a Llama-family layer, with backward passes of their own, and their installation.

An instance in the model is replaced by one that holds the same projections under the same names;
classes are never patched. What is not recognized stays as it is.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from offbook.engine import kernels
from offbook.engine.attention import attend
from offbook.engine.lora import project
from offbook.engine.packing import Rows
from offbook.engine.projection import Projection

# transformers' classes that compute just what the modules below do.
ATTENTIONS = ("LlamaAttention", "MistralAttention", "Qwen2Attention", "Qwen3Attention")
NORMS = ("LlamaRMSNorm", "MistralRMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm")
MLPS = ("LlamaMLP", "MistralMLP", "Qwen2MLP", "Qwen3MLP")


class RMSNorm(nn.Module):
    """Root-mean-square norm with a frozen weight (Zhang and Sennrich, 2019, arXiv:1910.07467)."""

    def __init__(self, plain: Any) -> None:
        super().__init__()
        self.weight, self.eps = plain.weight, plain.variance_epsilon

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., hidden] -> [..., hidden]."""
        norm = _FusedRMSNorm if kernels.fit(x, self.weight) else _RMSNorm
        return norm.apply(x, self.weight, self.eps)  # type: ignore[no-any-return]


class _RMSNorm(torch.autograd.Function):
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
        # The scale depends on x: its share is along x.
        along = (dy * wide).sum(-1, keepdim=True).mul_(scale * scale / -x.shape[-1])
        return torch.addcmul(dy, wide, along).mul_(scale).to(x.dtype), None, None


class _FusedRMSNorm(torch.autograd.Function):
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


class MLP(nn.Module):
    """The gated MLP `down(silu(gate(x)) * up(x))` (Shazeer, 2020, arXiv:2002.05202)."""

    def __init__(self, plain: Any) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = plain.gate_proj, plain.up_proj
        self.down_proj = plain.down_proj

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., hidden] -> [..., hidden]."""
        gate, up = project(x, self.gate_proj, self.up_proj)
        return project(up, self.down_proj, gate=gate)[0]


class Attention(nn.Module):
    """Self-attention with rotary positions over packed rows."""

    def __init__(self, plain: Any) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = plain.q_proj, plain.k_proj, plain.v_proj
        self.o_proj = plain.o_proj
        normed = hasattr(plain, "q_norm")  # Qwen3 norms each head
        self.q_norm = RMSNorm(plain.q_norm) if normed else nn.Identity()
        self.k_norm = RMSNorm(plain.k_norm) if normed else nn.Identity()
        self.layer, self.width, self.scaling = plain.layer_idx, plain.head_dim, plain.scaling
        window = getattr(plain, "sliding_window", None)
        if type(plain).__name__ == "MistralAttention":  # it keeps the window in its configuration
            window = getattr(plain.config, "sliding_window", None)
        self.window: int | None = window

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        rows: Rows,
        **unused: object,
    ) -> tuple[torch.Tensor, None]:
        """[1, tokens, hidden] -> [1, tokens, hidden], as transformers calls it."""
        o = self.attend(hidden_states, position_embeddings, rows)
        return project(o, self.o_proj)[0], None

    def attend(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        rows: Rows,
    ) -> torch.Tensor:
        """What the heads found, side by side: [1, tokens, heads * width]."""
        q, k, v = (
            y.view(y.shape[1], -1, self.width)
            for y in project(hidden_states, self.q_proj, self.k_proj, self.v_proj)
        )
        cos, sin = (x[0] for x in position_embeddings)
        q = _Rotate.apply(self.q_norm(q), cos, sin)
        k = _Rotate.apply(self.k_norm(k), cos, sin)
        o = attend(q, k, v, rows, self.layer, self.scaling, self.window)
        return o.flatten(1)[None]


class _Rotate(torch.autograd.Function):
    """Rotary positions (Su et al., 2021, arXiv:2104.09864), the halves of a head paired."""

    @staticmethod
    def forward(
        ctx: Any, x_TND: torch.Tensor, cos_TD: torch.Tensor, sin_TD: torch.Tensor
    ) -> torch.Tensor:
        ctx.save_for_backward(cos_TD, sin_TD)
        return _rotated(x_TND, cos_TD, sin_TD)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        cos_TD, sin_TD = ctx.saved_tensors
        return _rotated(grads[0], cos_TD, sin_TD, back=True), None, None


def _rotated(
    x_TND: torch.Tensor, cos_TD: torch.Tensor, sin_TD: torch.Tensor, *, back: bool = False
) -> torch.Tensor:
    if kernels.fit(x_TND, cos_TD, sin_TD):
        return kernels.rotate(*(x.contiguous() for x in (x_TND, cos_TD, sin_TD)), back=back)
    half, sign = x_TND.shape[-1] // 2, -1 if back else 1
    cos_T1D, sin_T1D = cos_TD.unsqueeze(1), sin_TD.unsqueeze(1)
    y_TND = x_TND * cos_T1D
    y_TND[..., :half].addcmul_(x_TND[..., half:], sin_T1D[..., :half], value=-sign)
    y_TND[..., half:].addcmul_(x_TND[..., :half], sin_T1D[..., half:], value=sign)
    return y_TND


class LastLayer(nn.Module):
    """The last decoder layer: once keys and values are made, it computes what is wanted alone."""

    def __init__(self, plain: Any) -> None:
        super().__init__()
        self.input_layernorm, self.self_attn = plain.input_layernorm, plain.self_attn
        self.post_attention_layernorm, self.mlp = plain.post_attention_layernorm, plain.mlp

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        rows: Rows,
        **unused: object,
    ) -> torch.Tensor:
        """[1, tokens, hidden] -> [1, wanted, hidden]; see `Rows.wanted`."""
        normed = self.input_layernorm(hidden_states)
        o = self.self_attn.attend(normed, position_embeddings, rows)
        o, residual = (x.index_select(1, rows.wanted) for x in (o, hidden_states))
        x = residual + project(o, self.self_attn.o_proj)[0]
        after: torch.Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return after


def replacement(plain: Any) -> nn.Module | None:
    """The faster equal of a module of transformers, where there is one."""
    name = type(plain).__name__
    if not is_replaceable(plain):
        return None
    if name in NORMS:
        return RMSNorm(plain)
    if name in MLPS and _is_silu(plain.act_fn) and _can_project(plain):
        return MLP(plain)
    if name in ATTENTIONS and not plain.attention_dropout and _can_project(plain):
        return Attention(plain)
    return None


def is_replaceable(module: nn.Module) -> bool:
    """Whether a module is of a kind that a faster equal could have."""
    kind = type(module)
    return kind.__module__.startswith("transformers.") and kind.__name__.endswith(
        ("Attention", "Norm", "MLP")
    )


def _is_silu(activation: nn.Module) -> bool:
    x = torch.linspace(-4, 4, 9)
    return torch.equal(activation(x), F.silu(x))


def _can_project(module: nn.Module) -> bool:
    return all(
        Projection.of(child) is not None
        for name, child in module.named_children()
        if name.endswith("_proj")
    )
