"""`offbook settings`, and the page of the documentation that is generated with it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from offbook.cli import settings
from offbook.settings.config import Config, keys

Cli = Callable[..., tuple[int, str, str]]
PAGE = Path(__file__).parents[2] / "docs" / "settings.md"


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == settings.markdown(), "run `python docs/settings.py`"


def test_the_page_has_a_row_for_every_key_in_the_order_of_the_code() -> None:
    assert re.findall(r"^\| `([\w.]+)` \|", settings.markdown(), re.MULTILINE) == list(keys())


def test_without_a_key_all_settings_are_listed_with_their_default(cli: Cli) -> None:
    code, out, _ = cli("settings")
    assert code == 0
    assert re.findall(r"^  ((?:\w+\.)?\w+) ", out, re.MULTILINE) == list(keys())
    assert re.search(r"^  train\.batch_size +16 +Examples per optimizer step", out, re.MULTILINE)


def test_one_setting_is_shown_in_full(cli: Cli) -> None:
    assert cli("settings", "train.batch_size") == (
        0,
        "train.batch_size\n  integer, at least 1; default 16\n"
        "  Examples per optimizer step, over all devices.\n\n",
        "",
    )


def test_a_section_is_shown_in_full(cli: Cli) -> None:
    code, out, _ = cli("settings", "lora")
    assert code == 0
    shown = re.findall(r"^(\S+)$", out, re.MULTILINE)
    assert shown == [key for key in keys() if key.startswith("lora.")]


@pytest.mark.parametrize(
    ("key", "fix"),
    [
        ("train.batch_sise", 'did you mean "train.batch_size"?'),
        ("batch_size", 'did you mean "train.batch_size"?'),
        ("trian", 'did you mean "train"?'),
        ("x", "valid keys here: model, data, doctor, lora, train, output_dir"),
    ],
)
def test_an_unknown_setting_is_refused_with_a_suggestion(cli: Cli, key: str, fix: str) -> None:
    assert cli("settings", key) == (2, "", f'error: unknown setting "{key}"; {fix}\n')
    for name in re.findall(r'"(.*)"', fix) or fix.partition(": ")[2].split(", "):
        assert cli("settings", name)[0] == 0


@pytest.mark.parametrize(
    ("key", "kind", "default"),
    [
        ("model.precision", "`auto`, `bfloat16`, `float16` or `float32`", "auto"),
        ("data.input_separator", "text", '"\\n"'),
        ("data.ignore_keys", "list of texts", "[]"),
        ("lora.lora_dropout", "number, at least 0, less than 1", "0.1"),
        ("train.max_steps", "integer or null, at least 1", "null"),
        ("train.gradient_checkpointing", "true or false or `auto`", "auto"),
    ],
)
def test_types_and_defaults_are_words(key: str, kind: str, default: str) -> None:
    (found,) = [s for group in settings.describe() for s in group.settings if s.key == key]
    assert (found.kind, found.default) == (kind, default)


def test_a_default_is_written_as_a_file_would_set_it() -> None:
    shown = [s for group in settings.describe() for s in group.settings]
    assert Config.load(None, [f"{s.key}={s.default}" for s in shown]) == Config()
