"""Runs compared, listed and removed."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from offbook.errors import CheckpointError, ConfigError
from offbook.evaluation.saved import hash_adapter
from offbook.files import storage
from offbook.report.compare import Comparison, paired
from offbook.report.listing import find_runs, summarize
from offbook.report.page import write_report
from offbook.runs.directory import RunDirectory
from support.browsers import chromium, opened, violations
from support.evaluations import make_evaluation, write_evaluation


def test_what_differs_is_told(runs: tuple[Path, Path]) -> None:
    comparison = Comparison.read(runs)
    assert [run.name for run in comparison.runs] == ["keeper", "captain"]
    differences = {line.name: line.values for line in comparison.differences()}
    assert differences == {"lora.r": ["8", "4"], "train.learning_rate": ["0.01", "0.003"]}
    losses = {str(line.name): line.values for line in comparison.losses()}
    assert losses["steps"] == ["12", "12"]
    before = losses["validation loss before"]
    assert before[0] == before[1]
    assert [len(chart.shown) for chart in comparison.charts()] == [2, 2]
    scores = {text.en: lines for text, lines in comparison.scores()}
    assert len(scores) == 6
    assert scores["Does it stop?"][0].values == ["97%", "–"]
    assert comparison.pairings() == []


def test_a_name_has_the_values_of_all_runs(runs: tuple[Path, Path]) -> None:
    def names() -> list[str]:
        return [line.name.en for _, lines in Comparison.read(runs).scores() for line in lines]  # type: ignore[union-attr]

    found = make_evaluation()
    other = replace(found, lines=replace(found.lines, best_step=30))
    for evaluation, best in ((found, "24"), (other, "24 / 30")):
        adapter = hash_adapter(runs[1] / "adapter")
        (runs[1] / "evaluation.json").write_bytes(replace(evaluation, adapter=adapter).to_json())
        assert f"loss above that of step {best}, the best" in names()


def test_replies_to_the_same_prompts_are_paired(runs: tuple[Path, Path]) -> None:
    adapters = [hash_adapter(run / "adapter") for run in runs]
    evaluation = replace(make_evaluation(replies=30), adapter=adapters[0])
    ours = [
        replace(r, tuned=r.reference if k % 2 else r.tuned)
        for k, r in enumerate(evaluation.replies)
    ]
    moved = [replace(r, source="other.jsonl:1") for r in evaluation.replies[:5]]
    (runs[0] / "evaluation.json").write_bytes(evaluation.to_json())
    changed = replace(evaluation, replies=[*moved, *ours[5:]], adapter=adapters[1])
    (runs[1] / "evaluation.json").write_bytes(changed.to_json())
    (pairing,) = Comparison.read(runs).pairings()
    assert (pairing.name, pairing.n) == ("captain", 25)
    chrf, stops, length = pairing.rows
    assert chrf.change is not None
    assert chrf.change.low > 0
    assert str(chrf.judgement) == "better"
    assert stops.change is not None
    assert stops.change.value == stops.change.low == stops.change.high == 0
    assert str(stops.judgement) == "in the noise"
    assert str(length.judgement) == "higher"
    # Pairs tell a difference that the two intervals alone hide.
    assert chrf.base is not None
    assert chrf.change.high - chrf.change.low < chrf.base.high - chrf.base.low + (
        chrf.tuned.high - chrf.tuned.low
    )


def test_other_prompts_are_not_paired() -> None:
    first, other = make_evaluation(), make_evaluation()
    elsewhere = [replace(reply, question="another") for reply in other.replies]
    assert paired(first, replace(other, replies=elsewhere)) == []
    assert paired(first, None) == []


def test_what_cannot_be_compared_is_compared_as_advised(runs: tuple[Path, Path]) -> None:
    with pytest.raises(ConfigError, match="1 cannot be compared; name 2 to 6 runs"):
        Comparison.read(runs[:1])
    with pytest.raises(ConfigError, match="a run is named twice; name each run once"):
        Comparison.read([*runs, runs[0]])
    assert len(Comparison.read(runs).runs) == 2
    other = shutil.copytree(runs[0], runs[0].parent / "second" / "keeper")
    names = [run.name for run in Comparison.read([runs[0], other]).runs]
    assert names == [f"{runs[0].parent.name}/keeper", "second/keeper"]


def test_the_page_in_a_browser(runs: tuple[Path, Path]) -> None:
    write_evaluation(runs[1], shift=0.2)
    file = runs[0].parent / "compare.html"
    file.write_text(Comparison.read(runs).render(), encoding="utf-8")
    with chromium() as browser:
        for width in (390, 1280):
            size = {"width": width, "height": 900}
            with opened(browser, file.as_uri(), offline=True, viewport=size) as page:
                assert page.evaluate("document.documentElement.scrollWidth") <= width
                assert "Difference to keeper" in page.inner_text("#paired")
                assert violations(page) == []


def test_runs_are_found_and_summarized(runs: tuple[Path, Path]) -> None:
    folder = runs[0].parent
    deep = shutil.copytree(runs[0], folder / "sweep" / "r8")
    (folder / "notes").mkdir()
    assert find_runs(folder) == [runs[1], runs[0], deep]
    assert find_runs(runs[0]) == [runs[0]]
    whole = summarize(runs[0])
    assert (whole.data, whole.base, whole.verdict) == ("rows.jsonl", "base", "took")
    assert (whole.step, whole.steps, whole.finished, whole.problem) == (12, 12, True, None)
    assert whole.before is not None
    assert whole.size > 10_000
    metrics = runs[1] / "metrics.jsonl"  # as of a run that was stopped before it logged a step
    metrics.write_text("".join(metrics.read_text().splitlines(keepends=True)[:1]))
    assert summarize(runs[1]).step == 12
    (runs[1] / "receipt.json").write_text("{")
    assert "receipt.json: the file is damaged" in str(summarize(runs[1]).problem)
    with pytest.raises(ConfigError, match="no such folder; `offbook train` makes a run"):
        find_runs(folder / "nothing")


def test_removing_a_run_leaves_what_others_put_there(runs: tuple[Path, Path]) -> None:
    run = RunDirectory(runs[0])
    write_report(run)
    mine = [runs[0] / name for name in ("corrections.jsonl", "exports/a/model.gguf", "adapter/b")]
    for path in mine:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
    left = run.remove()
    assert {path.name for path in left} == {"corrections.jsonl", "exports", "adapter"}
    files = [path for path in runs[0].rglob("*") if path.is_file()]
    assert sorted(files) == sorted(mine)
    with pytest.raises(CheckpointError, match="not a run directory"):
        run.remove()
    write_report(RunDirectory(runs[1]))
    assert RunDirectory(runs[1]).remove() == []
    assert not runs[1].exists()


def test_files_of_the_users_with_our_names_stay(runs: tuple[Path, Path]) -> None:
    mine = {"report.html": "<h1>mine</h1>", "evaluation.json": '{"mine": 1}'}
    for name, text in mine.items():
        (runs[0] / name).write_text(text)
    assert {path.name for path in RunDirectory(runs[0]).remove()} == mine.keys()
    assert {name: (runs[0] / name).read_text() for name in mine} == mine


def test_a_run_that_is_being_trained_is_not_removed(runs: tuple[Path, Path]) -> None:
    with (
        storage.lock(runs[0]),
        pytest.raises(ConfigError, match="another training run is writing here"),
    ):
        RunDirectory(runs[0]).remove()
    assert RunDirectory(runs[0]).finished
