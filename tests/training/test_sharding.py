"""Processes that share a base train what they train with a whole one in each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from offbook.engine.ops import kernels
from offbook.errors import ConfigError, EngineError
from offbook.monitor import LineMonitor
from offbook.settings.config import Config
from offbook.training.advice import Case
from offbook.training.memory import Memory
from offbook.training.plan import ModelShape, plan_for
from offbook.training.shards import resolve_shards
from offbook.training.train import train
from support.runs import difference
from support.tiny import ROWS
from support.together import play, train_together

PERSONA = "You keep the lamp of a lighthouse and speak as its keeper. " * 4
STEPS = 2
OBSTACLES = {
    "model.quantization=nf4": "a base in 4 bits is not shared",
    "lora.use_dora=true": "DoRA needs a whole base",
}
SHARED = "train.shard_base=true"
CASES: dict[str, list[str]] = {
    "as it is": [],
    "a prefix, other micro-batches in each": [
        *(f"data.system={PERSONA}", "train.batch_size=5", "train.gradient_checkpointing=true"),
    ],
    "fewer examples than processes": ["train.batch_size=1"],
    "plain": ["train.engine=plain"],
}
TOKENS = {"a prefix, other micro-batches in each": [90, 400]}
AGAINST_ONE = list(CASES)[:2]  # with one process, too


class Runs:
    def __init__(self, folder: Path, base: Path) -> None:
        self.folder = folder
        rows = folder / "rows.jsonl"
        rows.write_text(ROWS, encoding="utf-8")
        self.given = [
            *(f"model.base={base}", "model.precision=float32", f"data.train={rows}"),
            *("data.validation=0.2", "lora.lora_dropout=0.1", f"train.max_steps={STEPS}"),
            *("train.learning_rate=0.002", "train.batch_size=3"),
        ]
        cases = []
        for name, settings in CASES.items():
            tokens = {"tokens": TOKENS[name]} if name in TOKENS else {}
            if name in AGAINST_ONE:
                play(self.case(f"{name}, one", settings))
            cases.append(self.case(f"{name}, whole", settings, **tokens))
            cases.append(self.case(f"{name}, shared", [*settings, SHARED], **tokens))
        cases.append(self.case("stopped", [SHARED], stop=[1, 2]))
        cases.append(self.case("stopped", [], resume=True))
        cases.append(self.case("broken", [SHARED, "train.save_steps=1"], **{"break": [1, 4]}))
        names = [Path(case["settings"][-1].partition("=")[2]).name for case in cases]
        found = train_together(2, cases, folder)
        self.ended: dict[str, list[list[list[Any]]]] = {}
        for place, name in enumerate(names):
            ended = [each[place] for each in found]
            self.ended.setdefault(name, []).append(ended)

    def case(self, run: str, settings: list[str], **more: Any) -> dict[str, Any]:
        return {"settings": [*self.given, *settings, f"output_dir={self.folder / run}"], **more}

    def difference(self, run: str, other: str) -> float:
        return difference(self.folder / run, self.folder / other)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Runs:
    return Runs(tmp_path_factory.mktemp("sharing"), tiny_base)


@pytest.mark.parametrize("name", CASES)
def test_a_shared_base_trains_what_a_whole_one_does(runs: Runs, name: str) -> None:
    for kind in "whole", "shared":
        ((first, second),) = runs.ended[f"{name}, {kind}"]
        assert first[:2] == [True, STEPS]
        assert first[:4] == second[:4], "the same bits in each, and only the first writes"
    if name in AGAINST_ONE:
        assert runs.difference(f"{name}, shared", f"{name}, one") <= 3e-6
    # With a prefix, one of the two computes it apart, or within its only micro-batch.
    allowed = 3e-6 if name in TOKENS else 0
    assert runs.difference(f"{name}, shared", f"{name}, whole") <= allowed


def test_each_process_holds_its_part_of_the_base(runs: Runs) -> None:
    ((whole, _),) = runs.ended["as it is, whole"]
    ((first, second),) = runs.ended["as it is, shared"]
    for held in first[-1], second[-1]:
        assert held == pytest.approx(whole[-1] / 2, rel=0.02)


def test_a_stop_in_one_stops_all_and_a_whole_base_resumes(runs: Runs) -> None:
    (first, second), resumed = runs.ended["stopped"]
    assert first[:2] == second[:2] == [False, first[1]]
    assert 0 < first[1] < STEPS
    assert resumed[0][:2] == [True, STEPS]
    assert runs.difference("stopped", "as it is, shared") == 0


def test_an_error_in_one_ends_all_and_what_was_done_is_saved(runs: Runs) -> None:
    ((first, second),) = runs.ended["broken"]
    assert second[:2] == ["ValueError", "this went wrong"]
    assert first[0] == "PeerLostError"
    assert list((runs.folder / "broken" / "checkpoints").iterdir())


def test_what_cannot_be_shared_is_refused(tiny_config: Callable[..., Config]) -> None:
    with pytest.raises(ConfigError, match=r"train.shard_base=true: one process .* add --nproc 2"):
        train(tiny_config(SHARED))


def case_of(base: Path, *settings: str) -> Case:
    config = Config().override(*settings)
    shape = ModelShape.of(base, config.lora)
    return Case(config, shape, 64, torch.float32, torch.device("cpu"), Memory(10**10, 0))


def test_a_base_is_shared_where_a_whole_one_does_not_fit(tiny_base: Path) -> None:
    told: list[str] = []
    with LineMonitor(told.append) as monitor:
        ample = case_of(tiny_base)
        assert resolve_shards(ample, 4, monitor).shards == 1
        deep = type(ample.shape.config)(**ample.shape.config.to_dict() | {"num_hidden_layers": 20})
        large = replace(ample.shape, config=deep, linear=10**9, parameters=10**9)  # 4 GB
        tight = replace(ample, shape=large, memory=Memory(3 * 10**9, 0))
        assert resolve_shards(tight, 1, monitor).shards == 1
        assert not told
        assert resolve_shards(tight, 4, monitor).shards == 4
        assert told == ["the processes share the base, since it does not fit in each"]
        for setting, problem in OBSTACLES.items():
            other = replace(tight, config=tight.config.override(setting))
            assert resolve_shards(other, 4, monitor).shards == 1
            config = other.config.override(SHARED)
            with pytest.raises(ConfigError, match=problem):
                resolve_shards(replace(other, config=config), 4, monitor)
        never = replace(tight, config=tight.config.override("train.shard_base=false"))
        assert resolve_shards(never, 4, monitor).shards == 1


def test_the_plan_counts_a_part_of_the_base(tiny_base: Path) -> None:
    case = case_of(tiny_base)
    shape = case.shape
    whole, half, tenth = (
        plan_for(replace(case, shards=n), 256, checkpointing=False).weights for n in (1, 2, 10)
    )
    assert whole == 4 * shape.parameters
    assert half - tenth == pytest.approx(whole * (1 / 2 - 1 / 10), rel=0.02)


def test_a_kernel_refuses_a_weight_that_is_not_here() -> None:
    """Its address is that of nothing."""

    class Elsewhere(torch.Tensor):
        pass

    with pytest.raises(EngineError, match="a kernel cannot read a Elsewhere"):
        kernels._address(torch.ones(4).as_subclass(Elsewhere))
