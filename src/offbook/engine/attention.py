"""Causal attention of a packed micro-batch, with the prefix that its sequences share."""

from __future__ import annotations

import torch

from offbook.engine.joint import JointLayout
from offbook.engine.layout import Layout
from offbook.engine.ops import Backend


def attend(
    ops: Backend,
    q_THC: torch.Tensor,
    k_TKC: torch.Tensor,
    v_TKC: torch.Tensor,
    past: tuple[torch.Tensor, torch.Tensor] | None,
    layout: Layout,
    scaling: float,
    window: int | None = None,
) -> torch.Tensor:
    """Attention of every token to its sequence up to itself, and to the shared prefix.

    Args:
        ops: the backend that computes it.
        q_THC: rotated queries; H is a multiple of K.
        k_TKC: rotated keys.
        v_TKC: values.
        past: keys and values [P, K, C] of a prefix that was computed before.
        layout: of the micro-batch.
        scaling: of the scores.
        window: how many keys a query sees, itself included; None for all.

    Returns:
        [T, H, C].
    """
    if isinstance(layout, JointLayout):
        parts = zip(
            *(x.split(layout.sizes) for x in (q_THC, k_TKC, v_TKC)), layout.each, strict=True
        )
        return torch.cat(
            [attend(ops, q, k, v, None, own, scaling, window) for q, k, v, own in parts]
        )
    if not layout.holds_prefix:
        return ops.attend(q_THC, k_TKC, v_TKC, past, layout, scaling, window)
    prefix, others = layout.parts
    sizes = [layout.offset, len(q_THC) - layout.offset]
    (past_q, q_THC), (past_k, k_TKC), (past_v, v_TKC) = (
        x.split(sizes) for x in (q_THC, k_TKC, v_TKC)
    )
    past_o = ops.attend(past_q, past_k, past_v, None, prefix, scaling, window)
    o_THC = ops.attend(q_THC, k_TKC, v_TKC, (past_k, past_v), others, scaling, window)
    return torch.cat([past_o, o_THC])
