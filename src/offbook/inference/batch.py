"""Greedy replies to many prompts at once.

A token of one reply reads all weights for a single product; a token of many replies reads them once
for all. What all prompts begin with is computed once; what follows is padded on the left, so
that all replies continue at the same place.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from itertools import takewhile

import torch
from torch import nn

from offbook.inference.cache import make_cache
from offbook.inference.threads import FasterThreads
from offbook.models.base import head_shape
from offbook.models.load import backbone, base_of, head

MOST_REPLIES = 128  # at a time
CACHE_BYTES = 1_000_000_000  # of their keys and values
# Replies go on without those that have ended once this share of them has.
ENDED = 0.25


def greedy_replies(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    stop_ids: Collection[int],
    max_new_tokens: int,
    progress: Callable[[int], None] = lambda replies: None,
) -> list[list[int]]:
    """The tokens of each reply, without the stop token: always the likeliest.

    In float32 these are the tokens of `generate`, unless two are as likely except for rounding.

    Args:
        model: in evaluation mode.
        prompts: the tokens before each reply.
        stop_ids: the tokens that end one.
        max_new_tokens: of a reply.
        progress: called with the number of replies that are done.
    """
    replies: list[list[int]] = [[] for _ in prompts]
    # Prompts of similar length need little padding.
    order = sorted(range(len(prompts)), key=lambda n: len(prompts[n]))
    longest = max(map(len, prompts), default=0) + max_new_tokens
    size = max(min(MOST_REPLIES, CACHE_BYTES // (longest * _token_bytes(model))), 1)
    faster = FasterThreads()
    for first in range(0, len(order), size):
        chosen = order[first : first + size]
        written = _write(model, [prompts[n] for n in chosen], stop_ids, max_new_tokens, faster)
        for n, reply in zip(chosen, written, strict=True):
            replies[n] = reply
        progress(first + len(chosen))
    return replies


def _token_bytes(model: nn.Module) -> int:
    """Bytes of the keys and values of a token."""
    base = base_of(model)
    config = base.config.get_text_config()
    _, heads, channels = head_shape(config)
    layers: int = config.num_hidden_layers
    return 2 * layers * heads * channels * base.dtype.itemsize


@torch.no_grad()
def _write(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    stop_ids: Collection[int],
    max_new_tokens: int,
    faster: FasterThreads,
) -> list[list[int]]:
    device = next(model.parameters()).device
    cache = make_cache()
    # Of each prompt, at least one token is left.
    alike = takewhile(lambda ids: len(set(ids)) == 1, zip(*prompts, strict=False))
    start = min(sum(1 for _ in alike), min(map(len, prompts)) - 1)
    # Padding after the prefix would count in a sliding window.
    window = getattr(base_of(model).config.get_text_config(), "sliding_window", None)
    if start and len(prompts) > 1 and window is None:
        prefix_T = torch.tensor([list(prompts[0][:start])], device=device)
        backbone(model)(input_ids=prefix_T, past_key_values=cache, use_cache=True)
        cache.batch_repeat_interleave(len(prompts))
    else:
        start = 0
    longest = max(map(len, prompts)) - start
    padding_B = torch.tensor([longest - len(p) + start for p in prompts], device=device)
    ids_BT = torch.tensor(
        [[0] * (longest - len(p) + start) + list(p[start:]) for p in prompts], device=device
    )
    seen_BT = torch.arange(longest, device=device) >= padding_B[:, None]
    positions_BT = (torch.arange(longest, device=device) - padding_B[:, None]).clamp_(min=0) + start
    seen_BT = torch.cat([seen_BT.new_ones(len(prompts), start), seen_BT], 1)
    replies: list[list[int]] = [[] for _ in prompts]
    going = list(range(len(prompts)))  # which reply each row is
    for number in range(max_new_tokens):
        with faster.token(number):
            out = backbone(model)(
                input_ids=ids_BT,
                attention_mask=seen_BT.long(),
                position_ids=positions_BT,
                past_key_values=cache,
                use_cache=True,
            )
            tokens_B = head(model)(out.last_hidden_state[:, -1]).float().argmax(-1)
        open_rows = []
        for row, token in enumerate(tokens_B.tolist()):
            ended = len(replies[going[row]]) < number  # in an earlier step
            if not ended and token not in stop_ids:
                replies[going[row]].append(token)
                open_rows.append(row)
        if not open_rows:
            break
        seen_BT = torch.cat([seen_BT, seen_BT.new_ones(len(seen_BT), 1)], 1)
        positions_BT, ids_BT = positions_BT[:, -1:] + 1, tokens_B[:, None]
        if len(open_rows) <= (1 - ENDED) * len(going):
            kept = torch.tensor(open_rows)  # the layers' caches may be on several devices
            cache.batch_select_indices(kept)
            seen_BT, positions_BT, ids_BT = seen_BT[kept], positions_BT[kept], ids_BT[kept]
            going = [going[row] for row in open_rows]
    return replies
