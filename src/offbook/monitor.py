"""What training reports while it works: metrics and messages, to a monitor that receives them.

Only the command line prints, so training calls a `Monitor` and does not know what it does.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Metrics:
    """A line of `metrics.jsonl`; its keys are the fields of one of the subclasses, in their order.

    A line of a kind that this version does not know is read as this class.

    Attributes:
        step: optimizer steps done; for `SkippedStep` and `SmallerMicroBatches`, the step itself.
    """

    step: int


@dataclass(frozen=True)
class StepMetrics(Metrics):
    """Written every `train.logging_steps` steps, and after the last one.

    Attributes:
        epoch: steps done, in epochs.
        loss: mean over the supervised tokens since the last such line, in nats.
        grad_norm: norm of the last step's gradients before clipping.
        learning_rate: of the last step.
        examples_per_second: of the last step.
    """

    epoch: float
    loss: float
    grad_norm: float
    learning_rate: float
    examples_per_second: float


@dataclass(frozen=True)
class EvalMetrics(Metrics):
    """Written after an evaluation on the validation rows.

    Attributes:
        eval_loss: mean over their supervised tokens, in nats.
    """

    eval_loss: float


@dataclass(frozen=True)
class SkippedStep(Metrics):
    """Written when a step's update was skipped because of its loss.

    Attributes:
        skipped_loss: loss of the step, in nats per token.
        median_loss: median of the steps before it, which it was compared with.
    """

    skipped_loss: float
    median_loss: float


@dataclass(frozen=True)
class SmallerMicroBatches(Metrics):
    """Written when memory was not enough for a step's micro-batches.

    Attributes:
        micro_batch_tokens: most tokens of a micro-batch from now on.
    """

    micro_batch_tokens: int


class Monitor:
    """Receives what training reports. Subclass it and override the methods you need."""

    def announce(self, text: str) -> None:
        """Something the user should know, in one line."""

    def reading(self, rows: int) -> None:
        """Rows tokenized so far."""

    def begin(self, step: int, total: int) -> None:
        """Training starts after `step` of `total` optimizer steps."""

    def step(self, step: int, loss: float, examples_per_second: float) -> None:
        """An optimizer step is done."""

    def metrics(self, record: Metrics) -> None:
        """A line was added to `metrics.jsonl`."""
