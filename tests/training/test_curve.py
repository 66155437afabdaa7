"""A rate that is far too low or too high is told after the first steps, and no other."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from offbook.settings.config import Config
from offbook.training.curve import describe_rate
from offbook.training.schedule import fitting_rate
from offbook.training.train import train
from support.runs import Listener, stop_after

MakeConfig = Callable[..., Config]
RULE = 1e-3


def warnings(heard: Listener) -> list[str]:
    return [text for text in heard.heard if "the learning rate, " in text]


def falling(by: float, noise: float, seed: int, start: float = 4.0) -> list[float]:
    steps = np.random.default_rng(seed).normal(0, noise, 20)
    return list(start * (1 - by * np.arange(20) / 19) + steps)


def test_curves_of_many_kinds() -> None:
    for seed in range(200):
        for rate in (RULE / 10, RULE, 10 * RULE):
            assert describe_rate(falling(0.3, 0.2, seed), rate, RULE) is None
        assert describe_rate(falling(0.0, 0.2, seed), RULE, RULE) is None  # nothing to learn
        assert describe_rate(falling(0.0, 1.0, seed), 30 * RULE, RULE) is None  # only noise
        told = describe_rate(falling(0.01, 0.05, seed), RULE / 100, RULE) or ""
        assert "1e-05, may be far too low; train.learning_rate=auto would be 0.001" in told
        told = describe_rate(falling(-1.5, 0.2, seed), 30 * RULE, RULE) or ""
        assert "the loss has risen from" in told
        assert "0.03, may be far too high" in told


@pytest.mark.parametrize("seed", range(5))
def test_a_tiny_model_at_a_hundredth_of_its_rate_and_at_its_rate(
    tiny_config: MakeConfig, seed: int
) -> None:
    config = tiny_config("train.batch_size=7", "data.validation=0", "train.max_steps=40")
    config = config.override(f"train.seed={seed}", "lora.lora_dropout=0")
    rule = fitting_rate(32, "llama", config.lora)
    for factor, expected in ((0.01, 1), (0.3, 0), (1, 0)):
        heard = Listener()
        train(
            config.override(f"train.learning_rate={factor * rule}"), monitor=heard, overwrite=True
        )
        assert len(warnings(heard)) == expected
        assert all("may be far too low" in text for text in warnings(heard))


def test_a_run_that_is_stopped_before_is_told_after_it_is_resumed(tiny_config: MakeConfig) -> None:
    settings = ("train.batch_size=7", "data.validation=0", "train.max_steps=25")
    config = tiny_config(*settings, "train.learning_rate=1e-4")
    heard = Listener()
    stopped = train(config, should_stop=stop_after(15), monitor=heard)
    assert 10 < stopped.steps < 20
    assert train(config, resume=True, monitor=heard).finished
    assert len(warnings(heard)) == 1


def test_short_runs_are_not_judged(tiny_config: MakeConfig) -> None:
    heard = Listener()
    train(tiny_config("train.max_steps=19", "train.learning_rate=1e-6"), monitor=heard)
    slow = ("train.max_steps=25", "train.learning_rate=1e-6", "train.warmup_ratio=0.9")
    train(tiny_config(*slow), monitor=heard, overwrite=True)
    assert warnings(heard) == []


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("factor", "expected"), [(1, None), (30, "high")])
def test_the_included_model(tmp_path: object, factor: float, expected: str | None) -> None:
    heard = Listener()
    done: list[int] = []

    class Counter(Listener):
        def announce(self, text: str) -> None:
            heard.announce(text)

        def step(self, step: int, loss: float, examples_per_second: float) -> None:
            done.append(step)

    config = Config.load(
        None,
        [
            *("data.train=lighthouse", "data.validation=0", "train.batch_size=8"),
            "train.max_steps=48",
            *(f"train.learning_rate={0.0013 * factor}", f"output_dir={tmp_path}/run"),
        ],
    )
    train(config, monitor=Counter(), should_stop=lambda: len(done) >= 20)
    told = warnings(heard)
    assert len(told) == (expected is not None)
    assert expected is None or f"may be far too {expected}" in told[0]
