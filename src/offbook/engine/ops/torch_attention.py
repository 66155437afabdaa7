"""Attention over packed sequences in PyTorch's operations.

Sequences of similar length are computed together, padded. On a processor that is done in batched
matrix products, in blocks of queries that are scored only with the keys up to the block's end; on a
GPU by PyTorch's own attention.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from offbook.engine.layout import Group, Layout

BLOCK_QUERIES = 256
# Probabilities that a layer saves for backward, per token; sequences that are longer compute
# theirs again.
SAVED_SCORES = 4096


def attend_by_group(
    q_THC: torch.Tensor,
    k_TKC: torch.Tensor,
    v_TKC: torch.Tensor,
    past_k: torch.Tensor | None,
    past_v: torch.Tensor | None,
    layout: Layout,
    scaling: float,
    window: int | None,
) -> torch.Tensor:
    """PyTorch's own attention, a call for each group of sequences."""
    outputs = []
    for group in layout.groups(q_THC.shape[1]):
        q, k, v = (group.pad(x).transpose(1, 2) for x in (q_THC, k_TKC, v_TKC))
        causal = past_k is None and window is None
        if past_k is not None and past_v is not None:
            expand = (group.sequences, -1, -1, -1)
            k = torch.cat([past_k.transpose(0, 1).expand(*expand), k], 2)
            v = torch.cat([past_v.transpose(0, 1).expand(*expand), v], 2)
        if q.shape[1] != k.shape[1]:
            # Not `enable_gqa`: with a mask, only the slowest of PyTorch's kernels knows it.
            k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
        o = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=None if causal else layout.mask(0, group.length, 1, window, q.dtype),
            is_causal=causal,
            scale=scaling,
        )
        outputs.append(group.unpad(o.transpose(1, 2)))
    return torch.cat(outputs)


class AttendInBlocks(torch.autograd.Function):
    """Batched matrix products, a block of queries at a time."""

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
        """[T, H, C]."""
        keep = max(layout.lengths) + layout.offset <= SAVED_SCORES / q_THC.shape[1]
        o_THC, saved = torch.empty_like(q_THC), []
        for group in layout.groups(q_THC.shape[1]):
            q, k, v = _heads(group, q_THC, k_TKC, v_TKC, past_k, past_v)
            blocks = []
            for first, last, keys in _blocks(group, layout.offset):
                mask = layout.mask(first, last, q.shape[1], window, q.dtype)
                p = _probabilities(_queries(q, first, last), k[:, :keys], mask, scaling)
                blocks.append(torch.bmm(p, v[:, :keys]))
                if keep:
                    saved.append(p)
            o_THC[group.start : group.stop] = group.unpad(_tokens(blocks, q.shape, group))
        ctx.facts = layout, scaling, window
        ctx.save_for_backward(q_THC, k_TKC, v_TKC, past_k, past_v, *saved)
        return o_THC

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Gradients of the tensors."""
        (do_THC,) = grads
        q_THC, k_TKC, v_TKC, past_k, past_v, *saved = ctx.saved_tensors
        layout, scaling, window = ctx.facts
        dq_THC, dk_TKC, dv_TKC = map(torch.empty_like, (q_THC, k_TKC, v_TKC))
        dpast_k = None if past_k is None else torch.zeros_like(past_k)
        dpast_v = None if past_v is None else torch.zeros_like(past_v)
        for group in reversed(layout.groups(q_THC.shape[1])):
            q, k, v = _heads(group, q_THC, k_TKC, v_TKC, past_k, past_v)
            do = _by_head(group.pad_gradient(do_THC), k_TKC.shape[1])
            dq_blocks, dk, dv = [], torch.empty(0), torch.empty(0)
            # The last block sees every key, so it comes first and allocates the sums of all blocks.
            for first, last, keys in reversed(_blocks(group, layout.offset)):
                do_block, q_block = _queries(do, first, last), _queries(q, first, last)
                if saved:
                    p = saved.pop()
                else:
                    mask = layout.mask(first, last, q.shape[1], window, q.dtype)
                    p = _probabilities(q_block, k[:, :keys], mask, scaling)
                dv = _add(dv, torch.bmm(p.transpose(1, 2), do_block))
                dp = torch.bmm(do_block, v[:, :keys].transpose(1, 2))
                ds = torch._softmax_backward_data(dp, p, -1, p.dtype).mul_(scaling)
                dq_blocks.append(torch.bmm(ds, k[:, :keys]))
                dk = _add(dk, torch.bmm(ds.transpose(1, 2), q_block))
            for d_TKC, d, dpast in ((dk_TKC, dk, dpast_k), (dv_TKC, dv, dpast_v)):
                d_BTKC = d.view(group.sequences, -1, *d.shape[1:]).transpose(1, 2)
                d_TKC[group.start : group.stop] = group.unpad(d_BTKC[:, layout.offset :])
                if dpast is not None:
                    dpast += d_BTKC[:, : layout.offset].sum(0)
            dq_THC[group.start : group.stop] = group.unpad(_tokens(dq_blocks[::-1], q.shape, group))
        return dq_THC, dk_TKC, dv_TKC, dpast_k, dpast_v, None, None, None


# In these, tensors of a group have B * K as their first dimension, and G = H / K query heads share
# each key-value head; n are the queries of a block.


def _blocks(group: Group, offset: int) -> list[tuple[int, int, int]]:
    """Blocks of queries: first, last, and how many keys they see."""
    size = BLOCK_QUERIES if group.length > BLOCK_QUERIES * 3 // 2 else group.length
    cuts = range(0, group.length, size)
    return [(a, b, offset + b) for a in cuts for b in [min(a + size, group.length)]]


def _heads(
    group: Group,
    q_THC: torch.Tensor,
    k_TKC: torch.Tensor,
    v_TKC: torch.Tensor,
    past_k: torch.Tensor | None,
    past_v: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries [B * K, G, T, C]; keys and values, the prefix before them, [B * K, P + T, C]."""
    k, v = _keys(group, k_TKC, past_k), _keys(group, v_TKC, past_v)
    return _by_head(group.pad(q_THC), k_TKC.shape[1]), k, v


