"""A run that has finished, is made longer, or is resumed with contradicting settings."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from offbook.engine import attention
from offbook.errors import CheckpointError, ConfigError, EngineError
from offbook.monitor import StepMetrics
from offbook.runs.directory import RunDirectory
from offbook.runs.trained import open_run
from offbook.settings.config import Config
from offbook.training.changeable import settings_to_resume
from offbook.training.train import train
from support.runs import Listener, StopAfter, content, curve, hashes, records_of, stop_after

MakeConfig = Callable[..., Config]
CONSTANT = "train.lr_scheduler_type=constant"
LONGER = "add a higher train.max_steps to go on"


def again(run: Path, *settings: str, **how: bool) -> tuple[object, list[str]]:
    """Resume a run as `offbook train RUN --resume` does: its steps, and what was said."""
    heard = Listener()
    config = Config.load(run / "config.yaml", settings)
    return train(config, resume=True, monitor=heard), heard.heard


def test_a_finished_run_says_so_without_its_base_or_rows(tiny_config: MakeConfig) -> None:
    run = train(tiny_config()).run
    Path(tiny_config().data.train).unlink()
    result, heard = again(run)
    assert (result.finished, result.steps, result.run) == (True, 5, run)
    assert heard == [f"the run has finished already, in step 5; {LONGER}"]
    assert result.eval_loss is not None
    with pytest.raises(ConfigError, match=r"other settings: lora\.r was 8, is 4"):
        again(run, "lora.r=4")


def test_the_loss_that_a_resumed_run_tells_first_is_the_recorded_one(
    tiny_config: MakeConfig,
) -> None:
    config = tiny_config("train.max_steps=4", "train.logging_steps=3")
    stop = StopAfter(2)
    stopped = train(config, monitor=stop, should_stop=stop.should_stop)
    assert (stopped.finished, stopped.steps) == (False, 2)
    lines: list[str] = []
    train(config, resume=True, monitor=lines.append)
    recorded = records_of(StepMetrics, stopped.run)[0]
    (told,) = [line for line in lines if line.startswith("step 3/4: ")]
    assert recorded.step == 3
    assert told.startswith(f"step 3/4: loss {recorded.loss:.3f}, ")


@pytest.mark.parametrize("stopped", [False, True])
def test_a_longer_run_goes_on_as_if_it_had_been_so_long(
    tiny_config: MakeConfig, tmp_path: Path, stopped: bool
) -> None:
    # With a constant rate, a step does not depend on how many there are.
    whole = train(tiny_config(CONSTANT, "train.max_steps=7", f"output_dir={tmp_path / 'whole'}"))
    stop = stop_after(6) if stopped else lambda: False
    run = train(tiny_config(CONSTANT, "train.max_steps=4"), should_stop=stop).run
    result, heard = again(run, "train.max_steps=7")
    assert (result.finished, result.steps) == (True, 7)
    assert any(text.startswith("the run has 7 steps instead of 4: the") for text in heard)
    assert hashes(run) == hashes(whole.run)
    assert RunDirectory(run).config().train.max_steps == 7
    assert again(run)[1] == [f"the run has finished already, in step 7; {LONGER}"]
    if stopped:
        assert [r["step"] for r in curve(run)] == [r["step"] for r in curve(whole.run)]


def test_the_rate_of_a_longer_run_is_told_and_used(tiny_config: MakeConfig) -> None:
    run = train(tiny_config("train.num_train_epochs=2", "train.max_steps=null")).run
    _, heard = again(run, "train.num_train_epochs=4")
    told = (
        "the run has 8 steps instead of 4: the learning rate was 0.0025 in step 4, "
        "is 0.005 in step 5, and 0.00125 in the last one"
    )
    assert told in heard
    rates = [record.learning_rate for record in records_of(StepMetrics, run)]
    assert rates == pytest.approx([0.01, 0.0075, 0.005, 0.0025, 0.005, 0.00375, 0.0025, 0.00125])
    assert again(run)[1][0].endswith("; add a higher train.num_train_epochs to go on")


def test_while_a_longer_run_is_not_finished_its_newest_checkpoint_answers(
    tiny_config: MakeConfig,
) -> None:
    run = train(tiny_config("train.max_steps=2")).run
    config = Config.load(run / "config.yaml", ["train.max_steps=9", "train.save_steps=1"])
    assert not train(config, resume=True, should_stop=stop_after(4)).finished
    opened = open_run(run)
    assert opened.checkpoint is not None
    assert opened.checkpoint >= 2
    result, heard = again(run)  # it remembers how long it is
    assert (result.finished, result.steps) == (True, 9)
    assert not any("instead of" in text for text in heard)
    assert open_run(run).checkpoint is None


def test_a_run_cannot_be_shorter_than_it_is(tiny_config: MakeConfig) -> None:
    run = train(tiny_config("train.max_steps=4")).run
    with pytest.raises(ConfigError) as caught:
        again(run, "train.max_steps=3")
    assert str(caught.value) == (
        "train.max_steps: 3 means 3 steps, and the run has taken 4; leave it out to continue, or "
        "train a new run with another output_dir"
    )
    with pytest.raises(ConfigError, match=r"train\.num_train_epochs: does nothing, since the run"):
        again(run, "train.num_train_epochs=9")
    with pytest.raises(ConfigError, match=r"num_train_epochs: 1 means 2 steps, and the run has"):
        again(run, "train.num_train_epochs=1", "train.max_steps=null")
    assert RunDirectory(run).finished
    assert again(run)[1] == [f"the run has finished already, in step 4; {LONGER}"]


def test_a_run_stopped_early_may_be_shorter(tiny_config: MakeConfig) -> None:
    stopped = train(tiny_config("train.max_steps=9"), should_stop=stop_after(6))
    assert 0 < stopped.steps < 8
    result, heard = again(stopped.run, f"train.max_steps={stopped.steps}")
    assert (result.finished, result.steps) == (True, stopped.steps)
    assert any("which it has taken" in text for text in heard)


def test_a_finished_run_without_its_last_checkpoint_is_not_trained_again(
    tiny_config: MakeConfig,
) -> None:
    run = train(tiny_config("train.max_steps=4")).run
    (run / "checkpoints" / "step-4").rename(run / "gone")
    before = (run / "adapter" / "adapter_model.safetensors").read_bytes()
    assert again(run)[1] == [f"the run has finished already, in step 4; {LONGER}"]
    with pytest.raises(CheckpointError, match="the checkpoint of the last step is missing or dam"):
        again(run, "train.max_steps=6")
    assert (run / "adapter" / "adapter_model.safetensors").read_bytes() == before


def test_what_was_given_on_the_first_command_line_need_not_be_repeated(
    tiny_config: MakeConfig,
) -> None:
    run = train(tiny_config("train.save_steps=1"), should_stop=stop_after(3)).run
    kept = Config.load(None, ["train.learning_rate=0.01", f"output_dir={run}"])
    own = RunDirectory(run).config()
    merged = kept.model_copy(update={"model": own.model, "data": own.data, "lora": own.lora})
    settings = settings_to_resume(RunDirectory(run), merged.with_value("train.batch_size", 3))
    assert (settings.train.max_steps, settings.train.save_steps) == (5, 1)


def test_a_run_stays_until_the_one_that_replaces_it_can_start(
    tiny_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = train(tiny_config()).run
    before = content(run)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "torch.utils.tensorboard", None)
        with pytest.raises(ConfigError, match="TensorBoard is not installed"):
            train(tiny_config("train.report_to=tensorboard"), overwrite=True)
    assert content(run) == before
    with monkeypatch.context() as patch:
        patch.setattr("offbook.engine.layers.attend", lambda *facts: 2 * attention.attend(*facts))
        with pytest.raises(EngineError):
            train(tiny_config(), overwrite=True)
    assert content(run) == before
    other = train(tiny_config("train.seed=7"), overwrite=True)
    assert other.finished
    assert content(run).keys() == before.keys()
    assert content(run) != before


def test_resume_and_overwrite_contradict_each_other(tiny_config: MakeConfig) -> None:
    with pytest.raises(ConfigError, match="--resume and --overwrite contradict"):
        train(tiny_config(), resume=True, overwrite=True)
