"""A run that is ready to take its first optimizer step."""

from __future__ import annotations

from typing import Any

import torch

from offbook.config import Config
from offbook.monitor import Monitor
from offbook.runs.checkpoint import Progress
from offbook.training.setup import prepare
from offbook.training.step import Stepper


def make_stepper(
    config: Config,
    log: list[dict[str, Any]] | None = None,
    optimizer: type[torch.optim.Optimizer] = torch.optim.AdamW,
) -> Stepper:
    """What takes the steps of a run, before the first of them; `log` gets its metrics."""
    parts = prepare(config, Monitor())
    weights = [p for p in parts.model.parameters() if p.requires_grad]
    return Stepper(
        parts,
        optimizer(weights, lr=config.train.learning_rate),
        Progress(parts.plan.micro_batch_tokens),
        [].append if log is None else log.append,
        lambda text: None,
        lambda: False,
    )


def flat(stepper: Stepper) -> torch.Tensor:
    """A copy of all trained weights, end to end."""
    return torch.cat([p.detach().flatten() for p in stepper.optimizer.param_groups[0]["params"]])
