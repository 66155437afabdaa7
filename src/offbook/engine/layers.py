"""Our replacements for layers of transformers, and which layers get one.

An instance in the model is replaced by one that holds the same projections under the same names;
classes are never patched. Decoder layers and norms stay, with their hooks, and get another
`forward`. What is not recognized stays as it is.
"""

from __future__ import annotations

import weakref
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedConfig
from transformers.modeling_layers import GradientCheckpointingLayer

from offbook.engine.attention import attend
from offbook.engine.dropout import Masks
from offbook.engine.layout import Layout
from offbook.engine.lora import backend_for, project
from offbook.engine.ops import Backend, choose
from offbook.engine.prefix import KeysAndValues, Recorder
from offbook.engine.projection import Projection
from offbook.models.base import head_shape

# transformers' classes that compute exactly what the modules below do.
ATTENTIONS = ("LlamaAttention", "MistralAttention", "Qwen2Attention", "Qwen3Attention")
NORMS = ("LlamaRMSNorm", "MistralRMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm")
MLPS = ("LlamaMLP", "MistralMLP", "Qwen2MLP", "Qwen3MLP")
# transformers before 5.23 checkpoints a layer with its hooks; since then, its `forward` alone.
CHECKPOINTS_CALLS = "__call__" in vars(GradientCheckpointingLayer)


