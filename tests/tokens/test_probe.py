"""What a template does is found by rendering with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from offbook.tokens.encoding import TextEncoder
from offbook.tokens.probe import TemplateTraits, probe
from offbook.tokens.render import Renderer
from support.templates import PUBLISHED, REWRITING
from support.tiny import make_tokenizer

# name: takes system text, lead, tail, stop token
TRAITS = {
    "deepseek": (True, " ", "", "</s>"),
    "llama3": (True, "", "", "<|eot_id|>"),
    "qwen": (True, "", "", "<|im_end|>"),
    "mistral": (False, " ", "", "</s>"),
    "gemma": (False, "", "", "<end_of_turn>"),
    "llama2": (True, " ", " ", "</s>"),
}


def traits_of(folder: Path, jinja: str, bos: str | None, eos: str, *more: str) -> TemplateTraits:
    tokenizer = make_tokenizer(folder, jinja, bos, eos, more)
    return probe(Renderer(tokenizer), TextEncoder(tokenizer))


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_traits_of_published_templates(name: str, tmp_path: Path) -> None:
    jinja, bos, eos, more, _ = PUBLISHED[name]
    traits = traits_of(tmp_path, jinja, bos, eos, *more)
    takes_system, lead, tail, stop = TRAITS[name]
    control = [token for token in (bos, eos, *more) if token]
    assert traits == TemplateTraits(
        takes_system=takes_system,
        keeps_turns=True,
        opening="",
        writes_replies=True,
        reply_lead=lead,
        reply_tail=tail,
        ends_replies=True,
        stop_text=stop,
        stop_id=control.index(stop),
    )


def test_a_template_that_rewrites_turns_is_detected(tmp_path: Path) -> None:
    traits = traits_of(tmp_path, REWRITING, None, "<|im_end|>", "<|im_start|>")
    assert not traits.keeps_turns
    assert traits.reply_lead == "<think>\n\n</think>\n\n"
