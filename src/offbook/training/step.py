"""One optimizer step: gradients as memory allows, the checks before it, and the update."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, TypeVar

import torch

from offbook.engine.batching import Step
from offbook.engine.memory import is_out_of_memory
from offbook.errors import MemoryPlanError, NonFiniteError
from offbook.runs.checkpoint import Progress
from offbook.tokens.examples import Example
from offbook.training.schedule import Schedule, learning_rate_at
from offbook.training.setup import LoadedRun

Log = Callable[[dict[str, Any]], None]
T = TypeVar("T")

COMPARED_LOSSES = 20  # a spike is measured against the median of so many


@dataclass(frozen=True)
class StepResult:
    """What an optimizer step was.

    Attributes:
        loss: mean over its supervised tokens, in nats.
        grad_norm: of its gradients before clipping.
        learning_rate: it was taken with.
        examples: it saw.
    """

    loss: float
    grad_norm: float
    learning_rate: float
    examples: int


@dataclass(frozen=True)
class Stepper:
    """Takes the steps of a run.

    Attributes:
        parts: of the run.
        optimizer: of the adapter.
        progress: how far the run is; it moves on with each step.
        log: writes a line of metrics.
        announce: tells the user.
        should_stop: asked between micro-batches.
    """

    parts: LoadedRun
    optimizer: torch.optim.Optimizer
    progress: Progress
    log: Log
    announce: Callable[[str], None]
    should_stop: Callable[[], bool]

    def step(self) -> StepResult | None:
        """Take the next optimizer step; None when it was told to stop, and nothing has changed.

        Raises:
            NonFiniteError: when loss, gradients or weights are not finite; nothing has changed.
            MemoryPlanError: when memory is not enough for a single row.
        """
        parts, progress, settings = self.parts, self.progress, self.parts.config.train
        schedule = Schedule.of(parts.training, settings)
        examples = [parts.training[row] for row in schedule.rows(progress.step)]
        rate = learning_rate_at(progress.step, schedule.total_steps(settings), settings)
        seed = [settings.seed, progress.step]
        loss, tokens = self._within_memory(
            examples,
            lambda step: (parts.engine.accumulate(step, seed, self.should_stop), step.supervised),
        )
        if loss is None:
            return None
        weights = self._weights()
        grad_norm = torch.nn.utils.clip_grad_norm_(weights, settings.max_grad_norm).item()
        self._check(loss, grad_norm, weights, examples)
        if not self._is_spike(loss):
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        progress.add(loss, tokens)
        return StepResult(loss, grad_norm, rate, len(examples))

    def validate(self) -> bool:
        """Log the loss on the validation rows, if there are any; False when told to stop.

        Raises:
            NonFiniteError: when it is not finite.
            MemoryPlanError: when memory is not enough for a single row.
        """
        parts, step = self.parts, self.progress.step
        if not len(parts.validation):
            return True
        loss = self._within_memory(
            parts.validation, lambda step: parts.engine.mean_loss(step, self.should_stop)
        )
        if loss is None:
            return False
        if not math.isfinite(loss):
            raise _not_finite(f"the validation loss after step {step} is {loss:g}")
        self.log({"step": step, "eval_loss": loss})
        return True

    def check_weights(self) -> None:
        """Make sure that the adapter may be saved.

        Raises:
            NonFiniteError: when a weight is not finite.
        """
        norm = _norm(self._weights())
        if not math.isfinite(norm):
            raise _not_finite(
                f"step {self.progress.step} left an adapter with norm {norm:g}; it is not saved"
            )

    def _weights(self) -> list[torch.Tensor]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def _check(
        self, loss: float, grad_norm: float, weights: list[torch.Tensor], examples: list[Example]
    ) -> None:
        weight_norm = _norm(weights)
        if not all(map(math.isfinite, (loss, grad_norm, weight_norm))):
            self.optimizer.zero_grad(set_to_none=True)
            raise _not_finite(
                f"step {self.progress.step + 1} has loss {loss:g}, gradient norm {grad_norm:g} "
                f"and adapter norm {weight_norm:g}, and was not taken; "
                f"its rows are {', '.join(example.source for example in examples)}"
            )

    def _is_spike(self, loss: float) -> bool:
        limit = self.parts.config.train.skip_loss_spikes
        recent, step = self.progress.recent_losses, self.progress.step + 1
        if limit is None:
            return False
        usual = median(recent) if len(recent) == COMPARED_LOSSES else math.inf
        # A spike counts among the losses after it: if they stay that high, it was none.
        recent.append(loss)
        del recent[:-COMPARED_LOSSES]
        if loss <= limit * usual:
            return False
        self.log({"step": step, "skipped_loss": loss, "median_loss": usual})
        self.announce(f"step {step} skipped: its loss is {loss:.3f}, the usual one {usual:.3f}")
        return True

    def _within_memory(self, examples: Sequence[Example], compute: Callable[[Step], T]) -> T:
        """`compute` on examples in micro-batches, in smaller ones when memory is not enough."""
        parts = self.parts
        while True:
            step = parts.engine.make_step(examples, self.progress.micro_batch_tokens, parts.device)
            try:
                return compute(step)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            # Not in the block above: the error there holds on to the tensors of what failed.
            self.optimizer.zero_grad(set_to_none=True)
            if parts.device.type == "cuda":
                torch.cuda.empty_cache()
            self._halve(step)

    def _halve(self, tried: Step) -> None:
        longest = max(len(batch.input_ids) for batch in tried.micro_batches) + len(tried.prefix)
        if all(len(batch.lengths) == 1 for batch in tried.micro_batches):
            raise MemoryPlanError(
                f"memory is not enough for a single row of {longest} tokens; "
                f"planned: {self.parts.plan.describe()}",
                fix="close other programs, choose a smaller base, or lower data.max_length or "
                "lora.r",
            )
        tokens = min(self.progress.micro_batch_tokens, longest) // 2
        self.progress.micro_batch_tokens = tokens
        step = self.progress.step + 1
        self.log({"step": step, "micro_batch_tokens": tokens})
        self.announce(f"step {step}: not enough memory; micro-batches have {tokens} tokens now")


def _norm(tensors: list[torch.Tensor]) -> float:
    with torch.no_grad():
        return torch.nn.utils.get_total_norm(tensors).item()


def _not_finite(what: str) -> NonFiniteError:
    return NonFiniteError(
        what, fix="train anew with --overwrite and a lower train.learning_rate, or mend the rows"
    )
