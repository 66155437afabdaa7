"""Runs that are trained together: each is as if trained alone, and none costs another anything."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from offbook.engine.together import AdapterStep, accumulate_together
from offbook.errors import ConfigError, DataError, NonFiniteError
from offbook.models import load
from offbook.models.base import ADAPTER_WEIGHTS as WEIGHTS
from offbook.monitor import Monitor
from offbook.runs.directory import RunDirectory
from offbook.settings.config import Config
from offbook.training import packing, shared
from offbook.training.many import Ending, named, train_many
from offbook.training.plan import ModelShape
from offbook.training.shared import SharedBase
from offbook.training.train import train
from support.runs import Listener, StopAfter, content, curve, stop_after
from support.tiny import ROWS
from support.together import ROOT

PERSONA = "You keep the lamp of a lighthouse and speak as its keeper. " * 4
# They differ in rows, seed, length, rate, rank and shape of the adapter, and in their prefix.
ROLES = {
    "brack": ("train.max_steps=6", "lora.lora_dropout=0.1"),
    "mara": (
        *("train.seed=7", "lora.r=16", "train.max_steps=8", "train.batch_size=2"),
        *("train.learning_rate=0.003", f"data.system={PERSONA}"),
    ),
    "gull": ("lora.target_modules=[q_proj,down_proj]", "lora.lora_dropout=0", "train.max_steps=4"),
}


def make_configs(base: Path, place: Path) -> dict[str, Config]:
    rows, backwards = place / "rows.jsonl", place / "backwards.jsonl"
    rows.write_text(ROWS, encoding="utf-8")
    backwards.write_text("".join(reversed(ROWS.splitlines(keepends=True))), encoding="utf-8")
    common = [
        *(f"model.base={base}", "model.precision=float32", f"data.train={rows}"),
        *("data.validation=0.2", "train.batch_size=3", "train.learning_rate=0.01"),
        *("train.logging_steps=1", "train.save_steps=2"),
    ]
    made = {
        name: Config.load(None, [*common, f"output_dir={place / 'runs' / name}", *settings])
        for name, settings in ROLES.items()
    }
    made["mara"] = made["mara"].override(f"data.train={backwards}")
    return made


@pytest.fixture
def configs(tiny_base: Path, tmp_path: Path) -> dict[str, Config]:
    return make_configs(tiny_base, tmp_path)


@pytest.fixture(scope="module")
def alone(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The runs of training each alone."""
    made = make_configs(tiny_base, tmp_path_factory.mktemp("alone"))
    return {name: train(config).run for name, config in made.items()}


def saved(config: Config) -> int:
    """The step of the newest checkpoint."""
    return max(step for step, _ in RunDirectory(Path(config.output_dir)).steps())


def require_equal(configs: dict[str, Config], alone: dict[str, Path]) -> None:
    """Each run has ended as it does alone."""
    for name, config in configs.items():
        run, expected = Path(config.output_dir), alone[name]
        adapters = [load_file(place / "adapter" / WEIGHTS) for place in (run, expected)]
        for matrix, tensor in adapters[1].items():
            torch.testing.assert_close(adapters[0][matrix], tensor, rtol=0, atol=1e-5)
        for got, wanted in zip(curve(run), curve(expected), strict=True):
            assert got.keys() == wanted.keys()
            for key, value in wanted.items():
                assert got[key] == pytest.approx(value, rel=1e-3, abs=1e-3), "to rounding"