def _by_head(x_BTHC: torch.Tensor, key_heads: int) -> torch.Tensor:
    """[B, T, H, C] -> [B * K, G, T, C]."""
    b, t, h, c = x_BTHC.shape
    return x_BTHC.transpose(1, 2).reshape(b * key_heads, h // key_heads, t, c)


def _keys(group: Group, x_TKC: torch.Tensor, past_PKC: torch.Tensor | None) -> torch.Tensor:
    """[B * K, P + T, C]."""
    x_BTKC = group.pad(x_TKC)
    if past_PKC is not None:
        x_BTKC = torch.cat([past_PKC.expand(group.sequences, -1, -1, -1), x_BTKC], 1)
    return x_BTKC.transpose(1, 2).reshape(-1, x_BTKC.shape[1], x_BTKC.shape[3])


def _tokens(blocks: list[torch.Tensor], shape: torch.Size, group: Group) -> torch.Tensor:
    """Blocks of queries [B * K, G * n, C] -> [B, T, H, C]."""
    x = torch.cat([block.view(*shape[:2], -1, shape[3]) for block in blocks], 2)
    return x.view(group.sequences, -1, *shape[2:]).transpose(1, 2)


def _add(total: torch.Tensor, block: torch.Tensor) -> torch.Tensor:
    """Add a block's part to the first keys of the total; the first block is the total."""
    if not total.numel():
        return block
    total[:, : block.shape[1]] += block
    return total


def _queries(x: torch.Tensor, first: int, last: int) -> torch.Tensor:
    """Queries of a block; heads that share keys follow each other: [B * K, G * n, C]."""
    return x[:, :, first:last].flatten(1, 2)


def _probabilities(
    q: torch.Tensor, k: torch.Tensor, mask: torch.Tensor, scaling: float
) -> torch.Tensor:
    """The softmax of a block's scores, computed in float32 or wider.

    Args:
        q: [B * K, G * n, C].
        k: [B * K, P + last, C].
        mask: [G * n, P + last].
        scaling: of the scores.
    """
    scores = torch.baddbmm(mask, q, k.transpose(1, 2), alpha=scaling)
    wide = scores.to(torch.promote_types(q.dtype, torch.float32))
    return torch.softmax(wide, -1, out=wide).to(q.dtype)
