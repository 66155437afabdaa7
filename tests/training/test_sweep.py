"""Sweeps: the best run is that of `train`, and a sweep that was killed goes on."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from offbook.engine.dropout import Masks
from offbook.errors import CheckpointError, ConfigError, EngineError, NonFiniteError
from offbook.files.storage import sha256
from offbook.models import load
from offbook.monitor import EvalMetrics
from offbook.settings.config import Config
from offbook.training import shared
from offbook.training.sweep import Sweep, candidates, parse_grid, shares, sweep
from offbook.training.train import train
from support.runs import Listener, hashes, records_of, stop_after
from support.tiny import ROWS

MakeConfig = Callable[..., Config]
GRID = {"train.learning_rate": ["0.001", "0.01", "0.03"], "lora.r": ["4", "8"]}
LONG = ("train.max_steps=20", "train.save_steps=4")


def folder_of(config: Config) -> Path:
    return Path(config.output_dir)


def weights(run: Path) -> str:
    return sha256(run / "adapter" / "adapter_model.safetensors")


def steps_of(found: Sweep) -> dict[str, int]:
    return {one.name: one.steps for one in found.candidates}


def loads(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Grows with each base that is loaded."""
    calls: list[object] = []

    def counted(*arguments: object) -> object:
        calls.append(arguments)
        return load.load_base(*arguments)

    monkeypatch.setattr(shared, "load_base", counted)
    return calls


