"""Optimizer steps: refused when not finite, skipped at spikes, smaller when memory runs out."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from offbook.engine.batching import Step
from offbook.engine.engine import Engine
from offbook.engine.memory import is_out_of_memory
from offbook.errors import MemoryPlanError, NonFiniteError
from offbook.monitor import EvalMetrics, Metrics, SkippedStep, SmallerMicroBatches, StepMetrics
from offbook.runs.directory import RunDirectory
from offbook.settings.config import Config
from offbook.training.step import Stepper
from offbook.training.train import train
from support.runs import Listener, records_of, stop_after
from support.stepping import flat, make_stepper, steps_of

MakeConfig = Callable[..., Config]
Log = list[Metrics]


def moments(stepper: Stepper) -> list[torch.Tensor]:
    states = stepper.optimizer.state.values()
    return [state[key].clone() for state in states for key in ("exp_avg", "exp_avg_sq", "step")]


# Not finite.


def poison_loss(stepper: Stepper, patch: pytest.MonkeyPatch) -> None:
    plain = Engine.loss
    patch.setattr(Engine, "loss", lambda *arguments: plain(*arguments) * math.nan)


def poison_gradient(stepper: Stepper, patch: pytest.MonkeyPatch) -> None:
    weight = stepper.optimizer.param_groups[0]["params"][3]
    weight.register_hook(lambda gradient: gradient * math.inf)


def poison_weight(stepper: Stepper, patch: pytest.MonkeyPatch) -> None:
    """One that no row reaches, so that loss and gradients stay finite."""
    lost = torch.nn.Parameter(torch.tensor([math.nan]))
    lost.grad = torch.zeros(1)
    stepper.optimizer.param_groups[0]["params"].append(lost)


@pytest.mark.parametrize(
    ("poison", "facts"),
    [
        (poison_loss, r"loss nan, gradient norm nan and adapter norm \d"),
        (poison_gradient, r"loss \d\S+, gradient norm (nan|inf) and adapter norm \d"),
        (poison_weight, r"loss \d\S+, gradient norm \d\S+ and adapter norm nan"),
    ],
)
def test_a_step_that_is_not_finite_is_not_taken(
    tiny_config: MakeConfig,
    monkeypatch: pytest.MonkeyPatch,
    poison: Callable[[Stepper, pytest.MonkeyPatch], None],
    facts: str,
) -> None:
    stepper = make_stepper(tiny_config("data.validation=0"))
    steps = steps_of(stepper)
    next(steps)
    poison(stepper, monkeypatch)
    weights, before = flat(stepper), moments(stepper)
    with pytest.raises(NonFiniteError, match=facts) as caught:
        next(steps)
    assert caught.value.exit_code == 6
    assert str(caught.value).startswith("step 2 has loss ")
    assert str(caught.value).count("rows.jsonl:") == 3
    assert torch.equal(flat(stepper).nan_to_num(7.0), weights.nan_to_num(7.0))
    assert all(torch.equal(a, b) for a, b in zip(moments(stepper), before, strict=True))
    assert stepper.progress.step == 1


def test_a_validation_loss_that_is_not_finite_stops(
    tiny_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    stepper = make_stepper(tiny_config())
    poison_loss(stepper, monkeypatch)
    with pytest.raises(NonFiniteError, match="the validation loss after step 0 is nan"):
        stepper.evaluate(stepper.loaded.inputs.validation)


def test_weights_that_are_not_finite_are_not_saved(tiny_config: MakeConfig) -> None:
    # The numbers of the only step are finite; it is the update that is too large.
    config = tiny_config("train.learning_rate=1e38", "train.max_steps=1", "train.weight_decay=9")
    with pytest.raises(NonFiniteError, match=r"step 1 left an adapter with norm .* not saved"):
        train(config)
    assert not RunDirectory(Path(config.output_dir)).checkpoints.exists()


def test_a_step_after_which_nothing_is_finite_names_its_rows(tiny_config: MakeConfig) -> None:
    with pytest.raises(NonFiniteError, match=r"step \d+ has loss .*rows\.jsonl:\d"):
        train(tiny_config("train.learning_rate=1e30", "train.max_steps=20"))


def test_healthy_runs_are_not_stopped(tiny_config: MakeConfig) -> None:
    log: Log = []
    config = tiny_config("train.skip_loss_spikes=5", "train.max_steps=200", "data.validation=0")
    stepper = make_stepper(config, log)
    steps = steps_of(stepper)
    weights = flat(stepper)
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for p in stepper.optimizer.param_groups[0]["params"]:
                p.copy_(torch.randn(p.shape, generator=generator) * p.shape[0] ** -0.5 / 4)
        for _ in range(3):
            next(steps)
    assert stepper.progress.step == 60
    assert len(log) == 60
    assert all(isinstance(record, StepMetrics) for record in log)
    assert not torch.equal(flat(stepper), weights)


# Spikes.


def spike(monkeypatch: pytest.MonkeyPatch, *steps: int) -> None:
    """Multiply the loss of these steps by 100; the first step is 0."""
    plain, asked = Engine.accumulate, iter(range(10**6))

    def accumulate(*arguments: Any) -> float | None:
        loss = plain(*arguments)
        return loss * 100 if loss and next(asked) in steps else loss

    monkeypatch.setattr(Engine, "accumulate", accumulate)


def test_a_loss_spike_is_skipped_and_logged(
    tiny_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    spike(monkeypatch, 3, 25)
    log: Log = []
    config = tiny_config("train.skip_loss_spikes=5", "train.max_steps=30", "data.validation=0")
    stepper = make_stepper(config, log)
    steps = steps_of(stepper)
    for step in range(30):
        weights, before = flat(stepper), moments(stepper)
        taken = next(steps)
        # The first spike comes before there is anything to compare with.
        assert torch.equal(flat(stepper), weights) == (step == 25)
        if step == 25:
            assert all(torch.equal(a, b) for a, b in zip(moments(stepper), before, strict=True))
            (record,) = (record for record in log if isinstance(record, SkippedStep))
            assert record.step == 26
            assert record.skipped_loss == taken.loss > 5 * record.median_loss
    assert sum(isinstance(record, SkippedStep) for record in log) == 1


def test_a_loss_that_stays_high_is_no_spike(
    tiny_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    spike(monkeypatch, *range(20, 100))
    log: Log = []
    config = tiny_config("train.skip_loss_spikes=5", "train.max_steps=60", "data.validation=0")
    steps = steps_of(make_stepper(config, log))
    for _ in range(40):
        next(steps)
    skipped = [record.step for record in log if isinstance(record, SkippedStep)]
    assert skipped == list(range(21, 31))


def test_resume_remembers_the_losses_before(
    tiny_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ("train.skip_loss_spikes=5", "train.max_steps=26", "train.eval_steps=100")

    def adapter(name: str, *stops: int) -> bytes:
        config = tiny_config(*settings, f"output_dir={tmp_path / name}")
        with monkeypatch.context() as patch:
            spike(patch, 23)
            for number, stop in enumerate((*stops, 100)):
                result = train(config, resume=number > 0, should_stop=stop_after(stop))
        assert [record.step for record in records_of(SkippedStep, result.run)] == [24]
        return (result.run / "adapter" / "adapter_model.safetensors").read_bytes()

    assert adapter("whole") == adapter("stopped", 23)


# Memory.


def run_out(monkeypatch: pytest.MonkeyPatch, rows: int, error: BaseException) -> list[int]:
    """Make every step with a micro-batch of more rows than this fail once it is computed.

    Returns:
        Tokens of the largest micro-batch of each step that failed.
    """
    failed: list[int] = []

    def limited(plain: Callable[..., Any]) -> Callable[..., Any]:
        def compute(self: Engine, step: Step, *more: Any) -> Any:
            result = plain(self, step, *more)
            if max(len(batch.lengths) for batch in step.micro_batches) > rows:
                failed.append(max(len(batch.input_ids) for batch in step.micro_batches))
                raise error
            return result

        return compute

    for name in ("accumulate", "mean_loss"):
        monkeypatch.setattr(Engine, name, limited(getattr(Engine, name)))
    return failed


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."),
        MemoryError(),
    ],
)
def test_out_of_memory_halves_the_micro_batches_and_takes_the_same_step(
    tiny_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    settings = ("lora.lora_dropout=0.1", "data.validation=0", "train.batch_size=7")
    log: Log = []
    whole, cut = make_stepper(tiny_config(*settings)), make_stepper(tiny_config(*settings), log)
    expected = next(steps_of(whole))
    failed = run_out(monkeypatch, rows=3, error=error)
    steps = steps_of(cut)
    taken = next(steps)
    assert taken.loss == pytest.approx(expected.loss, rel=1e-6)
    assert taken.grad_norm == pytest.approx(expected.grad_norm, rel=1e-5)
    gradients = [
        torch.cat([state["exp_avg"].flatten() for state in stepper.optimizer.state.values()])
        for stepper in (whole, cut)
    ]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-7)
    smaller = [record for record in log if isinstance(record, SmallerMicroBatches)]
    assert [record.step for record in smaller] == [1] * len(failed)
    assert smaller[-1].micro_batch_tokens == cut.progress.micro_batch_tokens
    assert cut.progress.micro_batch_tokens < failed[0]
    next(steps)
    assert len(smaller) == len(failed)


def test_no_memory_for_a_single_row_is_an_error_with_the_plan(
    tiny_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    stepper = make_stepper(tiny_config("data.validation=0"))
    run_out(monkeypatch, rows=0, error=MemoryError())
    weights = flat(stepper)
    with pytest.raises(MemoryPlanError) as caught:
        next(steps_of(stepper))
    assert caught.value.exit_code == 7
    plan = stepper.loaded.inputs.plan.describe()
    assert f"not enough for a single row of 19 tokens; planned: {plan}" in str(caught.value)
    assert torch.equal(flat(stepper), weights)


class RunsOut(Listener):
    """Takes all memory away after the first step."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.patch = patch

    def step(self, step: int, loss: float, examples_per_second: float) -> None:
        run_out(self.patch, rows=0, error=MemoryError())


