"""The training loop: steps that do not depend on their micro-batches, runs that can be stopped."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import get_scheduler

from offbook.errors import CheckpointError, ConfigError
from offbook.monitor import EvalMetrics, Monitor, StepMetrics
from offbook.runs.directory import RunDirectory
from offbook.settings.config import Config
from offbook.settings.sections import LoraSettings, TrainSettings
from offbook.training.inputs import gather
from offbook.training.schedule import Schedule, fitting_rate, learning_rate_at
from offbook.training.setup import LoadedRun, load, prepare
from offbook.training.train import train
from support.runs import Listener, records_of, stop_after
from support.stepping import flat, make_stepper, steps_of

MakeConfig = Callable[..., Config]


def adapter_of(run: Path) -> bytes:
    return (run / "adapter" / "adapter_model.safetensors").read_bytes()


def gradients(run: LoadedRun, max_tokens: int) -> dict[str, torch.Tensor]:
    """Those of one step over all training examples, in micro-batches of this size."""
    step = run.engine.make_step(list(run.inputs.training), max_tokens, run.inputs.device)
    run.engine.accumulate(step, [1, 2])
    found = {n: p.grad.clone() for n, p in run.model.named_parameters() if p.grad is not None}
    run.model.zero_grad()
    return found


# A step.


def test_gradients_do_not_depend_on_the_micro_batches(tiny_config: MakeConfig) -> None:
    inputs = gather(tiny_config("lora.lora_dropout=0", "data.validation=0"), Monitor())
    run = load(replace(inputs, dtype=torch.float64), Monitor())
    with torch.no_grad():
        for name, p in run.model.named_parameters():
            if "lora_B" in name:
                p.normal_()
    whole = gradients(run, 10**6)
    assert len(whole) == 2 * 7 * 2
    for max_tokens in (1, 60, 100):
        cut = gradients(run, max_tokens)
        for name, gradient in whole.items():
            assert (cut[name] - gradient).norm() <= 1e-6 * gradient.norm()


def test_dropout_is_a_function_of_the_step(tiny_config: MakeConfig) -> None:
    run = prepare(tiny_config("lora.lora_dropout=0.5"), Monitor())
    step = run.engine.make_step(list(run.inputs.training), 256, run.inputs.device)
    with torch.no_grad():
        for p in run.trained_parameters():
            p.normal_()
    first, again, other = (run.engine.accumulate(step, [1, k]) for k in (0, 0, 1))
    assert first == again
    assert first != other


def test_gradients_are_clipped_and_the_rate_is_set(tiny_config: MakeConfig) -> None:
    config = tiny_config("train.learning_rate=0.5", "train.max_grad_norm=1e-3")
    stepper = make_stepper(config, optimizer=torch.optim.SGD)
    before = flat(stepper)
    taken = next(steps_of(stepper))
    assert taken.grad_norm > 1e-3
    assert taken.learning_rate == 0.5
    assert (flat(stepper) - before).norm().item() == pytest.approx(0.5e-3, rel=1e-2)
    assert all(p.grad is None for p in stepper.loaded.model.parameters())


@pytest.mark.parametrize("kind", ["linear", "cosine", "constant"])
@pytest.mark.parametrize("warmup", [0.0, 0.13])
def test_schedules_are_those_of_transformers(kind: str, warmup: float) -> None:
    settings = TrainSettings.model_validate(
        {"lr_scheduler_type": kind, "warmup_ratio": warmup, "learning_rate": 0.5}
    )
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    name = "constant_with_warmup" if kind == "constant" else kind
    # transformers rounds warm-up steps up, as we do.
    scheduler = get_scheduler(
        name, optimizer, num_warmup_steps=-int(-warmup * 40 // 1), num_training_steps=40
    )
    for step in range(40):
        assert learning_rate_at(step, 40, settings) == pytest.approx(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()


# A run.


def test_a_run_leaves_what_its_directory_promises(tiny_config: MakeConfig) -> None:
    config = tiny_config()
    result = train(config)
    run = RunDirectory.open(result.run)
    assert result.finished
    assert sorted(p.name for p in run.path.iterdir()) == [
        ".lock",
        "adapter",
        "checkpoints",
        "config.yaml",
        "metrics.jsonl",
        "receipt.json",
    ]
    # Validated after each epoch of two steps and at the end, and saved where the loss was lowest.
    losses = {r.step: r.eval_loss for r in run.metrics() if isinstance(r, EvalMetrics) and r.step}
    assert list(losses) == [2, 4, 5]
    saved = [s for s in losses if s == 5 or losses[s] == min(losses[k] for k in losses if k <= s)]
    kept = {*saved[-2:], result.best_step}
    assert {p.name for p in run.checkpoints.iterdir()} == {f"step-{step}" for step in kept}
    resolved = f"data.max_length={run.config().data.max_length}"  # a number where it was auto
    assert run.config() == config.with_absolute_paths().override(resolved)
    assert isinstance(run.config().data.max_length, int)
    receipt = run.receipt()
    assert receipt.rows is not None
    assert receipt.rows.training + receipt.rows.validation == 7
    assert set(receipt.base) == {"config.json", "tokenizer.json", "weights"}
    assert list(receipt.data) == ["rows.jsonl"]


def test_metrics_are_logged_and_base_and_result_evaluated(
    tiny_config: MakeConfig,
) -> None:
    result = train(tiny_config("train.logging_steps=2", "train.eval_steps=4"))
    evaluations = records_of(EvalMetrics, result.run)
    assert [r.step for r in records_of(StepMetrics, result.run)] == [2, 4, 5]
    assert [r.step for r in evaluations] == [0, 4, 5]
    assert result.eval_loss_before == evaluations[0].eval_loss
    assert result.eval_loss == evaluations[-1].eval_loss


def test_it_learns_four_rows_by_heart(tiny_config: MakeConfig) -> None:
    result = train(
        tiny_config("data.validation=0", "train.max_steps=150", "lora.r=32", "lora.lora_dropout=0")
    )
    losses = [record.loss for record in records_of(StepMetrics, result.run)]
    # Two rows share a prompt and differ in the reply, so the loss cannot reach 0.
    assert losses[0] > 5
    assert losses[-1] < 0.5


def test_a_run_is_not_overwritten_by_accident(tiny_config: MakeConfig) -> None:
    train(tiny_config())
    with pytest.raises(ConfigError, match="there is a run here already; replace it with --ov"):
        train(tiny_config())
    train(tiny_config("train.max_steps=2"), overwrite=True)
    run = RunDirectory(Path(tiny_config().output_dir))
    assert [p.name for p in run.checkpoints.iterdir()] == ["step-2"]


def test_only_the_newest_checkpoints_are_kept(tiny_config: MakeConfig) -> None:
    result = train(tiny_config("train.save_steps=1", "train.save_total_limit=3"))
    names = sorted(p.name for p in RunDirectory(result.run).checkpoints.iterdir())
    assert names == ["step-3", "step-4", "step-5"]


def test_gradient_checkpointing_gives_the_same_adapter(tiny_config: MakeConfig) -> None:
    plain = load_file(train(tiny_config()).run / "adapter" / "adapter_model.safetensors")
    config = tiny_config("train.gradient_checkpointing=true")
    saved = load_file(train(config, overwrite=True).run / "adapter" / "adapter_model.safetensors")
    for name, tensor in plain.items():
        torch.testing.assert_close(saved[name], tensor, rtol=1e-4, atol=1e-6)


def test_a_validation_file_of_its_own(tiny_config: MakeConfig, tmp_path: Path) -> None:
    file = tmp_path / "validation.json"
    file.write_text(json.dumps([{"instruction": "a", "output": "b"}]))
    inputs = gather(tiny_config(f"data.validation={file}"), Monitor())
    assert (len(inputs.training), len(inputs.validation)) == (7, 1)
    assert [path.name for path in inputs.data] == ["rows.jsonl", "validation.json"]


def test_tensorboard_gets_the_metrics(tiny_config: MakeConfig) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result = train(tiny_config("train.report_to=tensorboard"))
    board = EventAccumulator(str(result.run / "tensorboard"))
    board.Reload()
    assert {"loss", "eval_loss", "learning_rate"} <= set(board.Tags()["scalars"])
    assert [event.step for event in board.Scalars("loss")] == [1, 2, 3, 4, 5]


def test_truncated_rows_are_announced(tiny_config: MakeConfig) -> None:
    monitor = Listener()
    gather(tiny_config("data.max_length=18", "data.validation=0"), monitor)
    assert any("longer than 18 tokens; the prompt is truncated" in text for text in monitor.heard)
    assert any("left out because longer than 18 tokens alone" in text for text in monitor.heard)


# Stopping and resuming.


def test_resuming_a_finished_run_changes_nothing(tiny_config: MakeConfig) -> None:
    before = train(tiny_config())
    content = adapter_of(before.run)
    after = train(tiny_config(), resume=True)
    assert (after.finished, after.steps, after.seconds) == (True, 5, 0.0)
    assert adapter_of(after.run) == content


def test_other_settings_are_refused_on_resume(tiny_config: MakeConfig) -> None:
    train(tiny_config(), should_stop=stop_after(2))
    with pytest.raises(ConfigError) as caught:
        train(tiny_config("train.learning_rate=0.02", "lora.r=4"), resume=True)
    assert str(caught.value) == (
        f"{tiny_config().output_dir}: the run was started with other settings: "
        "lora.r was 8, is 4; train.learning_rate was 0.01, is 0.02; "
        "resume with the same settings, or start again with --overwrite"
    )


def test_settings_that_do_not_matter_may_change_on_resume(tiny_config: MakeConfig) -> None:
    train(tiny_config(), should_stop=stop_after(2))
    assert train(tiny_config("train.save_steps=1", "train.eval_steps=2"), resume=True).finished


def test_changed_data_is_refused_on_resume(tiny_config: MakeConfig, tmp_path: Path) -> None:
    train(tiny_config(), should_stop=stop_after(2))
    with (tmp_path / "rows.jsonl").open("a") as file:
        file.write('{"instruction": "new", "output": "row"}\n')
    with pytest.raises(CheckpointError, match="the data has changed since the run was started"):
        train(tiny_config(), resume=True)


def test_other_examples_of_the_same_data_are_refused_on_resume(tiny_config: MakeConfig) -> None:
    run = train(tiny_config(), should_stop=stop_after(2)).run
    receipt = json.loads((run / "receipt.json").read_bytes())
    receipt["rows"]["training"] += 1  # as a version that cuts conversations in another way
    (run / "receipt.json").write_text(json.dumps(receipt))
    with pytest.raises(CheckpointError, match="makes other examples of the data"):
        train(tiny_config(), resume=True)


def test_resume_starts_a_run_where_none_has_begun(tiny_config: MakeConfig) -> None:
    heard = Listener()
    result = train(tiny_config(), resume=True, monitor=heard)
    assert (result.finished, result.steps) == (True, 5)
    assert f"no run has begun in {result.run}: it starts now" in heard.heard


def test_the_schedule_of_a_run(tiny_config: MakeConfig) -> None:
    inputs = gather(tiny_config("data.validation=0"), Monitor())
    schedule = Schedule.of(len(inputs.training), inputs.config)
    assert (schedule.steps_per_epoch, schedule.total_steps(inputs.config.train)) == (3, 5)


@pytest.mark.parametrize(
    "lora", ["lora.lora_alpha=8", "lora.lora_alpha=64", "lora.use_rslora=true"]
)
def test_at_another_scale_the_first_step_at_the_automatic_rate_changes_as_much(
    tiny_config: MakeConfig, lora: str
) -> None:
    def change(*settings: str) -> torch.Tensor:
        settings = ("train.learning_rate=auto", "train.max_steps=1", *settings)
        run = train(tiny_config(*settings), overwrite=True).run
        tensors = load_file(run / "adapter" / "adapter_model.safetensors")
        own = json.loads((run / "adapter" / "adapter_config.json").read_text())
        assert not own["use_rslora"]  # which is written as plain scaling
        changes = [
            own["lora_alpha"] / own["r"] * (tensors[name.replace("lora_A", "lora_B")] @ A_RI)
            for name, A_RI in tensors.items()
            if "lora_A" in name
        ]
        return torch.cat([matrix.flatten() for matrix in changes])

    usual = change()
    # B is 0 before, so A does not move in this step. The rate is rounded to two digits.
    assert torch.linalg.norm(change(lora) - usual) < 0.1 * torch.linalg.norm(usual)


@pytest.mark.parametrize("lora", [("lora.lora_alpha=8",), ("lora.r=2", "lora.lora_alpha=64")])
def test_a_run_at_the_automatic_rate_learns_with_another_adapter(
    tiny_config: MakeConfig, lora: tuple[str, ...]
) -> None:
    config = tiny_config("train.learning_rate=auto", "train.max_steps=20", *lora)
    result = train(config)
    rate = RunDirectory(result.run).config().train.learning_rate
    assert (
        rate == fitting_rate(32, "llama", config.lora) != fitting_rate(32, "llama", LoraSettings())
    )
    assert result.eval_loss is not None
    assert result.eval_loss_before is not None
    assert result.eval_loss < result.eval_loss_before