def test_each_is_what_training_it_alone_gives(
    configs: dict[str, Config], alone: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[object] = []

    def counted(*arguments: object) -> object:
        loads.append(arguments)
        return load.load_base(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(shared, "load_base", counted)
        endings = train_many(configs)
    assert len(loads) == 1
    results = {name: ending.result for name, ending in endings.items()}
    assert {name: result and result.steps for name, result in results.items()} == {
        "brack": 6,
        "mara": 8,
        "gull": 4,
    }
    assert all(result and result.finished for result in results.values())
    require_equal(configs, alone)


def test_steps_are_computed_together_where_memory_is_enough(
    configs: dict[str, Config], alone: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[list[int]] = []

    def noted(given: Sequence[AdapterStep], should_stop: Callable[[], bool]) -> object:
        passes.append([share.step.tokens for share in given])
        if len(passes) == 2:
            raise MemoryError
        return accumulate_together(given, should_stop)

    monkeypatch.setattr(packing, "accumulate_together", noted)
    train_many(configs)
    assert [len(tokens) for tokens in passes[:2]] == [3, 3]
    assert 1 < len(passes) - 2 <= 4, "until one is left"
    assert all(sum(tokens) < sum(passes[1]) for tokens in passes[2:])
    require_equal(configs, alone)


@pytest.mark.parametrize("calls", [0, 9])
def test_all_are_saved_when_stopped_and_go_on(
    configs: dict[str, Config], alone: dict[str, Path], calls: int
) -> None:
    endings = train_many(configs, should_stop=stop_after(calls))
    assert not any(ending.result and ending.result.finished for ending in endings.values())
    assert not any(ending.error for ending in endings.values())
    if not calls:
        assert list(endings.values()) == [Ending()] * 3
        assert not Path(configs["brack"].output_dir).exists()
    assert all(ending.result for ending in train_many(configs, resume=True).values())
    require_equal(configs, alone)
    # What has finished is not loaded again.
    assert [e.result and e.result.seconds for e in train_many(configs, resume=True).values()] == [
        *[0] * 3
    ]


@pytest.mark.skipif(sys.platform != "linux", reason="signals of Linux")
def test_all_go_on_after_a_kill(configs: dict[str, Config], tmp_path: Path) -> None:
    # A kill may come late, so the runs are long.
    del configs["gull"]
    longer = ("train.max_steps=20", "train.save_steps=4")
    configs = {name: config.override(*longer) for name, config in configs.items()}
    files = [tmp_path / f"{name}.yaml" for name in configs]
    for file, config in zip(files, configs.values(), strict=True):
        file.write_text(config.to_yaml(), encoding="utf-8")
    program = subprocess.Popen(
        [sys.executable, "-m", "offbook", "train", "--many", *map(str, files)],
        env=os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert program.stderr is not None
    heard = []
    for line in program.stderr:
        heard.append(line)
        if line.startswith("mara: step 5/20"):
            program.kill()
            break
    program.communicate()
    assert program.returncode == -signal.SIGKILL, "".join(heard)
    listeners = {name: Listener() for name in configs}
    endings = train_many(configs, resume=True, monitors=listeners)
    assert all(ending.result and ending.result.finished for ending in endings.values())
    for listener in listeners.values():
        assert any(text.startswith("resuming after step") for text in listener.heard)
    whole = {
        name: train(c.model_copy(update={"output_dir": f"{tmp_path / name}"})).run
        for name, c in configs.items()
    }
    require_equal(configs, whole)


def test_a_run_that_fails_ends_alone(configs: dict[str, Config], alone: dict[str, Path]) -> None:
    failing = {**configs, "gull": configs["gull"].override("train.learning_rate=1e38")}
    heard = {name: Listener() for name in configs}
    endings = train_many(failing, monitors=heard)
    assert isinstance(endings["gull"].error, NonFiniteError)
    assert any("it goes no further, the others do: " in text for text in heard["gull"].heard)
    del failing["gull"]
    assert all(endings[name].result for name in failing)
    require_equal(failing, alone)


def test_an_error_of_the_program_saves_the_others(configs: dict[str, Config]) -> None:
    class Failing(Monitor):
        def step(self, step: int, loss: float, examples_per_second: float) -> None:
            if step == 3:
                raise LookupError("of a program")

    monitors = {"brack": Monitor(), "mara": Failing(), "gull": Monitor()}
    with pytest.raises(LookupError, match="of a program"):
        train_many(configs, monitors=monitors)
    assert {saved(config) for config in configs.values()} <= {2, 3}


def test_ctrl_c_saves_all(configs: dict[str, Config]) -> None:
    class Pressing(Monitor):
        def step(self, step: int, loss: float, examples_per_second: float) -> None:
            if step == 3:
                signal.raise_signal(signal.SIGINT)

    monitors = {"brack": Monitor(), "mara": Pressing(), "gull": Monitor()}
    with pytest.raises(KeyboardInterrupt, match="all runs are saved"):
        train_many(configs, monitors=monitors)
    assert {saved(config) for config in configs.values()} <= {2, 3}


def test_an_error_before_the_first_step_names_its_run_and_leaves_nothing(
    configs: dict[str, Config], tmp_path: Path
) -> None:
    (tmp_path / "bad.jsonl").write_text('{"instruction": "Who?"}\n', encoding="utf-8")
    wrong = {**configs, "gull": configs["gull"].override(f"data.train={tmp_path / 'bad.jsonl'}")}
    with pytest.raises(DataError) as caught:
        train_many(wrong)
    assert str(caught.value).startswith("gull: ")
    assert "bad.jsonl:1" in str(caught.value)
    assert not (tmp_path / "runs").exists()
    # A run that had finished before is as it was, and one that had begun.
    place = Path(configs["mara"].output_dir)
    train(configs["mara"])
    before = content(place)
    with pytest.raises(DataError):
        train_many({name: wrong[name] for name in ("mara", "gull")}, overwrite=True)
    assert content(place) == before
    shutil.rmtree(place)
    stop = StopAfter(3)
    train(configs["brack"], monitor=stop, should_stop=stop.should_stop)
    with pytest.raises(DataError):
        train_many(wrong, resume=True)
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["brack"]
    assert saved(configs["brack"]) == 3


def test_runs_have_names_and_places_of_their_own(tmp_path: Path) -> None:
    places = [tmp_path / "a" / "run", tmp_path / "b" / "run", tmp_path / "mara"]
    made = [Config.load(None, [f"output_dir={place}"]) for place in places]
    assert list(named(made)) == [str(places[0]), str(places[1]), "mara"]
    twice = [*made, Config(output_dir=str(tmp_path / "b" / ".." / "mara"))]
    with pytest.raises(ConfigError, match="2 configurations have this output_dir") as caught:
        named(twice)
    assert caught.value.where == str(places[2])
    assert caught.value.fix == "give each its own"
    assert len(named([*made, Config(output_dir=str(tmp_path / "other"))])) == 4


def test_runs_without_a_common_base_are_trained_apart_as_advised(
    configs: dict[str, Config], alone: dict[str, Path]
) -> None:
    apart = "set it alike, or train them apart"
    for setting in ("model.base=other", "model.quantization=nf4", "model.precision=bfloat16"):
        other = {**configs, "mara": configs["mara"].override(setting)}
        with pytest.raises(ConfigError, match="share a base") as caught:
            train_many(other)
        assert caught.value.fix == apart
        assert caught.value.where == setting.partition("=")[0]
    # One that does not name a precision gets that of the others.
    del configs["mara"]
    configs["brack"] = configs["brack"].override("model.precision=auto")
    assert all(ending.result for ending in train_many(configs).values())
    require_equal(configs, alone)


def test_a_run_on_another_base_is_resumed_alone_as_advised(configs: dict[str, Config]) -> None:
    half = {
        name: configs[name].override(f"model.precision={precision}")
        for name, precision in (("brack", "float32"), ("gull", "bfloat16"))
    }
    for config in half.values():
        stop = StopAfter(3)
        train(config, monitor=stop, should_stop=stop.should_stop)
    both = {name: config.override("model.precision=auto") for name, config in half.items()}
    with pytest.raises(ConfigError, match="is not the base of the runs before it") as caught:
        train_many(both, resume=True)
    assert caught.value.fix == "train it alone"
    assert train(both["gull"], resume=True).finished


def test_a_plan_counts_the_adapters_of_the_others(tiny_base: Path) -> None:
    settings = [Config.load(None, [f"lora.r={rank}"]) for rank in (8, 16)]
    shapes = [ModelShape.of(tiny_base, config.lora) for config in settings]
    together = SharedBase(settings)
    small, large = (together.memory((torch.device("cpu"),), tiny_base, s).used for s in shapes)
    assert small - large == 16 * (shapes[1].adapter - shapes[0].adapter)
