"""PyTorch's FlashAttention, which runs on GPUs alone, written out in plain operations.

It has the operators' signatures, and computes in the format of its inputs, so that float64 shows
whether what is built on them is right.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

Tensors = tuple[torch.Tensor, ...]


class Flash:
    """In the place of `torch.ops.aten`."""

    @staticmethod
    def _flash_attention_forward(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, starts_q: torch.Tensor,
        starts_k: torch.Tensor, longest_q: int, longest_k: int, dropout: float, causal: bool,
        debug: bool, *, scale: float, window_size_left: int = -1, window_size_right: int = -1,
    ) -> Tensors:  # fmt: skip
        """The output [T, H, C] and its log-sum-exp [H, T]; the rest is empty."""
        assert (dropout, debug) == (0.0, False)
        assert longest_q == (starts_q.diff()).max()
        assert longest_k == (starts_k.diff()).max()
        o, lse = torch.zeros_like(q), q.new_zeros(q.shape[1], len(q))
        for a, b in _sequences(starts_q, starts_k):
            s = _scores(q[a], k[b], scale, causal, window_size_left)
            lse[:, a] = s.logsumexp(-1)
            o[a] = torch.einsum("hts,shc->thc", s.softmax(-1), _repeat(v[b], q))
        nothing = torch.empty(0)
        return o, lse, nothing, nothing, nothing

    @staticmethod
    def _flash_attention_backward(
        do: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, o: torch.Tensor,
        lse: torch.Tensor, starts_q: torch.Tensor, starts_k: torch.Tensor, longest_q: int,
        longest_k: int, dropout: float, causal: bool, state: torch.Tensor, unused: torch.Tensor,
        *, scale: float, window_size_left: int = -1, window_size_right: int = -1,
    ) -> Tensors:  # fmt: skip
        """The gradients; `o` and `lse` may be those of a softmax over more keys than these."""
        dq, dk, dv = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for a, b in _sequences(starts_q, starts_k):
            p = (_scores(q[a], k[b], scale, causal, window_size_left) - lse[:, a, None]).exp()
            dp = torch.einsum("thc,shc->hts", do[a], _repeat(v[b], q))
            ds = p * (dp - (do[a] * o[a]).sum(-1).t()[..., None]) * scale
            dq[a] = torch.einsum("hts,shc->thc", ds, _repeat(k[b], q))
            dk[b] += _sum(torch.einsum("hts,thc->shc", ds, q[a]), k)
            dv[b] += _sum(torch.einsum("hts,thc->shc", p, do[a]), v)
        return dq, dk, dv


def _sequences(starts_q: torch.Tensor, starts_k: torch.Tensor) -> Iterator[tuple[slice, slice]]:
    assert starts_q.dtype == starts_k.dtype == torch.int32
    for k in range(len(starts_q) - 1):
        yield slice(*starts_q[k : k + 2].tolist()), slice(*starts_k[k : k + 2].tolist())


def _scores(
    q: torch.Tensor, k: torch.Tensor, scale: float, causal: bool, left: int
) -> torch.Tensor:
    """[H, T, S]; the last query sees the last key."""
    s = torch.einsum("thc,shc->hts", q, _repeat(k, q)) * scale
    query = torch.arange(len(k) - len(q), len(k), device=q.device)[:, None]
    key = torch.arange(len(k), device=q.device)
    hidden = (key > query) & causal
    if left >= 0:
        hidden |= key < query - left
    return s.masked_fill(hidden, -torch.inf)


def _repeat(x: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    return x.repeat_interleave(q.shape[1] // x.shape[1], 1)


def _sum(dx: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return dx.view(len(dx), x.shape[1], -1, x.shape[2]).sum(2)
