"""Several processes train what one trains, and agree where something goes wrong."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from offbook.monitor import RowLosses, StepMetrics
from offbook.training.distributed import Processes
from support.runs import difference, hashes, records_of
from support.tiny import ROWS
from support.together import play, train_together

PERSONA = "You keep the lamp of a lighthouse and speak as its keeper. " * 4
FULL = bool(os.environ.get("OFFBOOK_TEST_PROCESSES"))  # the whole table, with 2, 3 and 4
STEPS = 20 if FULL else 8
# What is trained, and what goes wrong on the way. Each ends in the adapter of one process.
CASES: dict[str, dict[str, Any]] = {
    "as it is": {},
    "a shared prefix": {"settings": [f"data.system={PERSONA}", "train.batch_size=5"]},
    "fewer examples than processes": {"settings": ["train.batch_size=1"]},
    "out of memory in one": {"settings": ["train.batch_size=7"], "memory": [1, 3]},
    "dora": {"settings": ["lora.use_dora=true"]},
    "plain": {"settings": ["train.engine=plain"]},
    "checkpointing": {"settings": ["train.gradient_checkpointing=true"]},
    "weight decay": {"settings": ["train.weight_decay=0.3"]},
    "other micro-batches in each": {
        "settings": ["train.batch_size=7"],
        "tokens": [60, 25, 40, 30],
    },
}
# Of four, each has a single row of a step: where memory is not enough for it, the run ends.
NAMES = {2: list(CASES), 3: list(CASES), 4: [n for n in CASES if n != "out of memory in one"]}
if not FULL:
    NAMES = {2: list(CASES)[:5], 3: list(CASES)[:3]}


class Runs:
    """The runs of this module: one process's, and those of several, started once for all cases."""

    def __init__(self, folder: Path, base: Path) -> None:
        self.folder = folder
        rows = folder / "rows.jsonl"
        rows.write_text(ROWS, encoding="utf-8")
        self.given = [
            *(f"model.base={base}", "model.precision=float32", f"data.train={rows}"),
            *("data.validation=0.2", "lora.lora_dropout=0.1", f"train.max_steps={STEPS}"),
            *("train.learning_rate=0.002", "train.logging_steps=5", "train.batch_size=3"),
        ]
        self.ended: dict[str, list[list[Any]]] = {}
        for name in NAMES[2]:
            play(self.case(f"{name}-1", CASES[name].get("settings", ())))
        for count in NAMES:
            self.together(count)

    def case(self, run: str, settings: Any = (), **more: Any) -> dict[str, Any]:
        place = f"output_dir={self.folder / run}"
        return {"settings": [*self.given, place, *settings], **more}

    def together(self, count: int) -> None:
        names = [f"{name}-{count}" for name in NAMES[count]]
        cases = [self.case(f"{name}-{count}", **CASES[name]) for name in NAMES[count]]
        if count == 2:
            saved = ["train.save_steps=2"]
            for run in ("stopped", "stopped, resumed by 2", "stopped, resumed by 3"):
                names.append(run)
                cases.append(self.case(run, stop=[1, 9]))
            names += ["stopped, resumed by 2", "failed", "left"]
            cases.append(self.case("stopped, resumed by 2", resume=True))
            cases.append(self.case("failed", saved, fail=[1, 5]))
            cases.append(self.case("left", leave=[1, 5]))  # the last, since one ends there
        if count == 3:
            names.append("stopped, resumed by 3")
            cases.append(self.case("stopped, resumed by 3", resume=True))
        found = train_together(count, cases, self.folder)
        for place, name in enumerate(names):
            self.ended[name] = [each[place] for each in found if place < len(each)]

    def difference(self, run: str, other: str) -> float:
        return difference(self.folder / run, self.folder / other)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Runs:
    return Runs(tmp_path_factory.mktemp("together"), tiny_base)


@pytest.mark.parametrize(("count", "name"), [(n, name) for n in NAMES for name in NAMES[n]])
def test_several_processes_train_what_one_trains(runs: Runs, count: int, name: str) -> None:
    ended = runs.ended[f"{name}-{count}"]
    assert len(ended) == count
    assert ended[0][:2] == [True, STEPS]
    assert ended == [ended[0]] * count, "the same bits in each, and only the first writes"
    assert runs.difference(f"{name}-{count}", f"{name}-1") <= 1e-5
    one, several = (runs.folder / f"{name}-{n}" for n in (1, count))
    for kind in (StepMetrics, RowLosses):
        expected, got = (records_of(kind, run) for run in (one, several))
        for a, b in zip(got, expected, strict=True):
            assert a.step == b.step
            if isinstance(a, RowLosses) and isinstance(b, RowLosses):
                assert a.rows == b.rows
                assert a.losses == pytest.approx(b.losses, abs=2e-4)
            elif isinstance(a, StepMetrics) and isinstance(b, StepMetrics):
                assert a.loss == pytest.approx(b.loss, rel=1e-4)


def test_a_process_that_is_stopped_stops_all_and_any_number_resumes(runs: Runs) -> None:
    first, second = runs.ended["stopped"]
    assert first == second
    assert first[0] is False
    assert 0 < first[1] < STEPS
    found = play(runs.case("stopped", resume=True))
    assert found[:2] == [True, STEPS]
    for run in ("stopped", "stopped, resumed by 2", "stopped, resumed by 3"):
        assert runs.difference(run, "as it is-1") <= 1e-5
    same = (runs.folder / run for run in ("stopped, resumed by 2", "as it is-2"))
    assert len({hashes(run) for run in same}) == 1, "with as many processes, the same bits"


def test_an_error_in_one_ends_all_with_its_message(runs: Runs) -> None:
    first, second = runs.ended["failed"]
    assert first[:2] == ["OffbookError", "ValueError: this went wrong (in process 1 of 2)"]
    assert second[:2] == ["ValueError", "this went wrong"]
    assert play(runs.case("failed", ["train.save_steps=2"], resume=True))[:2] == [True, STEPS]
    assert runs.difference("failed", "as it is-1") <= 1e-5


def test_what_was_done_is_saved_when_a_process_goes(runs: Runs) -> None:
    (first,) = runs.ended["left"]
    assert first[0] == "PeerLostError"
    assert "continue with --resume" in first[1]
    assert (runs.folder / "left" / "checkpoints" / "step-5").is_dir()
    assert play(runs.case("left", resume=True))[:2] == [True, STEPS]
    assert runs.difference("left", "as it is-1") <= 1e-5


def test_examples_are_divided_by_their_tokens() -> None:
    lengths = np.random.default_rng(0).integers(20, 400, 64).tolist()
    shares = [Processes(rank, 5).share(lengths) for rank in range(5)]
    assert sorted(k for share in shares for k in share) == list(range(64))
    tokens = [sum(lengths[k] for k in share) for share in shares]
    assert max(tokens) < 1.05 * min(tokens)
    assert Processes(2, 3).share([7, 7]) == []
