"""`offbook eval`, on a tiny model that has learned a little."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet
import pytest

from offbook.evaluation.record import Evaluation
from offbook.evaluation.saved import read_evaluation
from offbook.runs.directory import RunDirectory
from offbook.settings.config import Config
from offbook.training.train import train

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def rows() -> list[dict[str, str]]:
    return [{"instruction": f"number {n}?", "output": f"aye {n} aye"} for n in range(40)]


@pytest.fixture
def run(tiny_config: Callable[..., Config], rows: list[dict[str, str]], tmp_path: Path) -> Path:
    (tmp_path / "many.json").write_text(json.dumps(rows), encoding="utf-8")
    config = tiny_config(f"data.train={tmp_path / 'many.json'}", "data.validation=0.3")
    return train(config.override("train.max_steps=20")).run


def test_everything_is_measured_and_written(cli: Cli, run: Path) -> None:
    code, out, err = cli("eval", run)
    assert code == 0, err
    found = read_evaluation(RunDirectory(run))
    assert found is not None
    assert out.splitlines()[0] == found.verdict
    assert found.lines.loss.change.high < 0  # on held-out rows
    assert len(found.replies) == found.lines.loss.base.n == 12
    assert found.in_role is not None
    assert len(found.in_role.probes) == 24
    assert [at.strength for at in found.strengths][::2] == [0, 0.5, 1, 1.5]
    assert found.strengths[0].kl.value < 1e-6
    assert found.strengths[0].loss.value > found.strengths[4].loss.value
    ledger = pyarrow.parquet.read_table(run / "ledger.parquet").to_pylist()
    assert len(ledger) == 28
    assert all(row["first"] is not None for row in ledger)
    assert (run / "report.html").is_file()
    assert "adapter strengths" in err
    assert "Traceback" not in err


def test_dora_has_no_other_strength(
    cli: Cli, tiny_config: Callable[..., Config], rows: list[dict[str, str]], tmp_path: Path
) -> None:
    (tmp_path / "many.json").write_text(json.dumps(rows), encoding="utf-8")
    config = tiny_config(f"data.train={tmp_path / 'many.json'}", "data.validation=0.3")
    run = train(config.override("train.max_steps=4", "lora.use_dora=true")).run
    code, _, err = cli("eval", run, "--strength", 0.5)
    assert code == 2
    assert "a DoRA adapter is not a sum, so it has no other strength than 1" in err
    code, _, err = cli("eval", run)
    assert code == 0, err
    found = read_evaluation(RunDirectory(run))
    assert found is not None
    assert (found.strengths, found.best_strength) == ([], None)


def test_json_and_require(cli: Cli, run: Path) -> None:
    code, out, _ = cli("eval", run, "--short", "--json", "--strength", 0, "--require", "took")
    found = Evaluation(**json.loads(out))
    assert (code, found.short, found.strength) == (8, True, 0)
    assert "inert" in json.loads(out)["findings"][0]["because"]


def test_an_evaluation_of_other_weights_is_not_shown(cli: Cli, run: Path) -> None:
    assert cli("eval", run, "--short")[0] == 0
    assert read_evaluation(RunDirectory(run)) is not None
    weights = run / "adapter" / "adapter_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert read_evaluation(RunDirectory(run)) is None


def test_someone_elses_adapter(cli: Cli, run: Path, tiny_base: Path, tmp_path: Path) -> None:
    adapter = shutil.copytree(run / "adapter", tmp_path / "theirs")
    code, _, err = cli("eval", adapter, "--base", tiny_base)
    assert (code, "--data rows.json" in err) == (2, True)
    held_out = [{"instruction": f"letter {n}?", "output": f"aye {n} aye"} for n in range(12)]
    (tmp_path / "held.json").write_text(json.dumps(held_out), encoding="utf-8")
    code, out, err = cli(
        *("eval", adapter, "--base", tiny_base, "--data", tmp_path / "held.json", "--short")
    )
    assert code == 0, err
    assert "loss on held-out rows" in out
    assert "loss on training rows" not in out
    assert not (adapter / "evaluation.json").exists()


def test_named_rows_that_were_trained_on_are_left_out(
    cli: Cli, run: Path, rows: list[dict[str, str]], tmp_path: Path
) -> None:
    more = [*rows, {"instruction": "another?", "output": "aye aye"}]
    (tmp_path / "named.json").write_text(json.dumps(more), encoding="utf-8")
    code, _, err = cli("eval", run, "--short", "--data", tmp_path / "named.json")
    assert (code, "28 rows are left out" in err) == (0, True)


def test_what_cannot_be_evaluated(
    cli: Cli, tiny_config: Callable[..., Config], tmp_path: Path
) -> None:
    run = train(tiny_config("data.validation=0", "train.max_steps=1")).run
    code, _, err = cli("eval", run)
    assert (code, "name some with --data FILE" in err) == (2, True)
    held_out = [{"instruction": f"letter {n}?", "output": "aye"} for n in range(4)]
    (tmp_path / "held.json").write_text(json.dumps(held_out), encoding="utf-8")
    code, out, _ = cli("eval", run, "--data", tmp_path / "held.json", "--short")
    assert (code, out.splitlines()[0]) == (0, "cannot tell")  # too few, but they help


def test_a_run_is_evaluated_instead_of_a_whole_model(cli: Cli, run: Path, tiny_base: Path) -> None:
    code, _, err = cli("eval", tiny_base)
    assert (code, "a whole model has no adapter" in err) == (2, True)
    assert cli("eval", run, "--short")[0] == 0


def test_a_training_ends_with_it(
    cli: Cli, tiny_config: Callable[..., Config], tmp_path: Path
) -> None:
    (tmp_path / "config.yaml").write_text(tiny_config().to_yaml(), encoding="utf-8")
    code, out, err = cli("train", tmp_path / "config.yaml", "--no-eval")
    assert (code, "95% intervals" in out) == (0, False)
    code, out, err = cli("train", tmp_path / "config.yaml", "--overwrite")
    assert (code, "95% intervals" in out, "offbook eval" in out) == (0, True, True), err
    assert (tmp_path / "run" / "report.html").is_file()
