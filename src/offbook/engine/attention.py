"""Causal attention within each of many rows that lie end to end.

Rows are short beside what attention kernels are made for, so on a processor plain batched matrix
products win: rows of like length are taken together, in blocks of queries that see only the keys
up to their own end. All tokens attend to a shared prefix at once, and the two results are joined by
their softmax sums, as in FlashAttention (Dao et al., 2022, arXiv:2205.14135). Letters: T packed
tokens, H query heads, K key heads, D head width; B rows of a group, L their padded length, P the
shared prefix; N products in a batch, M queries in each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from offbook.engine.packing import BLOCK_SCORES, Group, Rows

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
    past_k, past_v = rows.prefix[layer] if rows.prefix is not None else (None, None)
    compute = _Blockwise.apply if q_THD.device.type == "cpu" else _by_group
    output: torch.Tensor = compute(q_THD, k_TKD, v_TKD, past_k, past_v, rows, scaling, window)
    return output


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
        mask = None if causal else rows.mask(0, group.length, 1, window, q.dtype, rows.offset)
        if past_k is not None and past_v is not None:
            expand = (group.rows, -1, -1, -1)
            k = torch.cat([past_k.transpose(0, 1).expand(*expand), k], 2)
            v = torch.cat([past_v.transpose(0, 1).expand(*expand), v], 2)
        o = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=mask,
            is_causal=causal,
            scale=scaling,
            enable_gqa=q.shape[1] != k.shape[1],
        )
        outputs.append(group.unpad(o.transpose(1, 2)))
    return torch.cat(outputs)


@dataclass(frozen=True)
class _Plan:
    """What forward and backward have in common.

    Attributes:
        rows, scaling, window: as `attend` takes them.
        keep: whether probabilities are kept for the backward pass.
    """

    rows: Rows
    scaling: float
    window: int | None
    keep: bool


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
        plan = _Plan(rows, scaling, window, keep)
        o_THD, sums_TH1, kept = _attend_rows(q_THD, k_TKD, v_TKD, plan)
        share_TH1 = None
        if past_k is not None and past_v is not None:
            past_o, past_sums, past_kept = _attend_prefix(q_THD, past_k, past_v, plan)
            share_TH1 = torch.sigmoid(past_sums - sums_TH1).to(o_THD.dtype)
            o_THD.lerp_(past_o, share_TH1)
            kept += past_kept
        ctx.plan = plan
        ctx.save_for_backward(q_THD, k_TKD, v_TKD, past_k, past_v, o_THD, share_TH1, *kept)
        return o_THD

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (do_THD,) = grads
        q_THD, k_TKD, v_TKD, past_k, past_v, o_THD, share_TH1, *kept = ctx.saved_tensors
        along_TH1 = (do_THD * o_THD).sum(-1, keepdim=True)
        past_q = past_grads = None
        if share_TH1 is not None:
            # Each part answers for its share of the output.
            past = do_THD * share_TH1, along_TH1 * share_TH1
            do_THD, along_TH1 = do_THD - past[0], along_TH1 - past[1]
            past_q, *past_grads = _prefix_gradients(*past, q_THD, past_k, past_v, ctx.plan, kept)
        dq, dk, dv = _row_gradients(do_THD, along_TH1, q_THD, k_TKD, v_TKD, ctx.plan, kept)
        if past_q is not None:
            dq += past_q
        return dq, dk, dv, *(past_grads or (None, None)), None, None, None


def _attend_rows(
    q_THD: torch.Tensor, k_TKD: torch.Tensor, v_TKD: torch.Tensor, plan: _Plan
) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    """Attention within rows.

    Returns:
        The output [T, H, D], the logarithms of the softmax's sums [T, H, 1], and what is kept.
    """
    rows, heads = plan.rows, k_TKD.shape[1]
    o_THD, kept = torch.empty_like(q_THD), []
    sums_TH1 = q_THD.new_empty(*q_THD.shape[:2], 1, dtype=_wide(q_THD))
    for group in rows.groups(q_THD.shape[1]):
        q, k, v = (_by_head(group.pad(x), heads) for x in (q_THD, k_TKD, v_TKD))
        k, v = k[:, 0], v[:, 0]
        outputs, sums = [], []
        for first, last in _blocks(group):
            mask = rows.mask(first, last, q.shape[1], plan.window, q.dtype)
            q_NMD = _queries(q, first, last)
            p, s = _probabilities(q_NMD, k[:, :last], mask, plan.scaling, rows.offset > 0)
            outputs.append(torch.bmm(p, v[:, :last]))
            sums.append(s)
            if plan.keep:
                kept.append(p)
        at = slice(group.start, group.stop)
        o_THD[at] = group.unpad(_tokens(outputs, q.shape, group))
        if rows.offset:
            sums_TH1[at] = group.unpad(_tokens(sums, q.shape, group))
    return o_THD, sums_TH1, kept


def _row_gradients(
    do_THD: torch.Tensor,
    along_TH1: torch.Tensor,
    q_THD: torch.Tensor,
    k_TKD: torch.Tensor,
    v_TKD: torch.Tensor,
    plan: _Plan,
    kept: list[torch.Tensor],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of queries, keys and values; see `_score_gradients` for the first two arguments."""
    rows, heads = plan.rows, k_TKD.shape[1]
    dq_THD, dk_TKD, dv_TKD = map(torch.empty_like, (q_THD, k_TKD, v_TKD))
    for group in reversed(rows.groups(q_THD.shape[1])):
        q, k, v = (_by_head(group.pad(x), heads) for x in (q_THD, k_TKD, v_TKD))
        k, v = k[:, 0], v[:, 0]
        do, along = (_by_head(group.pad_gradient(x), heads) for x in (do_THD, along_TH1))
        dq_blocks, dk, dv = [], torch.empty(0), torch.empty(0)
        # The last block sees every key, so it comes first and makes room for the others.
        for first, last in reversed(_blocks(group)):
            q_NMD, do_NMD, along_NM1 = (_queries(x, first, last) for x in (q, do, along))
            if plan.keep:
                p = kept.pop()
            else:
                mask = rows.mask(first, last, q.shape[1], plan.window, q.dtype)
                p, _ = _probabilities(q_NMD, k[:, :last], mask, plan.scaling)
            ds = _score_gradients(p, do_NMD, v[:, :last], along_NM1, plan.scaling)
            dv = _add(dv, torch.bmm(p.transpose(1, 2), do_NMD))
            dk = _add(dk, torch.bmm(ds.transpose(1, 2), q_NMD))
            dq_blocks.append(torch.bmm(ds, k[:, :last]))
        at = slice(group.start, group.stop)
        dq_THD[at] = group.unpad(_tokens(dq_blocks[::-1], q.shape, group))
        for d_TKD, d in ((dk_TKD, dk), (dv_TKD, dv)):
            d_TKD[at] = group.unpad(d.view(group.rows, heads, *d.shape[1:]).transpose(1, 2))
    return dq_THD, dk_TKD, dv_TKD


