"""How long a run will take and how much memory it will need, without the base's weights."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace

import torch

from offbook.engine.batching import MicroBatch, Step, make_step
from offbook.engine.engine import Engine
from offbook.engine.memory import prepare_allocator
from offbook.errors import ConfigError
from offbook.models.adapter import attach_adapter
from offbook.models.load import choose_device
from offbook.models.skeleton import make_skeleton
from offbook.models.targets import ALL_LINEAR
from offbook.monitor import Monitor
from offbook.settings.config import Config
from offbook.training.inputs import RunInputs, gather
from offbook.training.plan import ModelShape, Plan
from offbook.training.practice import Amount
from offbook.training.schedule import check_warmup
from offbook.training.setup import tell_missing_kernels

COUNTED_STEPS = 50  # whose tokens are counted
FEWEST_STEPS = 2
# Share of the time that is left for loading, saving, and a machine that is slower than measured.
OVERHEAD = 0.1


@dataclass(frozen=True)
class Forecast:
    """The predicted time and memory of a run.

    Attributes:
        parameters: of the base.
        trained: parameters of the adapter.
        plan: the memory, and the size of micro-batches.
        steps: optimizer steps in all.
        supervised: tokens that they train on.
        learning_rate: the highest of the run.
        step_tokens: of an average step; a shared prefix counts once.
        step_flops: of an average step.
        flops_per_second: measured on one layer of the model's widths; None where the device is not
            here.
        step_seconds: of an average step; None where `flops_per_second` is None.
    """

    parameters: int
    trained: int
    plan: Plan
    steps: int
    supervised: int
    learning_rate: float
    step_tokens: float
    step_flops: float
    flops_per_second: float | None
    step_seconds: float | None


def forecast(
    config: Config,
    monitor: Monitor,
    device: torch.device | None = None,
    available: int | None = None,
) -> Forecast:
    """Read the data and the base's configuration, and measure the speed of a step.

    Args:
        config: of the run.
        monitor: receives what is read and planned.
        device: that will compute; it need not be here. By default, the one that is.
        available: bytes of its memory; by default, what it has now.
    """
    run = gather(config, monitor, weights=False, device=device, available=available)
    prediction = predict(run, monitor)
    if prediction.flops_per_second:
        packed = run.shape.packed and run.config.train.engine == "fast"
        tell_missing_kernels(run.device, monitor, packed=packed)
    return prediction


def predict(run: RunInputs, monitor: Monitor) -> Forecast:
    """Measure the speed of a step of a run that is planned."""
    settings, shape = run.config.train, run.shape
    rate = settings.learning_rate
    assert rate != "auto"
    packed = shape.packed and settings.engine == "fast"
    schedule, amount = run.schedule, Amount.of(run.training, run.config)
    steps = [
        make_step(
            run.examples(k),
            run.plan.micro_batch_tokens,
            torch.device("cpu"),  # only their tokens are counted
            packed=packed,
        )
        for k in range(min(COUNTED_STEPS, schedule.steps_per_epoch))
    ]
    flops = sum(shape.flops(step.tokens, step.supervised) for step in steps) / len(steps)
    tokens = sum(step.tokens for step in steps) / len(steps)
    if run.plan.checkpointing:
        flops += tokens * 2 * shape.linear  # the forward pass once more
    here = run.device.type == choose_device(run.config.model.device).type
    monitor.busy("measuring the speed of a step")
    speed = measure_speed(run.config, shape, run.dtype) if here else None
    return Forecast(
        parameters=shape.parameters,
        trained=shape.adapter,
        plan=run.plan,
        steps=amount.updates,
        supervised=amount.supervised,
        learning_rate=rate,
        step_tokens=tokens,
        step_flops=flops,
        flops_per_second=speed,
        step_seconds=flops / speed if speed else None,
    )


def fit_to_time(run: RunInputs, seconds: float, monitor: Monitor, processes: int = 1) -> RunInputs:
    """The run with as many steps as fit in this time, and no more than its settings say.

    A step is measured in this process, and divided by how many there are.

    Validations, which take a third of a step's time per token, are counted; `OVERHEAD` is left for
    everything else.

    Raises:
        ConfigError: when not even a few steps fit.
    """
    expected = predict(run, monitor)
    assert expected.step_seconds is not None
    a_step = expected.step_seconds / processes
    settings, schedule = run.config.train, run.schedule
    a_token = a_step / expected.step_tokens
    validation = int(run.validation.lengths.sum()) * a_token / 3
    every = min(settings.eval_steps or schedule.steps_per_epoch, expected.steps)
    steps = (seconds * (1 - OVERHEAD) - 2 * validation) / (a_step + validation / every)
    told = f"a step takes about {a_step:.3g} s, as measured"
    if steps >= expected.steps:
        monitor.announce(f"{told}: all {expected.steps:,} steps fit in the time")
        return run
    if steps < FEWEST_STEPS:
        least = FEWEST_STEPS * a_step + 3 * validation
        raise ConfigError(
            f"not even {FEWEST_STEPS} steps fit in {seconds:.0f} s; {told}",
            where="--within",
            fix=f"allow {math.ceil(least / (1 - OVERHEAD))}s or more, or lower train.batch_size",
        )
    fitted = replace(run, config=run.config.with_value("train.max_steps", int(steps)))
    monitor.announce(
        f"{told}: {int(steps):,} of {expected.steps:,} steps fit in the time, which is "
        f"{steps / schedule.steps_per_epoch:.2f} epochs (train.max_steps={int(steps)})"
    )
    if notice := check_warmup(schedule, fitted.config.train):
        monitor.announce(notice)
    return fitted


def measure_speed(config: Config, shape: ModelShape, dtype: torch.dtype) -> float:
    """FLOP per second of a step on this device.

    It is measured on a model with one layer of the same widths, which is quick and needs no
    weights.
    """
    device = choose_device(config.model.device)
    prepare_allocator(device)
    small = type(shape.config).from_dict(
        shape.config.to_dict()
        | {"num_hidden_layers": 1, "vocab_size": 8192, "layer_types": None}
        | {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    )
    base = make_skeleton(small, dtype)
    base.to_empty(device=device).requires_grad_(False)
    for tensor in (*base.parameters(), *base.buffers()):
        torch.nn.init.constant_(tensor, 0.01)
    lora = config.lora
    if isinstance(lora.target_modules, str):  # a pattern may match other layers only
        lora = lora.model_copy(update={"target_modules": ALL_LINEAR})
    model = attach_adapter(base, lora, 0, "")
    engine = Engine(model, fast=config.train.engine == "fast")
    adapter = sum(p.numel() for p in model.parameters() if p.requires_grad)
    linear = shape.linear // shape.config.num_hidden_layers
    layer = ModelShape(small, 0, linear, 8192 * small.hidden_size, adapter, shape.packed)
    longest = config.data.max_length
    sequences, length = 8, 128 if longest == "auto" else min(128, longest)
    tokens = sequences * length
    places = torch.arange(tokens, device=device)
    ids = places % 8192
    step = Step(ids[:0], [MicroBatch(ids, ids, places, places, (length,) * sequences, 0)], tokens)
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        engine.accumulate(step, [0])
        model.zero_grad()
        seconds.append(time.perf_counter() - start)
    return layer.flops(tokens, tokens) / min(seconds)
