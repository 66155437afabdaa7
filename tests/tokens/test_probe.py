"""What a template does is found by rendering with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from offbook.tokens.encoding import TextEncoder
from offbook.tokens.probe import DAYS, TURNS, TemplateTraits, _prints_date, probe
from offbook.tokens.render import Renderer
from support.templates import LLAMA3, LLAMA3_CONTROL, PUBLISHED, REWRITING
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


PRINTED = "{{ strftime_now('%s') }}"
# Where a template may print the date, as a part of LLAMA3.
PLACES = {
    "at the beginning": "{{ bos_token }}%s",
    "with system text": "{{ bos_token }}{%% if messages[0]['role'] == 'system' %%}%s{%% endif %%}",
    "without it": "{{ bos_token }}{%% if messages[0]['role'] != 'system' %%}%s{%% endif %%}",
    "in a prompt": "{{ bos_token }}{%% if add_generation_prompt %%}%s{%% endif %%}",
    "after a turn": "{{ bos_token }}{%% if messages | length > 2 %%}%s{%% endif %%}",
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("form", ["%d %b %Y", "%Y-%m-%d", "%A", "%j", "%B", "%x"])
def test_a_template_that_prints_the_date_is_detected(place: str, form: str, tmp_path: Path) -> None:
    jinja = LLAMA3.replace("{{ bos_token }}", PLACES[place] % (PRINTED % form))
    tokenizer = make_tokenizer(tmp_path, jinja, *LLAMA3_CONTROL)
    first, second = (Renderer(tokenizer, day) for day in DAYS)
    assert _prints_date(first)
    assert first.render(TURNS, True) == Renderer(tokenizer, DAYS[0]).render(TURNS, True)
    assert first.on(DAYS[1]).render(TURNS, True) == second.render(TURNS, True)


@pytest.mark.parametrize("jinja", ["{% set today = strftime_now('%d %b %Y') %}", "{{ 'today' }}"])
def test_a_date_that_is_not_printed_does_not_count(jinja: str, tmp_path: Path) -> None:
    tokenizer = make_tokenizer(tmp_path, jinja + LLAMA3, *LLAMA3_CONTROL)
    assert not _prints_date(Renderer(tokenizer))


def test_the_clock_stands_still(tmp_path: Path) -> None:
    jinja = LLAMA3.replace("{{ bos_token }}", "{{ strftime_now('%Y-%m-%d %H:%M:%S.%f') }}")
    renderer = Renderer(make_tokenizer(tmp_path, jinja, *LLAMA3_CONTROL), DAYS[0])
    assert renderer.render(TURNS).startswith("2001-02-03 00:00:00.000000<")