class RMSNorm:
    """Root-mean-square norm with a frozen weight (Zhang and Sennrich, 2019, arXiv:1910.07467).

    It takes the place of the `forward` of a norm of transformers, which keeps the weight.
    """

    def __init__(self, plain: Any, device: torch.device, dtype: torch.dtype) -> None:
        self._plain, self.eps = weakref.proxy(plain), plain.variance_epsilon
        self.ops = choose(device, dtype, plain.weight.shape)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[..., D] -> [..., D]."""
        return self.ops.norm(x, self._plain.weight, self.eps)


class MLP(nn.Module):
    """The gated MLP `down(silu(gate(x)) * up(x))` (Shazeer, 2020, arXiv:2002.05202)."""

    def __init__(self, plain: Any, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = plain.gate_proj, plain.up_proj
        self.down_proj = plain.down_proj
        self.ops_in = backend_for(device, dtype, self.gate_proj, self.up_proj)
        self.ops_out = backend_for(device, dtype, self.down_proj)

    def forward(self, x: torch.Tensor, masks: Masks | None = None) -> torch.Tensor:
        """[..., D] -> [..., D]."""
        gate, up = project(self.ops_in, x, self.gate_proj, self.up_proj, masks=masks)
        return project(self.ops_out, up, self.down_proj, gate=gate, masks=masks)[0]


class Attention(nn.Module):
    """Self-attention with rotary positions (Su et al., 2021, arXiv:2104.09864), packed."""

    def __init__(self, plain: Any, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = plain.q_proj, plain.k_proj, plain.v_proj
        self.o_proj = plain.o_proj
        normed = hasattr(plain, "q_norm")  # Qwen3 norms each head
        self.q_norm = plain.q_norm if normed else nn.Identity()
        self.k_norm = plain.k_norm if normed else nn.Identity()
        self.layer, self.channels, self.scaling = plain.layer_idx, plain.head_dim, plain.scaling
        window = getattr(plain, "sliding_window", None)
        if type(plain).__name__ == "MistralAttention":  # it has the window in its configuration
            window = getattr(plain.config, "sliding_window", None)
        self.window: int | None = window
        self.ops_in = backend_for(device, dtype, self.q_proj, self.k_proj, self.v_proj)
        self.ops = choose(device, dtype, [self.channels])
        self.ops_out = backend_for(device, dtype, self.o_proj)

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        layout: Layout,
        prefix: KeysAndValues | None = None,
        recorder: Recorder | None = None,
        masks: Masks | None = None,
        **unused: object,
    ) -> torch.Tensor:
        """The outputs of all heads: [1, T, H * C].

        Args:
            hidden_states: [1, T, D].
            position_embeddings: cosines and sines [1, T, C].
            layout: where the sequences lie.
            prefix: keys and values of a prefix that was computed before, for every layer.
            recorder: gets the layer's own keys and values.
            masks: of dropout.
            unused: other arguments from transformers, ignored.
        """
        q_THC, k_TKC, v_TKC = (
            y.view(y.shape[1], -1, self.channels)
            for y in project(
                *(self.ops_in, hidden_states, self.q_proj, self.k_proj, self.v_proj), masks=masks
            )
        )
        cos_TC, sin_TC = (x[0] for x in position_embeddings)
        q_THC = self.ops.rotate(self.q_norm(q_THC), cos_TC, sin_TC)
        k_TKC = self.ops.rotate(self.k_norm(k_TKC), cos_TC, sin_TC)
        if recorder is not None:
            recorder.record(self.layer, k_TKC, v_TKC)
        past = prefix[self.layer] if prefix is not None else None
        o_THC = attend(self.ops, q_THC, k_TKC, v_TKC, past, layout, self.scaling, self.window)
        return o_THC.flatten(1)[None]

    def project_out(self, o: torch.Tensor, masks: Masks | None) -> torch.Tensor:
        """[1, T, H * C] -> [1, T, D]."""
        return project(self.ops_out, o, self.o_proj, masks=masks)[0]


def decoder_layer(layer: Any, hidden_states: torch.Tensor, **packed: Any) -> torch.Tensor:
    """A decoder layer of packed sequences, which tells its MLP, too, which tokens these are.

    It takes the place of the `forward` of a layer of transformers, whose hooks stay: [1, T, D] ->
    [1, T, D]. transformers' model hands it `layout`, `prefix`, `recorder` and `masks` as keyword
    arguments.
    """
    if layer.gradient_checkpointing and layer.training and not CHECKPOINTS_CALLS:
        compute = partial(_decoder_layer, layer, **packed)
        kept: torch.Tensor = layer._gradient_checkpointing_func(compute, hidden_states)
        return kept
    return _decoder_layer(layer, hidden_states, **packed)


def last_layer(
    layer: Any, hidden_states: torch.Tensor, layout: Layout, masks: Masks | None, **packed: Any
) -> torch.Tensor:
    """The last decoder layer: after attention, it computes only the wanted tokens.

    [1, T, D] -> [1, N, D]; see `Layout.wanted`.
    """
    normed = layer.input_layernorm(hidden_states)
    o = layer.self_attn(normed, layout=layout, masks=masks, **packed)
    o, residual = (x.index_select(1, layout.wanted) for x in (o, hidden_states))
    return _after_attention(layer, o, residual, masks and masks.some(layout.wanted))


def _decoder_layer(layer: Any, hidden_states: torch.Tensor, **packed: Any) -> torch.Tensor:
    o = layer.self_attn(layer.input_layernorm(hidden_states), **packed)
    return _after_attention(layer, o, hidden_states, packed["masks"])


def _after_attention(
    layer: Any, o: torch.Tensor, residual: torch.Tensor, masks: Masks | None
) -> torch.Tensor:
    """Everything after attention: outputs of all heads [1, T, H * C] -> [1, T, D]."""
    x = residual + layer.self_attn.project_out(o, masks)
    after: torch.Tensor = x + layer.mlp(layer.post_attention_layernorm(x), masks)
    return after


def replacement(plain: Any, dtype: torch.dtype) -> nn.Module | RMSNorm | None:
    """What computes the same as a module of transformers, faster; None where there is nothing.

    Args:
        plain: the module of transformers, on the device that computes.
        dtype: of the hidden states.
    """
    name = type(plain).__name__
    make: type[RMSNorm | MLP | Attention]
    if not is_replaceable(plain):
        return None
    if name in NORMS:
        make = RMSNorm
    elif name in MLPS and _is_silu(plain.act_fn) and _can_project(plain):
        make = MLP
    elif name in ATTENTIONS and not plain.attention_dropout and _can_project(plain):
        make = Attention
    else:
        return None
    return make(plain, next(plain.parameters()).device, dtype)


def is_replaceable(module: nn.Module) -> bool:
    """Whether a module is of a kind that could have a replacement."""
    kind = type(module)
    return kind.__module__.startswith("transformers.") and kind.__name__.endswith(
        ("Attention", "Norm", "MLP")
    )


def saved_per_token(ops: Backend, config: PreTrainedConfig, longest: int, *, dropout: bool) -> int:
    """Values that a layer saves for backward, per token.

    Args:
        ops: the backend of the layer.
        config: the model's configuration.
        longest: tokens of the longest sequence.
        dropout: whether there is any.
    """
    heads, key_heads, channels = head_shape(config)

    def projection(width: int, projections: int, *, gated: bool = False) -> int:
        return ops.saved_by_projection(width, projections, gated=gated, dropout=dropout)

    hidden, inner = int(config.hidden_size), int(config.intermediate_size)
    return (
        2 * hidden  # the inputs of the norms
        + projection(hidden, 3)  # q, k and v
        + ops.saved_by_attention(heads, key_heads, channels, longest)
        + projection(heads * channels, 1)  # o
        + projection(hidden, 2)  # gate and up
        + projection(inner, 1, gated=True)  # down
    )


def workspace_per_token(config: PreTrainedConfig) -> int:
    """Values that a layer needs as workspace, per token."""
    return int(4 * config.intermediate_size + 6 * config.hidden_size)


def _is_silu(activation: nn.Module) -> bool:
    x = torch.linspace(-4, 4, 9)
    return torch.equal(activation(x), F.silu(x))


def _can_project(module: nn.Module) -> bool:
    return all(
        Projection.of(child) is not None
        for name, child in module.named_children()
        if name.endswith("_proj")
    )
