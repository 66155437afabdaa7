"""The report of a run: what is in it, and the page in a browser without a network."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from string import Formatter
from typing import Any

import pytest

from offbook.doctor.findings import KINDS, Finding, Hit
from offbook.errors import CheckpointError, ConfigError
from offbook.evaluation.record import Evaluation
from offbook.evaluation.saved import hash_adapter
from offbook.report.contents import Contents
from offbook.report.findings import CHINESE, said
from offbook.report.page import SECTIONS, parts, write_report
from offbook.report.rows import TrainingRows, read_rows
from offbook.report.words import Text
from offbook.runs.directory import RunDirectory
from offbook.settings.config import Config
from offbook.training.train import train
from support.browsers import chromium, opened, violations
from support.evaluations import EVIL, make_evaluation
from support.exports import train_run
from support.runs import stop_after


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as browser:
        yield browser


class Elements(HTMLParser):
    """The elements of a page, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def written(run: Path) -> Elements:
    return Elements(write_report(RunDirectory(run)).read_text(encoding="utf-8"))


def shown(run: Path) -> dict[str, str]:
    """The text of each section."""
    made = parts(Contents.read(RunDirectory(run)))
    return {name: Elements(str(html)).text for name, html in made.items()}


def test_everything_in_the_run_is_in_the_report(runs: tuple[Path, Path]) -> None:
    sections = shown(runs[0])
    assert {name for name in SECTIONS if not sections[name]} == {"status"}
    assert "It took" in sections["verdict"]
    assert sections["verdict"].index("It took") < sections["verdict"].index("It forgot")
    assert "lower train.learning_rate, or use the adapter at strength 0.75" in sections["verdict"]
    for name in ("training", "Learning rate", "Gradient norm", "Examples per second"):
        assert name in sections["curves"]
    for name in ("learn the lines", "sound like", "stay in role", "stop?", "copy?", "forget?"):
        assert name in sections["scorecard"]
    assert "−0.880" in sections["scorecard"]
    assert "Best trade-off: 0.75" in sections["strength"]
    assert "contradicts rows.jsonl:7" in sections["ledger"]
    assert "rows equal to an earlier one: " in sections["doctor"]
    assert "who·are·you" in sections["tokens"].replace("\n", "")
    receipt = RunDirectory(runs[0]).receipt()
    for value in (*receipt.data.values(), *receipt.base.values(), *receipt.versions.values()):
        assert value in sections["receipt"]


def test_each_kind_of_finding_has_a_chinese_text_with_the_same_values() -> None:
    def names(text: str) -> set[str]:
        return {name for _, name, _, _ in Formatter().parse(text) if name}

    assert {*CHINESE} == {*KINDS}
    for kind, (what, todo) in CHINESE.items():
        assert names(what) == names(KINDS[kind].what)
        assert names(todo) <= names(KINDS[kind].todo)
    found = Finding("duplicate", 2, (Hit(1, "a/rows.json:3", like="a/rows.json:1"),))
    assert said(found).what == Text("rows equal to an earlier one: 2", "与之前的行相同的行：2")
    assert said(found).places == "rows.json:3 (rows.json:1), and 1 more"


def test_a_run_that_was_not_evaluated_says_how_to(runs: tuple[Path, Path]) -> None:
    sections = shown(runs[1])
    assert "Not evaluated yet" in sections["verdict"]
    assert f"offbook eval {runs[1]}" in sections["verdict"]
    assert re.search(r"Validation loss \d\.\d+ before training", sections["verdict"])
    absent = {name for name in SECTIONS if not sections[name]}
    assert absent == {"status", "scorecard", "replies", "strength", "ledger"}