def test_the_best_run_is_that_of_training_with_its_settings(
    tiny_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, calls = tiny_config(*LONG), loads(monkeypatch)
    found = sweep(config, GRID)
    assert found.finished
    assert len(calls) == 1
    # Six runs take 5 of 20 steps, since an eighth would be fewer; three go on, then two, then one.
    assert sorted(steps_of(found).values()) == [5, 5, 5, 5, 10, 20]
    assert found == Sweep.read(folder_of(config) / "sweep.json")
    best = folder_of(config) / found.best.name
    settings = [f"{key}={value}" for key, value in found.best.settings.items()]
    plain = train(tiny_config(*LONG, *settings, f"output_dir={tmp_path / 'plain'}"))
    assert hashes(best) == hashes(plain.run)
    assert found.best.loss == plain.eval_loss
    assert found.best.seconds > 0
    # What is written can be trained as it is.
    written = Config.load(folder_of(config) / "best.yaml", [f"output_dir={tmp_path / 'again'}"])
    assert weights(train(written).run) == weights(best)


def test_all_runs_take_all_steps_if_wanted(tiny_config: MakeConfig, tmp_path: Path) -> None:
    config = tiny_config("train.max_steps=4")
    grid = {"lora.r": ["2", "4"], "train.learning_rate": ["0.01", "0.001"]}
    found = sweep(config, grid, full=True)
    assert set(steps_of(found).values()) == {4}
    assert [one.loss for one in found.candidates] == sorted(one.loss for one in found.candidates)
    for one, expected in zip(candidates(config, grid).values(), range(4), strict=True):
        other = one.model_copy(update={"output_dir": str(tmp_path / f"plain-{expected}")})
        assert weights(folder_of(one)) == weights(train(other).run)


def test_the_better_half_goes_on(tiny_config: MakeConfig) -> None:
    config = tiny_config("train.max_steps=40", "train.eval_steps=1000")
    grid = {"train.learning_rate": ["1e-6", "0.01", "1e-5", "0.02"]}
    found = sweep(config, grid)
    losses = {
        one.name: {
            r.step: r.eval_loss for r in records_of(EvalMetrics, folder_of(config) / one.name)
        }
        for one in found.candidates
    }
    first = sorted(losses, key=lambda name: losses[name][10])
    second = sorted(first[:2], key=lambda name: losses[name][20])
    assert steps_of(found) == {second[0]: 40, second[1]: 20, first[2]: 10, first[3]: 10}
    assert list(steps_of(found)) == [*second, *first[2:]]
    assert list(losses[second[0]]) == [0, 10, 20, 40]


def test_a_run_that_is_too_short_to_stop_on_the_way_is_told_as_whole(
    tiny_config: MakeConfig,
) -> None:
    heard = Listener()
    found = sweep(tiny_config("train.max_steps=5"), {"lora.r": ["4", "8"]}, monitor=heard)
    assert list(steps_of(found).values()) == [5, 5]
    whole = "all 5 steps, which are too few to stop before the last"
    assert [text for text in heard.heard if text in ("lora.r=4", "lora.r=8", whole)] == [
        *("lora.r=4", whole),
        *("lora.r=8", whole),
    ]


@pytest.mark.parametrize("full", [False, True])
def test_the_best_run_may_have_taken_fewer_steps_than_another(
    tiny_config: MakeConfig, full: bool
) -> None:
    epochs = ("train.max_steps=null", "train.num_train_epochs=6", "train.learning_rate=0.3")
    config = tiny_config(*epochs)
    found = sweep(config, {"train.batch_size": ["1", "3"]}, full=full)
    assert [one.settings["train.batch_size"] for one in found.candidates] == ["3", "1"]
    best, other = found.candidates
    assert best.steps < other.steps
    assert best.loss is not None
    assert other.loss is not None
    assert best.loss < other.loss
    assert (best.share, other.share) == (1, 1 if full else 0.5)
    assert Config.load(folder_of(config) / "best.yaml", []).train.batch_size == 3


def test_a_run_out_of_patience_is_compared_by_its_last_validation(
    tiny_config: MakeConfig,
) -> None:
    config = tiny_config(*LONG, "train.eval_steps=1", "train.patience=1")
    found = sweep(config, {"train.learning_rate": ["0.01", "0.3"]})
    early, late = sorted(found.candidates, key=lambda one: one.steps)
    assert found.finished
    assert 0 < early.steps < 10, "the first share"
    assert early.loss is not None
    assert late == found.best


def test_shares_double_up_to_all_steps() -> None:
    assert list(shares(2)) == [0.5, 1]
    assert list(shares(3)) == list(shares(4)) == [0.25, 0.5, 1]
    assert list(shares(9)) == [1 / 16, 1 / 8, 1 / 4, 1 / 2, 1]


@pytest.mark.parametrize("calls", [0, 2, 9, 30, 45])
def test_a_stopped_sweep_goes_on_where_it_was(
    tiny_config: MakeConfig, tmp_path: Path, calls: int
) -> None:
    grid = {"train.learning_rate": ["0.001", "0.01", "0.03"]}
    whole = sweep(tiny_config(*LONG, f"output_dir={tmp_path / 'whole'}"), grid)
    config = tiny_config(*LONG)
    stopped = sweep(config, grid, should_stop=stop_after(calls))
    assert not stopped.finished
    assert not (folder_of(config) / "best.yaml").exists()
    found = sweep(config, grid)
    assert steps_of(found) == steps_of(whole)
    assert [one.loss for one in found.candidates] == [one.loss for one in whole.candidates]
    assert weights(folder_of(config) / found.best.name) == weights(
        tmp_path / "whole" / whole.best.name
    )


def test_a_finished_sweep_loads_nothing(
    tiny_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, grid = tiny_config(*LONG), {"lora.r": ["4", "8"]}
    found, calls = sweep(config, grid), loads(monkeypatch)
    assert sweep(config, grid) == found
    assert calls == []
    assert sweep(config, grid, overwrite=True).best.loss == found.best.loss
    assert len(calls) == 1


def test_a_rate_that_is_too_high_ends_one_run_and_not_the_sweep(tiny_config: MakeConfig) -> None:
    heard = Listener()
    config = tiny_config("train.max_steps=10", "train.lr_scheduler_type=constant")
    found = sweep(config, {"train.learning_rate": ["1e38", "0.01", "0.001"]}, monitor=heard)
    assert found.finished
    assert found.best.problem is None
    (failed,) = [one for one in found.candidates if one.problem]
    assert (failed.settings, failed.loss) == ({"train.learning_rate": "1e38"}, None)
    assert found.candidates[-1] == failed
    assert any("it goes no further" in text for text in heard.heard)
    with pytest.raises(NonFiniteError) as caught:
        sweep(config, {"train.learning_rate": ["1e38", "2e38"]})
    assert caught.value.fix == "lower the values of train.learning_rate"


def test_a_run_whose_gradients_are_wrong_does_not_end_the_sweep(
    tiny_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Masks, "some", lambda masks, tokens: masks.of(tokens))  # of other tokens
    config = tiny_config("train.max_steps=2")
    found = sweep(config, {"lora.lora_dropout": ["0.3", "0"]})
    assert found.finished
    right, wrong = found.candidates
    assert right.problem is None
    assert "gradients differ from those of transformers and PEFT" in str(wrong.problem)
    with pytest.raises(EngineError, match=r"differ from .* train with train\.engine=plain"):
        sweep(config, {"lora.lora_dropout": ["0.3", "0.2"]}, overwrite=True)


def test_a_sweep_is_made_possible_as_advised(tiny_config: MakeConfig, tmp_path: Path) -> None:
    config, grid = tiny_config("train.max_steps=2"), {"lora.r": ["2", "4"]}

    def fix(*settings: str, vary: dict[str, list[str]] = grid) -> str | None:
        with pytest.raises(ConfigError) as caught:
            sweep(config.override(*settings), vary)
        assert not folder_of(config).exists()
        return caught.value.fix

    common = "vary settings of lora and train that change the result"
    for key in ("model.base", "data.train", "output_dir", "train.save_steps"):
        assert fix(vary={key: ["1", "2"]}) == common
    assert fix(vary={"lora.r": ["2", "2"]}) == "remove one of the values"
    assert fix("data.validation=0") == "set it to a share of the rows, such as 0.05"
    seeds = {"train.seed": ["1", "2"]}
    assert fix(vary=seeds) == "give data.validation a file"
    held_out = tmp_path / "held-out.jsonl"
    held_out.write_text(ROWS, encoding="utf-8")
    assert sweep(config.override(f"data.validation={held_out}"), seeds).finished
    assert sweep(config, grid).finished


def test_settings_with_several_values() -> None:
    grid, others = parse_grid(
        [
            "lora.r=8, 16",
            "lora.target_modules=[q_proj,v_proj],all-linear",
            "train.seed=1",
            "a='b,c'",
        ]
    )
    assert grid == {
        "lora.r": ["8", "16"],
        "lora.target_modules": ["[q_proj,v_proj]", "all-linear"],
    }
    assert others == ["train.seed=1", "a='b,c'"]
    with pytest.raises(ConfigError) as caught:
        parse_grid(["lora.r=8"])
    assert caught.value.fix == ("write some with commas, as in train.learning_rate=1e-4,3e-4")
    assert parse_grid(["train.learning_rate=1e-4,3e-4"])[1] == []


def test_a_damaged_record_is_removed_as_advised(tiny_config: MakeConfig) -> None:
    config, grid = tiny_config("train.max_steps=2"), {"lora.r": ["2", "4"]}
    found = sweep(config, grid)
    file = folder_of(config) / "sweep.json"
    file.write_text("{")
    for overwrite in (False, True):
        with pytest.raises(CheckpointError) as caught:
            sweep(config, grid, overwrite=overwrite)
        assert caught.value.fix == "remove it and best.yaml, and start the sweep again"
    file.unlink()
    file.with_name("best.yaml").unlink()
    again = sweep(config, grid)
    assert (steps_of(again), again.best.loss) == (steps_of(found), found.best.loss)


def test_no_file_of_the_users_is_replaced(tiny_config: MakeConfig, tmp_path: Path) -> None:
    config, grid = tiny_config("train.max_steps=2"), {"lora.r": ["2", "4"]}
    mine = folder_of(config) / "best.yaml"
    mine.parent.mkdir()
    mine.write_text("mine")
    with pytest.raises(ConfigError) as caught:
        sweep(config, grid)
    assert caught.value.fix == "set another output_dir, or move the file"
    assert mine.read_text() == "mine"
    other = config.model_copy(update={"output_dir": str(tmp_path / "other")})
    assert sweep(other, grid).finished
    mine.rename(tmp_path / "moved.yaml")
    assert sweep(config, grid).finished


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_sweep_that_is_killed_goes_on(tiny_base: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(ROWS, encoding="utf-8")

    def run(name: str, seconds: float | None) -> bool:
        command = [
            *(sys.executable, "-m", "offbook", "sweep", "data.train=rows.jsonl"),
            *(f"model.base={tiny_base}", "model.precision=float32", "data.validation=0.2"),
            *("train.batch_size=3", "train.max_steps=60", "train.save_steps=3"),
            *("train.learning_rate=0.001,0.01,0.03", f"output_dir={name}"),
        ]
        try:  # a process that takes longer is killed with SIGKILL
            done = subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=seconds)
        except subprocess.TimeoutExpired:
            return False
        assert done.returncode == 0, done.stderr
        return True

    assert run("whole", None)
    whole = Sweep.read(tmp_path / "whole" / "sweep.json")
    killed = 0
    for seconds in (5, 9, None):
        killed += not run("killed", seconds)
    assert killed
    found = Sweep.read(tmp_path / "killed" / "sweep.json")
    assert steps_of(found) == steps_of(whole)
    assert found.best.name == whole.best.name
    assert hashes(tmp_path / "killed" / found.best.name) == hashes(
        tmp_path / "whole" / whole.best.name
    )