def test_what_is_advised_when_memory_runs_out_helps(tiny_config: MakeConfig) -> None:
    config = tiny_config("train.save_steps=1", "train.max_steps=3", "data.validation=0")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(MemoryPlanError) as caught:
        train(config, monitor=RunsOut(patch))
    advice = "close other programs and continue with --resume; or start again with --overwrite and "
    assert str(caught.value.fix).startswith(advice)
    assert train(config, resume=True).finished
    for advised in ("model.precision=bfloat16", "lora.r=4", "train.gradient_checkpointing=true"):
        assert train(config.override(advised), overwrite=True).finished


def test_a_run_that_is_not_finite_trains_with_the_advice(tiny_config: MakeConfig) -> None:
    with pytest.raises(NonFiniteError) as caught:
        train(tiny_config("train.learning_rate=1e30", "train.max_steps=4"))
    assert "start again with --overwrite and a lower train.learning_rate" in str(caught.value)
    lower = tiny_config("train.learning_rate=1e-3", "train.max_steps=4")
    assert train(lower, overwrite=True).finished


def test_an_evaluation_takes_smaller_micro_batches_too(
    tiny_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    log: Log = []
    stepper = make_stepper(tiny_config("data.validation=0.5"), log)
    assert len(stepper.loaded.inputs.validation) > 1
    failed = run_out(monkeypatch, rows=1, error=MemoryError())
    next(steps_of(stepper))
    smaller, (evaluation, *_) = log[: len(failed)], log[len(failed) :]
    assert failed
    assert all(isinstance(record, SmallerMicroBatches) for record in smaller)
    assert isinstance(evaluation, EvalMetrics)


def test_resume_keeps_the_smaller_micro_batches(
    tiny_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        run_out(patch, rows=1, error=MemoryError())
        stopped = train(tiny_config(), should_stop=stop_after(8))
    (state,) = stopped.run.glob("checkpoints/*/state.json")
    tokens = json.loads(state.read_text())["micro_batch_tokens"]
    cuts = []
    plain = Engine.accumulate

    def accumulate(self: Engine, step: Step, *more: Any) -> float | None:
        cuts.append(max(len(batch.lengths) for batch in step.micro_batches))
        return plain(self, step, *more)

    monkeypatch.setattr(Engine, "accumulate", accumulate)
    assert train(tiny_config(), resume=True).finished
    assert set(cuts) == {1}
    planned = RunDirectory(stopped.run).receipt().micro_batch_tokens
    assert planned is not None
    assert tokens < planned


def test_other_errors_are_not_taken_for_memory(
    tiny_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = steps_of(make_stepper(tiny_config()))
    run_out(monkeypatch, rows=0, error=RuntimeError("shapes differ"))
    with pytest.raises(RuntimeError, match="shapes differ"):
        next(steps)


def test_the_error_of_pytorch_is_recognized() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)


def test_smaller_micro_batches_are_announced(
    tiny_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monitor = Listener()
    run_out(monkeypatch, rows=2, error=MemoryError())
    run = train(tiny_config("train.batch_size=4"), monitor=monitor).run
    announced = [text for text in monitor.heard if "not enough memory" in text]
    logged = records_of(SmallerMicroBatches, run)
    assert announced
    assert len(announced) == len(logged)
    assert announced[-1].endswith(f"micro-batches have {logged[-1].micro_batch_tokens} tokens now")