def test_parts_that_were_not_measured_are_left_out(runs: tuple[Path, Path]) -> None:
    whole = make_evaluation()
    least = Evaluation(
        findings=whole.findings[:1],
        subject="step 4",
        step=4,
        strength=1.0,
        lines=whole.lines,
        forgetting=whole.forgetting,
        short=True,
        adapter=hash_adapter(runs[1] / "checkpoints" / "step-4"),
    )
    (runs[1] / "evaluation.json").write_bytes(least.to_json())
    sections = shown(runs[1])
    assert "the checkpoint of step 4" in sections["verdict"]
    assert "short form" in sections["verdict"]
    assert "Did it forget?" in sections["scorecard"]
    assert "Does it stop?" not in sections["scorecard"]
    assert not any(sections[name] for name in ("replies", "strength", "ledger"))


def test_a_damaged_evaluation_is_named_and_damaged_metrics_are_an_error(
    runs: tuple[Path, Path],
) -> None:
    run = runs[0]
    (run / "evaluation.json").write_text("{")
    assert "evaluation.json: the file is damaged" in shown(run)["verdict"]
    lines = (run / "metrics.jsonl").read_text().splitlines()
    (run / "metrics.jsonl").write_text("\n".join([lines[0], "{", *lines[1:]]))
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl:2: the line is damaged"):
        write_report(RunDirectory(run))


def test_texts_of_models_and_rows_are_never_markup(runs: tuple[Path, Path]) -> None:
    page = written(runs[0])
    scripts = [attributes for tag, attributes in page.tags if tag == "script"]
    assert scripts == [{}]
    assert "img" not in {tag for tag, _ in page.tags}
    assert page.text.count(EVIL) >= 2
    assert "\\x1b[31m\\x202e" in page.text


def test_the_page_asks_for_nothing_and_allows_nothing(runs: tuple[Path, Path]) -> None:
    page = written(runs[0])
    metas = [attributes for tag, attributes in page.tags if tag == "meta"]
    (policy,) = [m["content"] for m in metas if m.get("http-equiv") == "Content-Security-Policy"]
    assert policy
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy
    assert "connect-src" not in policy
    for tag, attributes in page.tags:
        assert not any(name.startswith("on") or name == "style" for name in attributes), tag
        for name in ("src", "href"):
            target = attributes.get(name) or "#"
            assert target.startswith(("#", "data:image/svg+xml,"))


def test_each_chart_has_a_name_a_description_and_a_table(runs: tuple[Path, Path]) -> None:
    page = written(runs[0])
    ids = {attributes.get("id") for _, attributes in page.tags}
    charts = [a for tag, a in page.tags if tag == "svg" and a.get("role") == "img"]
    for attributes in charts:
        assert {*str(attributes["aria-labelledby"]).split()} <= ids
    figures = sum(tag == "figure" for tag, _ in page.tags)
    tables = sum(tag == "table" and a.get("class") == "plain" for tag, a in page.tags)
    wide = sum("wide" in str(a["class"]) for a in charts)  # they are drawn for phones, too
    assert figures == tables == len(charts) - wide
    assert wide == 2
    assert figures >= 6
    bars = [a for tag, a in page.tags if tag == "svg" and a.get("role") != "img"]
    assert all(attributes["aria-hidden"] == "true" for attributes in bars)


def test_the_command_of_the_receipt_trains_the_same_adapter(runs: tuple[Path, Path]) -> None:
    command = Contents.read(RunDirectory(runs[0])).again
    program, name, file, *settings = shlex.split(command)
    assert (program, name) == ("offbook", "train")
    again = train(Config.load(file, settings)).run
    assert again == runs[0].with_name("keeper-again")
    weights = "adapter/adapter_model.safetensors"
    assert (again / weights).read_bytes() == (runs[0] / weights).read_bytes()


def test_a_run_that_is_not_finished_shows_how_far_it_is(runs: tuple[Path, Path]) -> None:
    settings = [f"output_dir={runs[0].parent / 'part'}", "train.save_steps=3"]
    config = Config.load(runs[0] / "config.yaml", settings)
    train(config, should_stop=stop_after(14))
    status = shown(runs[0].parent / "part")["status"]
    assert re.search(r"Step \d+ of 12", status)
    assert f"offbook train {runs[0].parent / 'part'} --resume" in status