def _attend_prefix(
    q_THD: torch.Tensor, past_k: torch.Tensor, past_v: torch.Tensor, plan: _Plan
) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    """Attention of every token to the prefix; returns what `_attend_rows` does."""
    k_KPD, v_KPD = past_k.transpose(0, 1), past_v.transpose(0, 1)
    outputs, sums, kept = [], [], []
    for first, last in _chunks(q_THD, past_k):
        q_KMD = _by_key(q_THD[first:last], past_k.shape[1])
        p, s = _probabilities(q_KMD, k_KPD, _prefix_mask(plan, first, last, q_KMD), plan.scaling)
        outputs.append(_from_key(torch.bmm(p, v_KPD), last - first))
        sums.append(_from_key(s, last - first))
        if plan.keep:
            kept.append(p)
    return torch.cat(outputs), torch.cat(sums), kept


def _prefix_gradients(
    do_THD: torch.Tensor,
    along_TH1: torch.Tensor,
    q_THD: torch.Tensor,
    past_k: torch.Tensor,
    past_v: torch.Tensor,
    plan: _Plan,
    kept: list[torch.Tensor],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of queries and of the prefix's keys and values; see `_score_gradients`."""
    heads = past_k.shape[1]
    k_KPD, v_KPD = past_k.transpose(0, 1), past_v.transpose(0, 1)
    dq_THD = torch.empty_like(q_THD)
    dk_KPD, dv_KPD = torch.zeros_like(k_KPD), torch.zeros_like(v_KPD)
    for first, last in reversed(_chunks(q_THD, past_k)):
        q, do, along = (_by_key(x[first:last], heads) for x in (q_THD, do_THD, along_TH1))
        if plan.keep:
            p = kept.pop()
        else:
            p, _ = _probabilities(q, k_KPD, _prefix_mask(plan, first, last, q), plan.scaling)
        ds = _score_gradients(p, do, v_KPD, along, plan.scaling)
        dv_KPD += torch.bmm(p.transpose(1, 2), do)
        dk_KPD += torch.bmm(ds.transpose(1, 2), q)
        dq_THD[first:last] = _from_key(torch.bmm(ds, k_KPD), last - first)
    return dq_THD, dk_KPD.transpose(0, 1), dv_KPD.transpose(0, 1)


def _probabilities(
    q_NMD: torch.Tensor,
    k: torch.Tensor,
    mask: torch.Tensor,
    scaling: float,
    with_sums: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The softmax of a block's scores, taken in float32 or better.

    Args:
        q_NMD: queries.
        k: keys [N, keys, D].
        mask: added to the scores [N, M, keys].
        scaling: of the scores.
        with_sums: whether the second result is wanted.

    Returns:
        Probabilities [N, M, keys], and the logarithms of the sums of exponentials [N, M, 1].
    """
    scores = torch.baddbmm(mask, q_NMD, k.transpose(1, 2), alpha=scaling).to(_wide(q_NMD))
    top = scores.amax(-1, keepdim=True) if with_sums else scores[..., :1]
    p = torch.softmax(scores, -1, out=scores)
    # The largest probability is the exponential of nothing over the sum.
    sums = top - p.amax(-1, keepdim=True).log() if with_sums else top
    return p.to(q_NMD.dtype), sums


def _score_gradients(
    p: torch.Tensor, do: torch.Tensor, v: torch.Tensor, along: torch.Tensor, scaling: float
) -> torch.Tensor:
    """The gradient of a block's scaled scores.

    Args:
        p: probabilities [N, M, keys].
        do: gradient of the output [N, M, D], times the block's share in it.
        v: values [N, keys, D].
        along: the product of output and gradient [N, M, 1], times the share.
        scaling: of the scores.
    """
    return torch.bmm(do, v.transpose(1, 2)).sub_(along).mul_(p).mul_(scaling)


def _blocks(group: Group) -> list[tuple[int, int]]:
    """First and last query of each block; it sees the keys up to the last."""
    size = BLOCK_QUERIES if group.length > BLOCK_QUERIES * 3 // 2 else group.length
    return [(a, min(a + size, group.length)) for a in range(0, group.length, size)]


def _chunks(q_THD: torch.Tensor, past_k: torch.Tensor) -> list[tuple[int, int]]:
    """First and last token of the blocks that attend to the prefix."""
    tokens, heads, _ = q_THD.shape
    size = max(BLOCK_SCORES // (heads * len(past_k)), 1)
    return [(a, min(a + size, tokens)) for a in range(0, tokens, size)]


def _prefix_mask(plan: _Plan, first: int, last: int, q_KMD: torch.Tensor) -> torch.Tensor:
    if plan.window is None:
        return q_KMD.new_zeros(())
    heads = q_KMD.shape[1] // (last - first)
    return plan.rows.prefix_mask(first, last, heads, plan.window, q_KMD.dtype)


def _by_head(x_BLHD: torch.Tensor, key_heads: int) -> torch.Tensor:
    """[B, L, H, D] -> [B * K, H / K, L, D]."""
    b, length, h, d = x_BLHD.shape
    return x_BLHD.transpose(1, 2).reshape(b * key_heads, h // key_heads, length, d)


def _by_key(x_THD: torch.Tensor, key_heads: int) -> torch.Tensor:
    """[T, H, D] -> [K, T * H / K, D]."""
    t, h, d = x_THD.shape
    return x_THD.view(t, key_heads, h // key_heads, d).transpose(0, 1).reshape(key_heads, -1, d)


def _from_key(x_KMD: torch.Tensor, tokens: int) -> torch.Tensor:
    """The inverse of `_by_key`."""
    k, _, d = x_KMD.shape
    return x_KMD.view(k, tokens, -1, d).transpose(0, 1).reshape(tokens, -1, d)


def _tokens(blocks: list[torch.Tensor], shape: torch.Size, group: Group) -> torch.Tensor:
    """Blocks of queries [B * K, H / K * n, D] -> [B, L, H, D]."""
    x = torch.cat([block.view(*shape[:2], -1, block.shape[-1]) for block in blocks], 2)
    return x.view(group.rows, -1, *x.shape[2:]).transpose(1, 2)


def _queries(x: torch.Tensor, first: int, last: int) -> torch.Tensor:
    """Queries of a block, heads that share keys end to end: [B * K, H / K * n, D]."""
    return x[:, :, first:last].flatten(1, 2)


def _add(total: torch.Tensor, block: torch.Tensor) -> torch.Tensor:
    """Add a block's part to the first keys of the total; the first block is the total."""
    if not total.numel():
        return block
    total[:, : block.shape[1]] += block
    return total


def _wide(x: torch.Tensor) -> torch.dtype:
    """float32 or better, for a softmax."""
    return torch.promote_types(x.dtype, torch.float32)
