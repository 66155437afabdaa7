"""`offbook report` and `offbook runs`, as a user meets them."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from offbook.evaluation.saved import hash_adapter
from offbook.settings.config import Config
from support.evaluations import make_evaluation, write_evaluation
from support.exports import train_run
from support.families import make_family

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reports")
    base = make_family("llama", folder / "base")
    for name, rank in (("keeper", 8), ("captain", 4)):
        settings = ("train.max_steps=4", f"lora.r={rank}", f"output_dir={folder / name}")
        train_run(folder, base, *settings)
        write_evaluation(folder / name)
    return folder


@pytest.fixture
def runs(trained: Path, tmp_path: Path) -> Path:
    for name in ("keeper", "captain"):
        shutil.copytree(trained / name, tmp_path / "runs" / name)
    return tmp_path / "runs"


def test_a_report_is_written_and_named(cli: Cli, runs: Path) -> None:
    code, out, _ = cli("report", "runs/keeper")
    assert code == 0
    page = runs / "keeper" / "report.html"
    assert out == f"report in runs/keeper/report.html\nopen it in a browser: {page.as_uri()}\n"
    assert "It took" in page.read_text(encoding="utf-8")
    code, out, _ = cli("report", "runs/keeper", "--json", "-o", "other.html")
    assert (code, json.loads(out)) == (0, {"report": "other.html"})
    assert (runs.parent / "other.html").is_file()


def test_what_cannot_be_reported_is_as_advised(cli: Cli, runs: Path) -> None:
    assert cli("report", "runs")[::2] == (
        4,
        "error: runs: not a run directory; `offbook train` makes one\n",
    )
    mine = runs / "keeper" / "report.html"
    mine.write_text("mine")
    code, _, err = cli("report", "runs/keeper")
    assert code == 2
    assert err.endswith("not a page that offbook wrote; name another file with -o\n")
    assert cli("report", "runs/keeper", "-o", "mine.html")[0] == 0
    assert mine.read_text() == "mine"
    mine.unlink()
    (runs / "keeper" / "evaluation.json").write_text("{")
    assert cli("report", "runs/keeper")[0] == 0
    page = mine.read_text(encoding="utf-8")
    assert "evaluation.json: the file is damaged; remove it, and evaluate the run again" in page
    (runs / "keeper" / "evaluation.json").unlink()
    assert cli("report", "runs/keeper")[0] == 0
    assert "is damaged" not in mine.read_text(encoding="utf-8")


def test_what_has_no_interval_is_null_in_json(cli: Cli, runs: Path) -> None:
    for name in ("keeper", "captain"):
        adapter = hash_adapter(runs / name / "adapter")
        found = replace(make_evaluation(replies=1), adapter=adapter)
        (runs / name / "evaluation.json").write_bytes(found.to_json())
    code, out, _ = cli("runs", "compare", "runs/keeper", "runs/captain", "--json")
    assert code == 0
    paired = json.loads(out, parse_constant=pytest.fail)["paired"]["captain"]
    assert paired["chrf"]["n"] == 1
    assert paired["chrf"]["low"] is paired["chrf"]["high"] is None


def test_runs_are_listed(cli: Cli, runs: Path) -> None:
    (runs / "captain" / "receipt.json").write_text("{")
    for arguments in ((), ("runs",), ("list",), ("list", "runs")):
        code, out, _ = cli("runs", *arguments)
        assert code == 0
        captain, keeper = out.splitlines()
        assert captain.startswith("runs/captain  runs/captain/receipt.json: the file is damaged")
        assert re.fullmatch(
            r"runs/keeper  rows\.jsonl  base  4  \d\.\d{3} → \d\.\d{3}  took  \d\.\d MB  "
            r"\d{4}-\d\d-\d\d \d\d:\d\d",
            keeper,
        )
    code, out, _ = cli("runs", "--json")
    captain, keeper = json.loads(out)
    assert (keeper["run"], keeper["step"], keeper["steps"]) == ("runs/keeper", 4, 4)
    assert keeper["verdict"] == "took"
    assert "damaged" in captain["problem"]
    (runs / "empty").mkdir()
    assert cli("runs", "runs/empty")[:2] == (0, "no runs in runs/empty\n")


def test_where_there_are_no_runs_one_is_made_as_advised(
    cli: Cli, tiny_config: Callable[..., Config]
) -> None:
    code, _, err = cli("runs")
    assert code == 2
    assert err == "error: runs: no such folder; `offbook train` makes a run in ./runs\n"
    changed = tiny_config("train.max_steps=1").flat()
    keys = ("model.base", "data.train", "train.max_steps")
    assert cli("train", *(f"{key}={changed[key]}" for key in keys))[0] == 0
    assert cli("runs")[1].startswith("runs/offbook  rows.jsonl")


def test_runs_are_compared(cli: Cli, runs: Path) -> None:
    code, out, _ = cli("runs", "compare", "runs/keeper", "runs/captain", "-o", "both.html")
    assert code == 0
    assert "settings that differ\n  lora.r\n    keeper: 8\n    captain: 4\n" in out
    assert "    keeper: 2.330 (2.250 … 2.410)\n" in out
    assert "captain minus keeper, on 12 prompts that both answered\n" in out
    assert "  replies that end by themselves: 0% (0% … 0%), in the noise\n" in out
    assert "page in both.html" in out
    assert "Runs compared" in (runs.parent / "both.html").read_text(encoding="utf-8")
    code, out, _ = cli("runs", "compare", "runs/keeper", "runs/captain", "--json")
    facts = json.loads(out)
    assert facts["differences"] == {"lora.r": ["8", "4"]}
    assert facts["paired"]["captain"]["stops"]["n"] == 12
    assert cli("runs", "compare", "runs/keeper")[0] == 2
    assert cli("runs", "compare", "runs/keeper", "runs/nothing")[0] == 4


def test_a_run_is_removed_after_a_question(cli: Cli, runs: Path) -> None:
    notes = runs / "keeper" / "notes.txt"
    notes.write_text("mine")
    code, _, err = cli("runs", "remove", "runs/keeper", stdin="n\n")
    assert code == 1
    assert "remove the run in runs/keeper? [y/N]" in err
    assert "took" in err
    assert (runs / "keeper" / "adapter").exists()
    code, out, err = cli("runs", "remove", "runs/keeper", stdin="y\n")
    assert (code, out) == (0, "removed the run in runs/keeper\n")
    assert "left there: runs/keeper/notes.txt\n" in err
    assert list((runs / "keeper").iterdir()) == [notes]
    assert cli("runs", "remove", "runs/captain", "--yes")[0] == 0
    assert not (runs / "captain").exists()
    assert cli("runs", "remove", "runs/captain", "--yes")[0] == 4


@pytest.mark.parametrize("command", ["list", "compare", "remove"])
def test_each_sub_command_has_examples(cli: Cli, command: str) -> None:
    code, out, _ = cli("runs", command, "--help")
    assert code == 0
    assert f"offbook runs {command}" in out