def test_rows_that_are_gone_are_named(runs: tuple[Path, Path], tmp_path: Path) -> None:
    config = (runs[1] / "config.yaml").read_text(encoding="utf-8")
    rows = re.findall(r"train: (\S+rows.jsonl)", config)[0]
    (runs[1] / "config.yaml").write_text(config.replace(rows, str(tmp_path / "gone.jsonl")))
    receipt = json.loads((runs[1] / "receipt.json").read_text())
    receipt["places"].pop("data.train")
    (runs[1] / "receipt.json").write_text(json.dumps(receipt))
    sections = shown(runs[1])
    assert (
        f"The rows are not read here: the data is not at {tmp_path / 'gone.jsonl'}."
        in (sections["doctor"])
    )
    assert not sections["tokens"]


def test_rows_beyond_the_most_are_told(
    runs: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = RunDirectory(runs[0]).config().model.base
    (tmp_path / "other").mkdir()
    repeated = f"data.train=[{{data: {tmp_path / 'other' / 'rows.jsonl'}, repeat: 2}}]"
    other = train_run(tmp_path / "other", Path(base), repeated, "train.max_steps=2")
    for path in (runs[0], other.path):
        for most in (28, 27):  # there are 28, in one of the runs each twice
            monkeypatch.setattr("offbook.report.rows.MOST_ROWS", most)
            found = read_rows(RunDirectory(path))
            assert isinstance(found, TrainingRows)
            assert (found.counts["rows"], found.limited) == (most, most < 28)


def test_a_file_of_the_users_is_not_replaced(runs: tuple[Path, Path]) -> None:
    run = RunDirectory(runs[0])
    mine = runs[0] / "report.html"
    mine.write_text("<h1>mine</h1>")
    with pytest.raises(ConfigError, match="not a page that offbook wrote; name another file"):
        write_report(run)
    assert mine.read_text() == "<h1>mine</h1>"
    other = write_report(run, runs[0].parent / "deep" / "other.html")
    assert write_report(run, other) == other


# In a browser.


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_keeps_anybody_out(
    browser: Any, runs: tuple[Path, Path], scheme: str, width: int
) -> None:
    url = write_report(RunDirectory(runs[0])).as_uri()
    size = {"width": width, "height": 900}
    with opened(browser, url, offline=True, viewport=size, color_scheme=scheme) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.title() == "keeper · offbook"
        assert EVIL in page.inner_text("#replies")
        assert violations(page) == []
        page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert violations(page) == []


def test_the_page_speaks_both_languages(browser: Any, runs: tuple[Path, Path]) -> None:
    url = write_report(RunDirectory(runs[0])).as_uri()
    with opened(browser, url, offline=True, locale="zh-CN") as page:
        assert page.inner_text("#verdict h3 >> nth=0") == "学会了"
        assert page.get_attribute("html", "lang") == "zh-CN"
        assert "损失" in page.text_content("#curves svg title >> nth=0")
        page.click("#language")
        assert page.inner_text("#verdict h3 >> nth=0") == "It took"
        assert page.get_attribute("html", "lang") == "en"
        page.reload()
        assert page.inner_text("#verdict h3 >> nth=0") == "It took"


def test_the_page_prints(browser: Any, runs: tuple[Path, Path], tmp_path: Path) -> None:
    url = write_report(RunDirectory(runs[0])).as_uri()
    with opened(browser, url, offline=True, color_scheme="dark") as page:
        page.emulate_media(media="print")
        assert not page.is_visible("nav")
        colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert colour == "rgb(255, 255, 255)"
        page.pdf(path=tmp_path / "report.pdf")
    assert (tmp_path / "report.pdf").stat().st_size > 10_000
