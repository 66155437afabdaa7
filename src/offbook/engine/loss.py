"""The loss of a micro-batch, computed at supervised positions alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import nn
from torch.nn import functional as F

from offbook.batching import Batch
from offbook.model import backbone, head
from offbook.template import IGNORED


def supervised_loss(model: nn.Module, batch: Batch) -> torch.Tensor:
    """The summed cross-entropy of a micro-batch's supervised tokens, in nats.

    Prompt positions never reach the output head, which for a large vocabulary is the widest layer
    by far. A sum, not a mean: the caller divides by the supervised tokens of the whole step, so
    that how a step is cut into micro-batches does not matter.

    Args:
        model: a causal language model, with or without an adapter.
        batch: right-padded rows.

    Returns:
        A float32 scalar.
    """
    # Rows are padded on the right and attention is causal, so no real token sees padding and no
    # mask is needed.
    hidden_BTD = backbone(model)(input_ids=batch.input_ids, use_cache=False).last_hidden_state
    targets_BT = batch.labels[:, 1:]
    at = targets_BT != IGNORED
    logits_NV = head(model)(hidden_BTD[:, :-1][at])
    return F.cross_entropy(logits_NV.float(), targets_BT[at], reduction="sum")


def mean_loss(
    model: nn.Module, batches: Iterable[Batch], should_stop: Callable[[], bool] = lambda: False
) -> float | None:
    """The loss per supervised token over many micro-batches, in evaluation mode, in nats.

    Returns None when `should_stop` says so before the end.
    """
    was_training = model.training
    model.eval()
    total, tokens = 0.0, 0
    try:
        with torch.no_grad():
            for batch in batches:
                if should_stop():
                    return None
                total += supervised_loss(model, batch).item()
                tokens += batch.supervised
    finally:
        model.train(was_training)
    return total / tokens
