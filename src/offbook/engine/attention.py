"""Causal attention within each of many rows that lie end to end.

A fused kernel computes it where there is one. Elsewhere rows of like length are taken together: on
a processor in plain batched matrix products, in blocks of queries that see only the keys up to
their own end; on a GPU by PyTorch's own attention. Letters: T packed tokens, H query heads, K key
heads, D head width; B rows of a group, L their padded length, P the shared prefix.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from offbook.engine import kernels
from offbook.engine.packing import Group, Rows

BLOCK_QUERIES = 256
# Probabilities of a micro-batch and layer that are kept for the backward pass, in elements a token;
# rows that need more compute them again.
KEPT_SCORES = 4096


def attend(
    q_THD: torch.Tensor,
    k_TKD: torch.Tensor,
    v_TKD: torch.Tensor,
    rows: Rows,
    layer: int,
    scaling: float,
    window: int | None = None,
) -> torch.Tensor:
    """Attention of every token to the tokens of its row up to itself, and to the shared prefix.

    Args:
        q_THD: rotated queries; H is a multiple of K.
        k_TKD: rotated keys.
        v_TKD: values.
        rows: where the rows are.
        layer: number of the layer, to find its part of the prefix.
        scaling: of the scores.
        window: how many keys a query sees, itself included; None for all.

    Returns:
        [T, H, D].
    """
    if rows.record is not None:
        rows.record[layer] = (k_TKD, v_TKD)
    if kernels.fit(q_THD):
        compute = _Fused.apply
    else:
        compute = _Blockwise.apply if q_THD.device.type == "cpu" else _by_group
    if rows.holds_prefix:
        first, others = rows.parts
        sizes = [rows.offset, len(q_THD) - rows.offset]
        (past_q, q_THD), (past_k, k_TKD), (past_v, v_TKD) = (
            x.split(sizes) for x in (q_THD, k_TKD, v_TKD)
        )
        past_o = compute(past_q, past_k, past_v, None, None, first, scaling, window)
        o_THD = compute(q_THD, k_TKD, v_TKD, past_k, past_v, others, scaling, window)
        return torch.cat([past_o, o_THD])
    past_k, past_v = rows.prefix[layer] if rows.prefix is not None else (None, None)
    output: torch.Tensor = compute(q_THD, k_TKD, v_TKD, past_k, past_v, rows, scaling, window)
    return output


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q_THD: torch.Tensor,
        k_TKD: torch.Tensor,
        v_TKD: torch.Tensor,
        past_k: torch.Tensor | None,
        past_v: torch.Tensor | None,
        rows: Rows,
        scaling: float,
        window: int | None,
    ) -> torch.Tensor:
        q_THD, k_TKD, v_TKD = (x.contiguous() for x in (q_THD, k_TKD, v_TKD))
        if past_k is not None and past_v is not None:
            past_k, past_v = past_k.contiguous(), past_v.contiguous()
        ctx.facts = rows.lengths, scaling, window
        ctx.save_for_backward(q_THD, k_TKD, v_TKD, past_k, past_v)
        return kernels.attend(q_THD, k_TKD, v_TKD, (past_k, past_v), *ctx.facts)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q_THD, k_TKD, v_TKD, *past = ctx.saved_tensors
        do_THD = grads[0].contiguous()
        gradients = kernels.attend_backward(do_THD, q_THD, k_TKD, v_TKD, tuple(past), *ctx.facts)
        return *gradients, None, None, None


def _by_group(
    q_THD: torch.Tensor,
    k_TKD: torch.Tensor,
    v_TKD: torch.Tensor,
    past_k: torch.Tensor | None,
    past_v: torch.Tensor | None,
    rows: Rows,
    scaling: float,
    window: int | None,
) -> torch.Tensor:
    """PyTorch's own attention, a call for each group of rows."""
    outputs = []
    for group in rows.groups(q_THD.shape[1]):
        q, k, v = (group.pad(x).transpose(1, 2) for x in (q_THD, k_TKD, v_TKD))
        causal = past_k is None and window is None
        if past_k is not None and past_v is not None:
            expand = (group.rows, -1, -1, -1)
            k = torch.cat([past_k.transpose(0, 1).expand(*expand), k], 2)
            v = torch.cat([past_v.transpose(0, 1).expand(*expand), v], 2)
        o = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=None if causal else rows.mask(0, group.length, 1, window, q.dtype),
            is_causal=causal,
            scale=scaling,
            enable_gqa=q.shape[1] != k.shape[1],
        )
        outputs.append(group.unpad(o.transpose(1, 2)))
    return torch.cat(outputs)


