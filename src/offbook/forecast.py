"""How long a run will take, and what it will need, without the base's weights."""

from __future__ import annotations

from dataclasses import dataclass

from offbook.batching import Schedule, cut
from offbook.config import Config
from offbook.monitor import Monitor
from offbook.planner import Plan, measure_speed
from offbook.prepare import gather

LOOKED_AT = 50  # steps whose tokens are counted


@dataclass(frozen=True)
class Forecast:
    """What is predicted of a run.

    Attributes:
        parameters, trained: of the base, and of the adapter.
        plan: the memory, and how steps are cut.
        steps: optimizer steps in all.
        step_tokens, step_flops: of an average step, a shared prefix counted once.
        flops_per_second: measured on one layer of the model's widths.
        step_seconds: of an average step.
    """

    parameters: int
    trained: int
    plan: Plan
    steps: int
    step_tokens: float
    step_flops: float
    flops_per_second: float
    step_seconds: float


def forecast(config: Config, monitor: Monitor) -> Forecast:
    """Read the data and the base's configuration, and take one measured micro-step."""
    run = gather(config, monitor, weights=False)
    settings, shape = run.config.train, run.shape
    packed = shape.packed and settings.engine == "fast"
    schedule = Schedule.of(run.training, settings)
    steps = [
        cut(
            [run.training[row] for row in schedule.rows(k)],
            run.plan.micro_batch_tokens,
            run.device,
            packed=packed,
        )
        for k in range(min(LOOKED_AT, schedule.steps_per_epoch))
    ]
    flops = sum(shape.flops(step.tokens, step.supervised) for step in steps) / len(steps)
    tokens = sum(step.tokens for step in steps) / len(steps)
    if run.plan.checkpointing:
        flops += tokens * 2 * shape.linear  # the forward pass once more
    speed = measure_speed(run.config, shape, run.dtype)
    return Forecast(
        parameters=shape.parameters,
        trained=shape.adapter,
        plan=run.plan,
        steps=schedule.total_steps(settings),
        step_tokens=tokens,
        step_flops=flops,
        flops_per_second=speed,
        step_seconds=flops / speed,
    )
