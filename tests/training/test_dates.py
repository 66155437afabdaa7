"""A chat template that prints the date prints that of the run's first day, for ever."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import date
from pathlib import Path

import pytest

from offbook.inference.chat import Chat
from offbook.runs.directory import RunDirectory
from offbook.runs.receipt import Receipt
from offbook.runs.trained import open_run
from offbook.settings.config import Config
from offbook.training.inputs import gather
from offbook.training.train import train
from support.runs import Listener, StopAfter, curve, hashes
from support.templates import LLAMA3_CONTROL, LLAMA32, user
from support.tiny import make_base, make_tokenizer

MakeConfig = Callable[..., Config]
LONG_AGO = date(2020, 2, 29)


@pytest.fixture(scope="module")
def dated_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model whose template prints the date."""
    folder = tmp_path_factory.mktemp("dated")
    return make_base(folder, tokenizer=make_tokenizer(folder, LLAMA32, *LLAMA3_CONTROL))


@pytest.fixture
def config(tiny_config: MakeConfig, dated_base: Path) -> MakeConfig:
    return lambda *settings: tiny_config(f"model.base={dated_base}", *settings)


def begun(config: Config, day: date | None) -> Path:
    """A run that was begun on this day; None as by a version that did not record it."""
    run = train(config, should_stop=lambda: True).run
    file = RunDirectory(run).receipt_file
    values = json.loads(file.read_text(encoding="utf-8"))
    values.pop("date")
    file.write_text(json.dumps(values | ({"date": day.isoformat()} if day else {})))
    return run


def test_the_date_is_in_the_receipt_and_announced_once(config: MakeConfig) -> None:
    monitor = Listener()
    run = train(config("train.max_steps=1"), monitor=monitor).run
    receipt = RunDirectory(run).receipt()
    assert receipt.date == date.today()
    assert [text for text in monitor.heard if "the date" in text] == [
        f"the chat template prints the date; a run keeps its first day, {receipt.date}, "
        "when it is resumed and in chats"
    ]


def test_a_template_without_a_date_leaves_the_receipt_as_it_was(tiny_config: MakeConfig) -> None:
    run = train(tiny_config("train.max_steps=1")).run
    assert "date" not in json.loads(RunDirectory(run).receipt_file.read_text(encoding="utf-8"))


def test_rows_are_rendered_on_the_day_of_the_receipt(config: MakeConfig) -> None:
    inputs = gather(config(), Listener(), start=Receipt(date=LONG_AGO))
    assert inputs.template.date == LONG_AGO
    for example in inputs.training:
        assert "29 Feb 2020" in inputs.template.tokenizer.decode(example.input_ids.tolist())


def test_a_run_resumes_to_the_same_bits_on_another_day(config: MakeConfig, tmp_path: Path) -> None:
    straight, stopped, today = (config(f"output_dir={tmp_path / name}") for name in "abc")
    begun(straight, LONG_AGO)
    train(straight, resume=True)
    begun(stopped, LONG_AGO)
    stop = StopAfter(2)
    train(stopped, resume=True, should_stop=stop.should_stop, monitor=stop)
    heard = Listener()
    train(stopped, resume=True, monitor=heard)
    train(today)
    assert hashes(tmp_path / "a") == hashes(tmp_path / "b") != hashes(tmp_path / "c")
    assert curve(tmp_path / "a") == curve(tmp_path / "b")
    assert not [text for text in heard.heard if "last bits" in text]
    assert RunDirectory(tmp_path / "b").receipt().date == LONG_AGO


def test_a_chat_has_the_prompt_that_was_trained_on(config: MakeConfig) -> None:
    run = begun(config(), LONG_AGO)
    train(config(), resume=True)
    chat = Chat.open(run)
    prompt = chat.template.build_prompt([user("hello")])
    assert "29 Feb 2020" in chat.template.tokenizer.decode(prompt)


def test_a_run_without_a_recorded_date_says_so(config: MakeConfig) -> None:
    run = begun(config("train.max_steps=1"), None)
    resumed, opened = Listener(), Listener()
    train(config("train.max_steps=1"), resume=True, monitor=resumed)
    open_run(run, opened.announce)
    for heard in (resumed.heard, opened.heard):
        assert sum("does not say which one it was trained with" in text for text in heard) == 1