class _Blockwise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q_THD: torch.Tensor,
        k_TKD: torch.Tensor,
        v_TKD: torch.Tensor,
        past_k: torch.Tensor | None,
        past_v: torch.Tensor | None,
        rows: Rows,
        scaling: float,
        window: int | None,
    ) -> torch.Tensor:
        keep = max(rows.lengths) + rows.offset <= KEPT_SCORES / q_THD.shape[1]
        o_THD, kept = torch.empty_like(q_THD), []
        for group in rows.groups(q_THD.shape[1]):
            q, k, v = _heads(group, q_THD, k_TKD, v_TKD, past_k, past_v)
            blocks = []
            for first, last, keys in _blocks(group, rows.offset):
                mask = rows.mask(first, last, q.shape[1], window, q.dtype)
                p = _probabilities(_queries(q, first, last), k[:, :keys], mask, scaling)
                blocks.append(torch.bmm(p, v[:, :keys]))
                if keep:
                    kept.append(p)
            o_THD[group.start : group.stop] = group.unpad(_tokens(blocks, q.shape, group))
        ctx.facts = rows, scaling, window
        ctx.save_for_backward(q_THD, k_TKD, v_TKD, past_k, past_v, *kept)
        return o_THD

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (do_THD,) = grads
        q_THD, k_TKD, v_TKD, past_k, past_v, *kept = ctx.saved_tensors
        rows, scaling, window = ctx.facts
        dq_THD, dk_TKD, dv_TKD = map(torch.empty_like, (q_THD, k_TKD, v_TKD))
        dpast_k = None if past_k is None else torch.zeros_like(past_k)
        dpast_v = None if past_v is None else torch.zeros_like(past_v)
        for group in reversed(rows.groups(q_THD.shape[1])):
            q, k, v = _heads(group, q_THD, k_TKD, v_TKD, past_k, past_v)
            do = _by_head(group.pad_gradient(do_THD), k_TKD.shape[1])
            dq_blocks, dk, dv = [], torch.empty(0), torch.empty(0)
            # The last block sees every key, so it comes first and makes room for the others.
            for first, last, keys in reversed(_blocks(group, rows.offset)):
                do_block, q_block = _queries(do, first, last), _queries(q, first, last)
                if kept:
                    p = kept.pop()
                else:
                    mask = rows.mask(first, last, q.shape[1], window, q.dtype)
                    p = _probabilities(q_block, k[:, :keys], mask, scaling)
                dv = _add(dv, torch.bmm(p.transpose(1, 2), do_block))
                dp = torch.bmm(do_block, v[:, :keys].transpose(1, 2))
                ds = torch._softmax_backward_data(dp, p, -1, p.dtype).mul_(scaling)
                dq_blocks.append(torch.bmm(ds, k[:, :keys]))
                dk = _add(dk, torch.bmm(ds.transpose(1, 2), q_block))
            for d_TKD, d, dpast in ((dk_TKD, dk, dpast_k), (dv_TKD, dv, dpast_v)):
                d_BPLKD = d.view(group.rows, -1, *d.shape[1:]).transpose(1, 2)
                d_TKD[group.start : group.stop] = group.unpad(d_BPLKD[:, rows.offset :])
                if dpast is not None:
                    dpast += d_BPLKD[:, : rows.offset].sum(0)
            dq_THD[group.start : group.stop] = group.unpad(_tokens(dq_blocks[::-1], q.shape, group))
        return dq_THD, dk_TKD, dv_TKD, dpast_k, dpast_v, None, None, None


def _blocks(group: Group, offset: int) -> list[tuple[int, int, int]]:
    """Blocks of queries: first, last, and how many keys they see."""
    size = BLOCK_QUERIES if group.length > BLOCK_QUERIES * 3 // 2 else group.length
    cuts = range(0, group.length, size)
    return [(a, b, offset + b) for a in cuts for b in [min(a + size, group.length)]]


def _heads(
    group: Group,
    q_THD: torch.Tensor,
    k_TKD: torch.Tensor,
    v_TKD: torch.Tensor,
    past_k: torch.Tensor | None,
    past_v: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries [B * K, H / K, L, D]; keys and values, the prefix before them, [B * K, P + L, D]."""
    k, v = _keys(group, k_TKD, past_k), _keys(group, v_TKD, past_v)
    return _by_head(group.pad(q_THD), k_TKD.shape[1]), k, v


def _by_head(x_BLHD: torch.Tensor, key_heads: int) -> torch.Tensor:
    """[B, L, H, D] -> [B * K, H / K, L, D]."""
    b, length, h, d = x_BLHD.shape
    return x_BLHD.transpose(1, 2).reshape(b * key_heads, h // key_heads, length, d)


def _keys(group: Group, x_TKD: torch.Tensor, past_PKD: torch.Tensor | None) -> torch.Tensor:
    x_BLKD = group.pad(x_TKD)
    if past_PKD is not None:
        x_BLKD = torch.cat([past_PKD.expand(group.rows, -1, -1, -1), x_BLKD], 1)
    return x_BLKD.transpose(1, 2).reshape(-1, x_BLKD.shape[1], x_BLKD.shape[3])


def _tokens(blocks: list[torch.Tensor], shape: torch.Size, group: Group) -> torch.Tensor:
    """Blocks of queries [B * K, H / K * n, D] -> [B, L, H, D]."""
    x = torch.cat([block.view(*shape[:2], -1, shape[3]) for block in blocks], 2)
    return x.view(group.rows, -1, *shape[2:]).transpose(1, 2)


def _add(total: torch.Tensor, block: torch.Tensor) -> torch.Tensor:
    """Add a block's part to the first keys of the total; the first block is the total."""
    if not total.numel():
        return block
    total[:, : block.shape[1]] += block
    return total


def _queries(x: torch.Tensor, first: int, last: int) -> torch.Tensor:
    """Queries of a block, heads that share keys end to end: [B * K, H / K * n, D]."""
    return x[:, :, first:last].flatten(1, 2)


def _probabilities(
    q: torch.Tensor, k: torch.Tensor, mask: torch.Tensor, scaling: float
) -> torch.Tensor:
    """The softmax of a block's scores, taken in float32 or better.

    Args:
        q: [B * K, H / K * n, D].
        k: [B * K, P + last, D].
        mask: [H / K * n, P + last].
        scaling: of the scores.
    """
    scores = torch.baddbmm(mask, q, k.transpose(1, 2), alpha=scaling)
    wide = scores.to(torch.promote_types(q.dtype, torch.float32))
    return torch.softmax(wide, -1, out=wide).to(q.dtype)
