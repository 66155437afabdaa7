"""Steps of several runs that fill less than a micro-batch, computed in one pass."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import torch

from offbook.engine.batching import Step
from offbook.engine.engine import row_losses
from offbook.engine.memory import deterministic, is_out_of_memory, release_cached
from offbook.engine.together import AdapterStep, accumulate_together, can_join
from offbook.training.step import Computed, Stepper, Wanted

Pass = list[tuple[Wanted, Step]]


class Packer:
    """Computes gradients that runs wait for, where a micro-batch has room for several runs' steps.

    The others, and those for which memory was not enough, each run computes by itself.
    """

    def __init__(self) -> None:
        self._most_tokens = math.inf  # of a pass, since memory was not enough for one

    def compute(self, wanted: Sequence[Wanted]) -> None:
        """Compute gradients together where that is possible; each run computes the others."""
        for steps in self._passes(wanted):
            if len(steps) > 1 and not _compute(steps):
                self._most_tokens = sum(step.tokens for _, step in steps) // 2

    def _passes(self, wanted: Sequence[Wanted]) -> list[Pass]:
        """Steps that fit one micro-batch, together: each in the first pass that has room."""
        passes: list[Pass] = []
        for one in wanted:
            stepper = one.stepper
            engine, inputs = stepper.loaded.engine, stepper.loaded.inputs
            tokens = stepper.progress.micro_batch_tokens
            step = engine.make_step(one.examples, tokens, inputs.device)
            if not can_join(engine, step) or inputs.dtype == torch.float16:  # whose loss is scaled
                continue
            for found in passes:
                first = found[0][0].stepper
                alike = first.loaded.inputs.plan.checkpointing == inputs.plan.checkpointing
                room = min(self._most_tokens, _room([stepper, *(w.stepper for w, _ in found)]))
                if alike and sum(s.tokens for _, s in found) + step.tokens <= room:
                    found.append((one, step))
                    break
            else:
                passes.append([(one, step)])
        return passes


def _room(steppers: Sequence[Stepper]) -> int:
    """Most tokens of a pass: those of the run with the longest rows, whose tokens cost most."""

    def longest(stepper: Stepper) -> tuple[int, int]:
        length = stepper.loaded.inputs.config.data.max_length
        assert length != "auto"
        return length, -stepper.progress.micro_batch_tokens

    return max(steppers, key=longest).progress.micro_batch_tokens


def _compute(steps: Pass) -> bool:
    """Compute the gradients of a pass; nothing is found where it was stopped, or memory ran out.

    Returns:
        Whether memory was enough.
    """
    started = time.perf_counter()
    steppers = [wanted.stepper for wanted, _ in steps]
    own = [AdapterStep(w.stepper.loaded.engine, step, w.stepper.seed) for w, step in steps]
    results, failed = None, False
    try:
        with deterministic(any(s.settings.deterministic for s in steppers)):
            results = accumulate_together(own, steppers[0].should_stop)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        failed = True
    if failed:  # outside the except block, where the error still holds the tensors
        for stepper in steppers:
            stepper.optimizer.zero_grad(set_to_none=True)
        release_cached(steppers[0].loaded.inputs.device)
    seconds = time.perf_counter() - started
    tokens = sum(step.tokens for _, step in steps)
    for (wanted, step), (loss, losses) in zip(steps, results or (), strict=False):
        wanted.found = Computed(
            loss, step.supervised, row_losses(losses), seconds * step.tokens / tokens
        )
    return not failed
