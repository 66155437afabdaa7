"""A run gets as many steps as fit in a time."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from offbook.cli.train import parse_duration
from offbook.errors import ConfigError
from offbook.runs.directory import RunDirectory
from offbook.settings.config import Config
from offbook.training.train import train
from support.runs import Listener, StopAfter, curve, hashes

MakeConfig = Callable[..., Config]
LONG = ("train.num_train_epochs=1e9", "train.max_steps=null", "train.eval_steps=1000000")


def refusal(config: Config, within: float) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        train(config, within=within, overwrite=True)
    return caught.value


def test_a_run_is_cut_to_the_time_and_resumes_to_the_same_bits(
    tiny_config: MakeConfig, tmp_path: Path
) -> None:
    # The time for about 60 steps, by what the refusal of too short a time says.
    least = int(re.findall(r"allow (\d+)s", str(refusal(tiny_config(*LONG), 1e-6)))[0])
    assert least == 1
    seconds = float(re.findall(r"about ([\d.e-]+) s", str(refusal(tiny_config(*LONG), 1e-6)))[0])
    monitor = StopAfter(5)
    stopped = train(
        tiny_config(*LONG), within=60 * seconds, monitor=monitor, should_stop=monitor.should_stop
    )
    steps = RunDirectory(stopped.run).config().train.max_steps
    assert steps is not None
    assert 6 < steps < 600
    assert any(f"(train.max_steps={steps})" in text for text in monitor.heard)
    heard = Listener()
    own = Config.load(stopped.run / "config.yaml", [])
    finished = train(own, resume=True, within=1e-6, monitor=heard)
    assert "a run that is resumed keeps its number of steps" in heard.heard
    assert (finished.finished, finished.steps) == (True, steps)
    settings = (*LONG, f"train.max_steps={steps}", f"output_dir={tmp_path / 'whole'}")
    whole = train(tiny_config(*settings))
    assert hashes(finished.run) == hashes(whole.run)
    assert curve(finished.run) == curve(whole.run)


def test_a_run_that_fits_is_not_changed(tiny_config: MakeConfig) -> None:
    heard = Listener()
    result = train(tiny_config("train.max_steps=2"), within=3600, monitor=heard)
    assert result.steps == 2
    assert any(text.endswith("all 2 steps fit in the time") for text in heard.heard)


def test_a_time_in_which_no_step_fits_is_refused(tiny_config: MakeConfig) -> None:
    config = tiny_config("train.max_steps=5")
    error = refusal(config, 1e-6)
    assert str(error).startswith("--within: not even 2 steps fit in 0 s; a step takes about ")
    assert str(error).endswith(" or lower train.batch_size")
    assert not RunDirectory(Path(config.output_dir)).begun
    advised = float(re.findall(r"allow (\d+)s or more", str(error))[0])
    assert train(config, within=advised).finished


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("2h", 7200), ("90m", 5400), ("1h30m", 5400), ("45 m", 2700), ("1.5H", 5400), ("20s", 20)],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds
    for wrong in ("", "2", "0h", "-2h", "2 days", "h"):
        with pytest.raises(ConfigError, match=r"not a duration: .*; as in 2h or 90m"):
            parse_duration(wrong)
