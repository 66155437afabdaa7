"""`model.template`: a base without a chat template is trained, and its run keeps the template."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import pytest

from offbook.errors import ConfigError, ModelError
from offbook.inference.chat import Chat
from offbook.runs.directory import RunDirectory
from offbook.runs.trained import open_run
from offbook.settings.config import Config
from offbook.tokens.own_template import with_template_text
from offbook.tokens.template import ChatTemplate
from offbook.tokens.tokenizer import load_tokenizer
from offbook.training.train import train


@pytest.fixture
def bare_base(tiny_base: Path, tmp_path: Path) -> Path:
    """The tiny base without its chat template."""
    base = shutil.copytree(tiny_base, tmp_path / "bare")
    (base / "chat_template.jinja").unlink(missing_ok=True)
    config = json.loads((base / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    (base / "tokenizer_config.json").write_text(json.dumps(config))
    return base


@pytest.mark.parametrize("name", ["deepseek-llm", "vicuna"])
def test_the_templates_that_come_along_can_be_trained_on(bare_base: Path, name: str) -> None:
    text = with_template_text(Config.load(None, [f"model.template={name}"])).model.template
    template = ChatTemplate(load_tokenizer(bare_base, text))
    assert template.stop_id == template.tokenizer.eos_token_id


def test_a_base_without_a_template_is_trained_with_one(
    tiny_config: Callable[..., Config], bare_base: Path, tmp_path: Path
) -> None:
    file, run = tmp_path / "mine.jinja", tmp_path / "run"
    text = (files("offbook") / "templates" / "deepseek-llm.jinja").read_text()
    file.write_text(text)
    bare = tiny_config(f"model.base={bare_base}", "train.max_steps=6", f"output_dir={run}")
    with pytest.raises(ModelError, match=r"whose template is intact, or set model\.template"):
        train(bare)
    assert train(bare.override(f"model.template={file}"), share=0.5).steps == 5
    file.unlink()  # the run has its text
    assert train(Config.load(run / "config.yaml"), resume=True).finished
    assert RunDirectory(run).config().model.template == text
    assert open_run(run).template.tokenizer.chat_template == text
    assert isinstance(Chat.open(run).ask("who are you"), str)
    written = load_tokenizer(run / "adapter")  # so other programs find it, too
    assert written.chat_template == text


def test_what_is_no_template_is_named_as_advised(tmp_path: Path) -> None:
    plain = tmp_path / "plain.jinja"
    plain.write_text("no template")
    for setting, advice in (
        ("chat_ml", 'did you mean "chatml"'),
        ("no-such", "give a file, or one of chatml, deepseek-llm, vicuna"),
        (str(plain), "no chat template in Jinja; give one, as a text file"),
    ):
        with pytest.raises(ConfigError, match=advice):
            with_template_text(Config.load(None, [f"model.template={setting}"]))
    plain.write_text("{{ messages }}")
    config = with_template_text(Config.load(None, [f"model.template={plain}"]))
    assert config.model.template == "{{ messages }}"
    assert with_template_text(config) == config
