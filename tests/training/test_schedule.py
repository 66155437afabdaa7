"""Which examples a step sees, and how many steps there are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from offbook.models.base import read_config
from offbook.monitor import Monitor, StepMetrics
from offbook.runs.directory import RunDirectory
from offbook.settings.config import Config
from offbook.settings.sections import LoraSettings, TrainSettings
from offbook.training.forecast import forecast
from offbook.training.schedule import (
    STEPS_FOR_A_VOICE,
    Schedule,
    check_steps,
    fitting_rate,
    learning_rate_at,
    warmup_steps,
)
from offbook.training.train import train
from support.runs import Listener, records_of, stop_after


def test_an_epoch_sees_every_row_once() -> None:
    schedule = Schedule(examples=50, batch_size=16, seed=3)
    steps = [schedule.rows(step) for step in range(schedule.steps_per_epoch)]
    assert [len(rows) for rows in steps] == [16, 16, 16, 2]
    assert sorted(np.concatenate(steps)) == list(range(50))


def test_the_order_is_new_each_epoch_and_the_same_each_time() -> None:
    schedule = Schedule(50, 16, 3)
    assert schedule.rows(0).tolist() != schedule.rows(4).tolist()
    assert schedule.rows(5).tolist() == Schedule(50, 16, 3).rows(5).tolist()
    assert schedule.rows(0).tolist() != Schedule(50, 16, 4).rows(0).tolist()


@pytest.mark.parametrize(
    ("settings", "steps"),
    [({"num_train_epochs": 3}, 12), ({"num_train_epochs": 0.5}, 2), ({"max_steps": 7}, 7)],
)
def test_total_steps(settings: dict[str, float], steps: int) -> None:
    assert Schedule(50, 16, 3).total_steps(TrainSettings(**settings)) == steps


@pytest.mark.parametrize(
    ("family", "width", "rate"),
    [
        ("llama", 2000, 5.0e-4),
        ("llama", 576, 1.3e-3),  # SmolLM2-135M
        ("llama", 4096, 2.9e-4),  # DeepSeek-LLM 7B, Llama 3.1 8B
        ("mistral", 4096, 2.9e-4),
        ("qwen2", 3584, 4.8e-4),
        ("qwen3", 1024, 5.3e-4),
    ],
)
def test_the_rate_is_that_of_the_published_rule(family: str, width: int, rate: float) -> None:
    assert fitting_rate(width, family, LoraSettings()) == rate


def test_the_rate_does_not_depend_on_the_rank_but_on_the_scale() -> None:
    def rate(**lora: float) -> float:
        return fitting_rate(2000, "llama", LoraSettings(**lora))

    assert rate(r=1) == rate(r=64) == rate(r=16, lora_alpha=8, use_rslora=True) == 5.0e-4
    assert (rate(lora_alpha=16), rate(lora_alpha=64)) == (1.0e-3, 2.5e-4)


@pytest.mark.parametrize(
    ("total", "warmup"), [(1, 0), (9, 0), (12, 1), (32, 3), (100, 10), (5000, 10)]
)
def test_warm_up_is_a_few_steps_by_default(total: int, warmup: int) -> None:
    settings = TrainSettings(learning_rate=1.0)
    assert warmup_steps(total, settings) == warmup
    rates = [learning_rate_at(step, total, settings) for step in range(total)]
    assert rates.index(max(rates)) == warmup
    assert (min(rates) > 0, max(rates)) == (True, 1)
    assert rates[: warmup + 1] == sorted(rates[: warmup + 1])


@pytest.mark.parametrize("rows", [1, 5, 16, 17, 48])
def test_few_steps_come_with_the_epochs_that_make_enough(rows: int) -> None:
    schedule, settings = Schedule(rows, 16, 3), TrainSettings()
    notice = check_steps(schedule, settings) or ""
    assert notice.startswith(f"{schedule.total_steps(settings)} steps are few")
    epochs = int(notice.split("train.num_train_epochs=")[1].split()[0])
    enough = TrainSettings(num_train_epochs=epochs)
    assert STEPS_FOR_A_VOICE <= schedule.total_steps(enough) < STEPS_FOR_A_VOICE + 3
    assert f"makes {schedule.total_steps(enough)}" in notice
    assert check_steps(schedule, enough) is None


def test_enough_steps_or_a_number_of_steps_need_no_advice() -> None:
    assert check_steps(Schedule(57, 16, 3), TrainSettings()) is None  # 60 rows, 3 of them held out
    assert check_steps(Schedule(5, 16, 3), TrainSettings(max_steps=1)) is None


MakeConfig = Callable[..., Config]


def test_a_fitting_rate_is_said_used_and_written_as_a_number(tiny_config: MakeConfig) -> None:
    config, monitor = tiny_config("train.learning_rate=auto"), Listener()
    result = train(config, monitor=monitor)
    base = read_config(Path(config.model.base))
    rate = fitting_rate(base.hidden_size, base.model_type, config.lora)
    assert (
        monitor.heard.count(f"learning rate {rate:g}, from the base's width ({base.hidden_size})")
        == 1
    )
    assert records_of(StepMetrics, result.run)[0].learning_rate == rate
    assert RunDirectory(result.run).config().train.learning_rate == rate
    assert forecast(config, Monitor()).learning_rate == rate


def test_a_rate_that_is_named_is_kept_and_not_spoken_of(tiny_config: MakeConfig) -> None:
    monitor = Listener()
    train(tiny_config("train.max_steps=1"), monitor=monitor)
    assert not [text for text in monitor.heard if "learning rate" in text]


def test_on_resume_auto_is_what_the_run_has(tiny_config: MakeConfig) -> None:
    train(tiny_config("train.warmup_ratio=0.5"), should_stop=stop_after(2))
    result = train(tiny_config("train.learning_rate=auto"), resume=True)
    assert RunDirectory(result.run).config().train.learning_rate == 0.01
    assert [r.learning_rate for r in records_of(StepMetrics, result.run)][3:] == [0.01, 0.005]
