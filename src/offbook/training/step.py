"""The parts of an optimizer step that need care: gradients, finite numbers, loss spikes, saving.

`loop.py` puts them together.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import median
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from offbook.engine.batching import Step
from offbook.engine.check import check_gradients, check_or_fall_back
from offbook.engine.engine import LOSS_SCALE, Losses, row_losses
from offbook.errors import NonFiniteError
from offbook.models.load import require_finite_weights
from offbook.monitor import RowLosses, SkippedStep
from offbook.runs import checkpoint
from offbook.runs.checkpoint import FIRST_LOSSES, Progress
from offbook.runs.directory import RunDirectory
from offbook.settings.sections import TrainSettings
from offbook.tokens.examples import IGNORED, Example
from offbook.training.curve import describe_rate
from offbook.training.distributed import ALONE, Processes, exchanging
from offbook.training.log import Log
from offbook.training.micro_batches import MicroBatches
from offbook.training.schedule import fitting_rate, warmup_steps
from offbook.training.setup import LoadedRun

COMPARED_LOSSES = 20  # a spike is measured against the median of the losses of this many steps


@dataclass(frozen=True)
class StepResult:
    """A completed optimizer step.

    Attributes:
        loss: mean over its supervised tokens, in nats.
        grad_norm: norm of the gradients before clipping.
        learning_rate: of the update.
        examples: in its batch.
        seconds: it took.
    """

    loss: float
    grad_norm: float
    learning_rate: float
    examples: int
    seconds: float

    @property
    def examples_per_second(self) -> float:
        return self.examples / self.seconds


class Computed(NamedTuple):
    """A step whose gradients are computed.

    Attributes:
        loss: mean over its supervised tokens, in nats.
        tokens: supervised ones.
        by_row: the loss of each example that has any, by its number in the step.
        seconds: it took.
    """

    loss: float
    tokens: int
    by_row: dict[int, float]
    seconds: float


@dataclass
class Wanted:
    """Gradients that a run waits for, which may be computed with those of other runs.

    Attributes:
        stepper: of the run.
        examples: of the step.
        found: set where they are computed; else the run does it.
    """

    stepper: Stepper
    examples: Sequence[Example]
    found: Computed | None = None


@dataclass(frozen=True)
class Stepper:
    """The state of a run in training, and the operations of its steps.

    Attributes:
        loaded: model, engine and examples.
        optimizer: of the adapter.
        progress: how far the run is.
        log: writes a line of metrics.
        announce: receives messages for the user.
        should_stop: called before each micro-batch.
        processes: that train together.
        together: whether the run waits in each step, so that others can be computed with it.
    """

    loaded: LoadedRun
    optimizer: torch.optim.Optimizer
    progress: Progress
    log: Log
    announce: Callable[[str], None]
    should_stop: Callable[[], bool]
    processes: Processes = ALONE
    together: bool = False

    @cached_property
    def _micro_batches(self) -> MicroBatches:
        return MicroBatches(
            self.loaded, self.progress, self.log, self.announce, self.should_stop, self.processes
        )

    @property
    def seed(self) -> list[int]:
        """Of dropout in the next step."""
        return [self.settings.seed, self.progress.step]

    @property
    def settings(self) -> TrainSettings:
        return self.loaded.inputs.config.train

    def validations(self, run: RunDirectory) -> dict[int, float]:
        """The validation loss after each step that has one."""
        pairs = self.processes.first(lambda: list(checkpoint.validations(run).items()))
        return dict(pairs)

    def check_engine(self, examples: Sequence[Example]) -> None:
        """Compare the engine's gradients with those of transformers and PEFT, in each process.

        Raises:
            EngineError: when they differ by more than rounding.
        """
        engine, inputs = self.loaded.engine, self.loaded.inputs
        if inputs.sharded:  # all compute the same here, and none may go another way
            with exchanging():
                check_gradients(engine, examples, inputs.device)
            return
        self.processes.each(
            lambda: check_or_fall_back(engine, examples, inputs.device, self.announce)
        )

    def gradients(self, examples: Sequence[Example]) -> Generator[Wanted, None, Computed]:
        """As `forward_backward`; of runs that are trained together, after a pause."""
        wanted = Wanted(self, examples)
        if self.together:
            yield wanted
        return wanted.found or self.forward_backward(examples)

    def forward_backward(self, examples: Sequence[Example]) -> Computed:
        """Compute the gradients of the mean loss over the supervised tokens of `examples`.

        Raises:
            Stopped: when a process was asked to stop; gradients are to be discarded then.
            MemoryPlanError: when memory is not enough for a single row.
        """
        engine, should_stop = self.loaded.engine, self._micro_batches.should_stop
        started = time.perf_counter()
        losses: Losses = []

        def accumulate(step: Step) -> float | None:
            losses.clear()  # of an attempt before this one
            scale = LOSS_SCALE / 2**self.progress.halvings
            return engine.accumulate(step, self.seed, should_stop, losses, scale)

        def compute() -> list[float]:
            loss = self._micro_batches.compute(examples, accumulate)
            by_row = row_losses(losses)
            return [loss, *(by_row.get(row, 0.0) for row in range(len(examples)))]

        supervised = [int((e.labels[1:] != IGNORED).sum()) for e in examples]
        # Without a supervised token there are no gradients, and the optimizer must see none.
        weights = self._weights() if any(supervised) else []
        sharded = self.loaded.inputs.sharded
        loss, *by_row = self.processes.add_up(weights, 1 + len(examples), compute, sharded)
        while self._halve_loss_scale(loss):
            loss, *by_row = self.processes.add_up(weights, 1 + len(examples), compute, sharded)
        found = {row: by_row[row] for row, n in enumerate(supervised) if n}
        return Computed(loss, sum(supervised), found, time.perf_counter() - started)

    def evaluate(self, examples: Sequence[Example]) -> float:
        """The mean loss per supervised token, in nats, without dropout.

        Raises:
            Stopped: when asked to stop.
            NonFiniteError: when it is not finite.
            MemoryPlanError: when memory is not enough for a single row.
        """
        engine, should_stop = self.loaded.engine, self._micro_batches.should_stop

        def mean_loss(step: Step) -> float | None:
            return engine.mean_loss(step, should_stop)

        def compute() -> list[float]:
            return [self._micro_batches.compute(examples, mean_loss)]

        (loss,) = self.processes.add_up([], 1, compute, self.loaded.inputs.sharded)
        if not math.isfinite(loss):
            require_finite_weights(self.loaded.model, self.loaded.inputs.config.model.base)
            raise _not_finite(f"the validation loss after step {self.progress.step} is {loss:g}")
        return loss

    def clip_gradients(self) -> float:
        """Scale the gradients down to `train.max_grad_norm`; returns their norm before."""
        limit = self.settings.max_grad_norm
        return torch.nn.utils.clip_grad_norm_(self._weights(), limit).item()

    def require_finite(self, loss: float, grad_norm: float, examples: Sequence[Example]) -> None:
        """Refuse an update with numbers that are not finite; the weights stay as they are.

        Raises:
            NonFiniteError: naming the rows of the step.
        """
        weight_norm = _norm(self._weights())
        if not all(map(math.isfinite, (loss, grad_norm, weight_norm))):
            self.optimizer.zero_grad(set_to_none=True)
            require_finite_weights(self.loaded.model, self.loaded.inputs.config.model.base)
            raise _not_finite(
                f"step {self.progress.step + 1} has loss {loss:g}, gradient norm {grad_norm:g} "
                f"and adapter norm {weight_norm:g}, and was not taken; "
                f"its rows are {', '.join(example.source for example in examples)}"
            )

    def is_loss_spike(self, loss: float) -> bool:
        """Whether a loss is more than `train.skip_loss_spikes` times the usual one; logs it then.

        Call it once for each step: it remembers the loss.
        """
        limit = self.settings.skip_loss_spikes
        recent, step = self.progress.recent_losses, self.progress.step + 1
        if limit is None:
            return False
        usual = median(recent) if len(recent) == COMPARED_LOSSES else math.inf
        # A spike is remembered too: when losses stay that high, they are no spikes.
        recent.append(loss)
        del recent[:-COMPARED_LOSSES]
        if loss <= limit * usual:
            return False
        self.log(SkippedStep(step, skipped_loss=loss, median_loss=usual))
        self.announce(f"step {step} skipped: its loss is {loss:.3f}, the usual one {usual:.3f}")
        return True

    def log_rows(self, rows: NDArray[np.int64], losses: Mapping[int, float]) -> None:
        """Log the loss of each example of the last step.

        Args:
            rows: the index of each example among those that are trained on.
            losses: of examples, by their number in the step.
        """
        # Behind them are general examples that are mixed in.
        found = {k: loss for k, loss in losses.items() if k < len(rows)}
        numbers, rounded = [int(rows[k]) for k in found], [round(x, 4) for x in found.values()]
        self.log(RowLosses(self.progress.step, numbers, rounded))

    def check_rate(self, total: int) -> None:
        """Announce, after the first steps, that the learning rate is far from one that fits.

        Args:
            total: optimizer steps in all.
        """
        progress, inputs, settings = self.progress, self.loaded.inputs, self.settings
        begun = len(progress.first_losses) == FIRST_LOSSES == progress.step
        if not begun or 2 * warmup_steps(total, settings) > FIRST_LOSSES:
            return
        rule = fitting_rate(
            inputs.shape.config.hidden_size, inputs.shape.config.model_type, inputs.config.lora
        )
        rate = settings.learning_rate
        assert rate != "auto"
        if told := describe_rate(progress.first_losses, rate, rule):
            self.announce(told)

    def update(self, learning_rate: float) -> None:
        """Change the weights by the optimizer's rule."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate * group["lr_ratio"]
        self.optimizer.step()

    def save(self, run: RunDirectory, losses: Mapping[int, float]) -> None:
        """Commit a checkpoint, unless it exists, and remove older ones that are not kept.

        Args:
            run: to write in.
            losses: the validation loss after each step that has one.

        Raises:
            NonFiniteError: when a weight is not finite.
            DiskError: when it cannot be written.
        """
        norm = _norm(self._weights())
        if not math.isfinite(norm):
            raise _not_finite(
                f"step {self.progress.step} left an adapter with norm {norm:g}; it is not saved"
            )
        if not self.processes.make_equal(self._weights()):
            self.announce("the processes' adapters differed in last bits; the first one's is kept")
        self.processes.first(lambda: self.write(run, losses))

    def write(self, run: RunDirectory, losses: Mapping[int, float]) -> None:
        """As `save`, in this process, without asking the others."""
        self.log.flush()
        settings = self.settings
        kept = losses if settings.keep_best else {}
        checkpoint.save(
            run,
            self.loaded.model,
            self.optimizer,
            self.progress,
            settings.save_total_limit,
            kept,
        )

    def _weights(self) -> list[torch.Tensor]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def _halve_loss_scale(self, loss: float) -> bool:
        """Whether the step is to be taken again, since its gradients did not fit in float16."""
        progress = self.progress
        if self.loaded.inputs.dtype != torch.float16 or not math.isfinite(loss):
            return False
        gradients = [p.grad for p in self._weights() if p.grad is not None]
        if math.isfinite(_norm(gradients)) or 2**progress.halvings == LOSS_SCALE:
            return False
        self.optimizer.zero_grad(set_to_none=True)
        progress.halvings += 1
        self.announce(
            f"step {progress.step + 1}: gradients did not fit in float16; the loss is scaled by "
            f"{LOSS_SCALE / 2**progress.halvings:,.0f} now"
        )
        return True


def _norm(tensors: list[torch.Tensor]) -> float:
    with torch.no_grad():
        return torch.nn.utils.get_total_norm(tensors).item()


def _not_finite(what: str) -> NonFiniteError:
    return NonFiniteError(what, fix="start again with --overwrite and a lower train.learning_rate")
