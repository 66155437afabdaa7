"""Attention over packed sequences by FlashAttention 2 (Dao, 2023, arXiv:2307.08691), on a GPU.

PyTorch has it for sequences packed end to end. A shared prefix is a second call, in which every
query sees every key; the two are merged by their log-sum-exp, and each backward pass gets the
merged output, as if it were a part of one softmax.
"""

from __future__ import annotations

from typing import Any

import torch

from offbook.engine.layout import Layout

WIDEST_HEAD = 256
aten = torch.ops.aten


class AttendPacked(torch.autograd.Function):
    """FlashAttention over the sequences, and over the prefix that they share."""

    @staticmethod
    def forward(
        ctx: Any,
        q_THC: torch.Tensor,
        k_TKC: torch.Tensor,
        v_TKC: torch.Tensor,
        past_k: torch.Tensor | None,
        past_v: torch.Tensor | None,
        layout: Layout,
        scaling: float,
        window: int | None,
    ) -> torch.Tensor:
        """[T, H, C]; with a prefix, the window has to be wider than all keys."""
        starts, longest = layout.starts, max(layout.lengths)
        o_THC, lse_HT, *state = _forward(
            (q_THC, k_TKC, v_TKC), (starts, starts), (longest, longest), scaling, window
        )
        if past_k is not None and past_v is not None:
            one = layout.starts_of_one
            sizes = len(q_THC), len(past_k)
            past_o, past_lse, *past_state = _forward(
                (q_THC, past_k, past_v), one, sizes, scaling, None, causal=False
            )
            own_lse, lse_HT = lse_HT, torch.logaddexp(lse_HT, past_lse)
            own, past = ((part - lse_HT).exp().t()[..., None] for part in (own_lse, past_lse))
            o_THC = torch.addcmul(o_THC * own, past_o, past).to(q_THC.dtype)
            state += past_state
        ctx.facts = layout, scaling, window
        ctx.save_for_backward(q_THC, k_TKC, v_TKC, past_k, past_v, o_THC, lse_HT, *state)
        return o_THC

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Gradients of the tensors."""
        q, k, v, past_k, past_v, o, lse, *states = ctx.saved_tensors
        layout, scaling, window = ctx.facts
        do, starts, longest = grads[0].contiguous(), layout.starts, max(layout.lengths)
        dq, dk, dv = _backward(
            do, (q, k, v), (o, lse), (starts, starts), (longest, longest), states[:2],
            scaling, window,
        )  # fmt: skip
        dpast_k = dpast_v = None
        if past_k is not None:
            more_dq, dpast_k, dpast_v = _backward(
                do, (q, past_k, past_v), (o, lse), layout.starts_of_one, (len(q), len(past_k)),
                states[2:], scaling, None, causal=False,
            )  # fmt: skip
            dq += more_dq
        return dq, dk, dv, dpast_k, dpast_v, None, None, None


def can_attend(layout: Layout, has_prefix: bool, window: int | None) -> bool:
    """Whether `AttendPacked` computes this: a window does not reach into a prefix."""
    return not has_prefix or window is None or layout.offset + max(layout.lengths) <= window


def _forward(
    qkv: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    starts: tuple[torch.Tensor, torch.Tensor],
    longest: tuple[int, int],
    scaling: float,
    window: int | None,
    *,
    causal: bool = True,
) -> tuple[torch.Tensor, ...]:
    """The output [T, H, C], its log-sum-exp [H, T], and the state of the random generator."""
    o, lse, state, unused, _ = aten._flash_attention_forward(
        *qkv, *starts, *longest, 0.0, causal, False, scale=scaling, **_window(window)
    )
    return o, lse, state, unused


def _backward(
    do: torch.Tensor,
    qkv: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    result: tuple[torch.Tensor, torch.Tensor],
    starts: tuple[torch.Tensor, torch.Tensor],
    longest: tuple[int, int],
    state: list[torch.Tensor],
    scaling: float,
    window: int | None,
    *,
    causal: bool = True,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    dq, dk, dv = aten._flash_attention_backward(
        do, *qkv, *result, *starts, *longest, 0.0, causal, *state, scale=scaling,
        **_window(window),
    )  # fmt: skip
    return dq, dk, dv


def _window(window: int | None) -> dict[str, int]:
    """A query sees itself and `window - 1` keys before it."""
    return {} if window is None else {"window_size_left": window - 1, "window_size_right": 0}
