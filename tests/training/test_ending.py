"""The best checkpoint is kept, and a run ends where validations get no better."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from offbook.errors import CheckpointError, ConfigError
from offbook.files.storage import sha256
from offbook.monitor import EvalMetrics, StepMetrics
from offbook.runs.checkpoint import best_step, find, lowest, validations
from offbook.runs.directory import RunDirectory
from offbook.runs.trained import open_run
from offbook.settings.config import Config
from offbook.training.ending import out_of_patience
from offbook.training.train import TrainResult, train
from support.crashes import kill_points, survive
from support.runs import Listener, StopAfter, curve, hashes, records_of

MakeConfig = Callable[..., Config]
# A run whose validation loss is lowest in the middle, and then rises.
RISING = (
    *("train.learning_rate=0.02", "train.lr_scheduler_type=constant", "lora.lora_dropout=0"),
    *("train.max_steps=12", "train.eval_steps=1", "train.save_total_limit=1"),
)
OTHERS = [{"instruction": f"{n}?", "output": "zebra quiz vex jolt"} for n in range(4)]


@pytest.fixture
def rising(tiny_config: MakeConfig, tmp_path: Path) -> MakeConfig:
    """Runs of 12 steps whose validation loss falls until step 9, and then rises."""
    rows = tmp_path / "others.json"
    rows.write_text(json.dumps(OTHERS), encoding="utf-8")
    return lambda *overrides: tiny_config(f"data.validation={rows}", *RISING, *overrides)


def steps(run: Path) -> list[int]:
    return [step for step, _ in RunDirectory(run).steps()]


def weights(folder: Path) -> str:
    return sha256(folder / "adapter_model.safetensors")


def again(run: Path, *settings: str) -> tuple[TrainResult, list[str]]:
    """Resume a run as `offbook train RUN --resume` does: how it ended, and what was said."""
    heard = Listener()
    result = train(Config.load(run / "config.yaml", settings), resume=True, monitor=heard)
    return result, heard.heard


@pytest.mark.parametrize("save_steps", [1, 5, 100])
def test_the_checkpoint_with_the_lowest_validation_loss_is_kept(
    rising: MakeConfig, tmp_path: Path, save_steps: int
) -> None:
    result = train(rising(f"train.save_steps={save_steps}"))
    losses = validations(RunDirectory(result.run))
    best = min(range(1, 13), key=lambda step: losses[step])
    assert 1 < best < 11
    assert steps(result.run) == [best, 12]
    assert result.best_step == best
    opened = open_run(result.run, checkpoint="best")
    assert opened.checkpoint == best
    monitor = StopAfter(best)
    other = rising(f"output_dir={tmp_path / 'other'}")
    stopped = train(other, monitor=monitor, should_stop=monitor.should_stop).run
    assert weights(opened.adapter) == weights(stopped / "checkpoints" / f"step-{best}")
    assert open_run(result.run).adapter == result.run / "adapter"
    assert open_run(result.run, checkpoint="last").checkpoint == 12


def test_it_is_not_kept_where_it_is_not_wanted(tiny_config: MakeConfig, rising: MakeConfig) -> None:
    result = train(rising("train.keep_best=false", "train.save_steps=5"))
    assert steps(result.run) == [12]
    assert result.best_step == 12  # of those that there are
    run = train(tiny_config("data.validation=0"), overwrite=True)
    assert (run.best_step, steps(run.run)) == (None, [5])


def test_the_lowest_loss_is_the_first_of_equal_ones_and_never_that_of_the_base() -> None:
    assert lowest({0: 1.0}) is None
    assert lowest({0: 1.0, 2: 3.0, 4: 2.0, 6: 2.0}) == 4
    assert not out_of_patience({0: 1.0, 2: 3.0, 4: 2.0, 6: 2.0}, None)
    assert out_of_patience({0: 1.0, 2: 3.0, 4: 2.0, 6: 2.0}, 1)
    assert not out_of_patience({0: 1.0, 2: 3.0, 4: 2.0, 6: 2.0}, 2)
    assert not out_of_patience({0: 1.0}, 1)


def test_a_checkpoint_is_found_by_its_name(rising: MakeConfig) -> None:
    run = RunDirectory(train(rising()).run)
    best = best_step(run)
    for name, step in (("best", best), ("last", 12), ("12", 12), (best, best)):
        assert find(run, str(name), pytest.fail) == run.checkpoints / f"step-{step}"
    for name in ("first", "1", "-1", "step-12"):
        with pytest.raises(CheckpointError) as caught:
            find(run, name, pytest.fail)
        assert f"no checkpoint {name}; there are best (step {best}), last, {best}, 12;" in str(
            caught.value
        )
    (run.checkpoints / "step-12" / "state.json").write_text("{}")
    heard: list[str] = []
    assert find(run, "last", heard.append) == run.checkpoints / f"step-{best}"
    assert heard[0].startswith("skipping step-12")
    with pytest.raises(CheckpointError, match="use another checkpoint"):
        find(run, "12", pytest.fail)


def test_a_checkpoint_that_is_not_there_yet(tiny_config: MakeConfig) -> None:
    run = RunDirectory(train(tiny_config(), should_stop=lambda: True).run)
    for name in ("best", "last"):
        with pytest.raises(CheckpointError, match=f"no checkpoint {name}; there are none yet"):
            find(run, name, pytest.fail)
    run = RunDirectory(train(tiny_config("data.validation=0"), overwrite=True).run)
    with pytest.raises(CheckpointError, match="no checkpoint best; there are last, 5;"):
        find(run, "best", pytest.fail)


def test_a_run_ends_early_where_validations_get_no_better(
    rising: MakeConfig, tmp_path: Path
) -> None:
    whole = train(rising(f"output_dir={tmp_path / 'whole'}"))
    losses = validations(RunDirectory(whole.run))
    so_far = [{s: loss for s, loss in losses.items() if s <= end} for end in range(12)]
    early = next(losses for losses in so_far if out_of_patience(losses, 2))
    best, end = lowest(early), max(early)
    assert best == end - 2
    heard = Listener()
    config = rising("train.patience=2")
    result = train(config, monitor=heard)
    assert (result.finished, result.steps, result.best_step) == (True, end, best)
    told = f"train.patience ends the run in step {end}: the validation loss was lowest after "
    assert next(text for text in heard.heard if "patience" in text).startswith(told)
    assert steps(result.run) == [best, end]
    for settings in ((), ("train.max_steps=20",), ("train.patience=1",)):
        result, said = again(result.run, *settings)
        assert (result.finished, result.steps, result.seconds) == (True, end, 0)
        told_first = f"the run has finished already, in step {end}; add a higher train.patience"
        assert said[0] == f"{told_first} to go on"
        assert said[1].startswith(told)
    result, said = again(result.run, "train.patience=null")
    assert f"the run goes on to step 12; it ended early, in step {end}" in said
    assert (result.finished, result.steps) == (True, 12)
    assert hashes(result.run) == hashes(whole.run)
    assert curve(result.run) == curve(whole.run)
    assert "in step 12; add a higher train.max_steps to go on" in again(result.run)[1][0]


def test_a_run_that_ends_early_has_logged_all_its_losses(
    rising: MakeConfig, tmp_path: Path
) -> None:
    every = ("train.max_steps=30", "train.eval_steps=3", "train.patience=1")
    each = train(rising(*every, "train.logging_steps=1", f"output_dir={tmp_path / 'each'}"))
    losses = [record.loss for record in records_of(StepMetrics, each.run)]
    assert each.steps == len(losses) < 30
    config = rising(*every, "train.logging_steps=100", "train.save_steps=1")
    result = train(config)
    logged = records_of(StepMetrics, result.run)
    assert [record.step for record in logged] == list(range(3, each.steps + 1, 3))
    assert logged[-1].loss == pytest.approx(sum(losses[-3:]) / 3, rel=0.2)
    # It logs the same where it is stopped before each step and resumed.
    told = curve(result.run)
    shutil.rmtree(result.run)
    finished = False
    while not finished:
        monitor = StopAfter(1)
        finished = train(
            config, resume=True, monitor=monitor, should_stop=monitor.should_stop
        ).finished
    assert curve(result.run) == told


def test_an_early_run_that_goes_on_is_not_finished_meanwhile(rising: MakeConfig) -> None:
    run = train(rising("train.patience=2")).run
    monitor = StopAfter(1)
    config = Config.load(run / "config.yaml", ["train.patience=9"])
    stopped = train(config, resume=True, monitor=monitor, should_stop=monitor.should_stop)
    assert not stopped.finished
    assert open_run(run).checkpoint == stopped.steps
    assert again(run)[0].finished  # it remembers its patience
    assert RunDirectory(run).config().train.patience == 9


def test_without_its_last_checkpoint_an_early_run_does_not_go_on(rising: MakeConfig) -> None:
    result = train(rising("train.patience=2"))
    shutil.rmtree(result.run / "checkpoints" / f"step-{result.steps}")
    assert f"the run has finished already, in step {result.steps};" in again(result.run)[1][0]
    with pytest.raises(CheckpointError, match="the checkpoint of the last step is missing or dam"):
        again(result.run, "train.patience=null")


def test_patience_without_validation_is_refused(tiny_config: MakeConfig) -> None:
    with pytest.raises(ConfigError) as caught:
        train(tiny_config("train.patience=2", "data.validation=0"))
    assert str(caught.value) == (
        "train.patience: does nothing, since no rows are held out to validate on; leave it out, or "
        "set data.validation"
    )
    assert train(tiny_config("data.validation=0")).finished
    assert train(tiny_config("train.patience=2"), overwrite=True).finished


@pytest.mark.parametrize("settings", [("train.save_steps=1", "train.patience=2"), ()])
def test_a_kill_around_the_best_checkpoint_or_the_early_end_needs_no_repair(
    rising: MakeConfig, tmp_path: Path, settings: tuple[str, ...]
) -> None:
    """At every 40th operation; OFFBOOK_TEST_EVERY=1 tries all of them, in minutes."""
    every = int(os.environ.get("OFFBOOK_TEST_EVERY", "40"))
    config = rising(*settings)
    whole = train(rising(*settings, f"output_dir={tmp_path / 'whole'}"))
    assert (whole.steps < 12) == bool(settings)
    moments = kill_points(config, tmp_path / "copies")
    kept = []
    for moment in moments:
        run = RunDirectory(moment)
        if (best := best_step(run)) is not None:
            find(run, best, pytest.fail)  # it is intact
            kept.append(validations(run)[best])
        elif run.metrics_file.exists():
            assert not kept
    assert kept == sorted(kept, reverse=True)  # none is removed before a better one is there
    assert kept[-1] == min(r.eval_loss for r in records_of(EvalMetrics, whole.run) if r.step)
    survive(config, moments[::every], whole.run)
    assert steps(Path(config.output_dir)) == steps(whole.run)
