"""Gradients of several adapters on one base, in one forward and backward pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from offbook.engine.batching import Step
from offbook.engine.dropout import Masks
from offbook.engine.engine import Engine, Losses
from offbook.engine.joint import JointBatch, JointMasks


@dataclass(frozen=True)
class AdapterStep:
    """The step of one adapter, computed in one pass with steps of further adapters.

    Attributes:
        engine: of its model.
        step: a single micro-batch.
        seed: of dropout.
    """

    engine: Engine
    step: Step
    seed: Sequence[int]


def can_join(engine: Engine, step: Step) -> bool:
    """Whether a step can be computed together with those of other adapters."""
    return engine.packed and len(step.micro_batches) == 1


def accumulate_together(
    steps: Sequence[AdapterStep], should_stop: Callable[[], bool]
) -> list[tuple[float, Losses]] | None:
    """Add up the gradients of a step of each of several adapters, in training mode.

    Each gets what `Engine.accumulate` gives it, to rounding.

    Args:
        steps: of models with the same base; the first one's layers compute.
        should_stop: called before.

    Returns:
        For each, the mean loss in nats per token, and its micro-batch with the losses; None, and no
        gradients, if `should_stop` was true.
    """
    host = steps[0].engine
    batches = [batch for one in steps for batch in one.step.micro_batches]
    joint = JointBatch.of(batches)
    each = []
    for one in steps:
        one.engine.train_mode()
        each.append(Masks.draw(one.seed, len(one.engine.dropouts), joint.input_ids.device))
    layers = list(host.projections())
    own = tuple(dict(zip(layers, one.engine.projections(), strict=True)) for one in steps)
    masks = JointMasks((), joint.numbers, joint.numbers, tuple(each), own, joint)
    if should_stop():
        return None
    with host.kernel_threads():
        loss_N = host.loss(joint, masks=masks)
        parts = loss_N.split([batch.supervised for batch in batches])
        means = [part.sum() / one.step.supervised for part, one in zip(parts, steps, strict=True)]
        torch.stack(means).sum().backward()
    return [
        (mean.item(), [(batch, part.detach())])
        for mean, batch, part in zip(means, batches, parts, strict=True)
    ]
