"""Prompts that the context has room for are answered, by both models alike where they are one."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import LlamaForCausalLM

from offbook.data.messages import Conversation, Message
from offbook.evaluation.replies import listen, prompt_within
from offbook.evaluation.subject import Row, as_rows
from offbook.inference.pytorch import TorchEngine
from offbook.tokens.examples import tokenize
from offbook.tokens.template import ChatTemplate
from support.templates import talk


@pytest.fixture(scope="module")
def writer(tiny_base: Path, template: ChatTemplate) -> TorchEngine:
    return TorchEngine(LlamaForCausalLM.from_pretrained(tiny_base).eval(), template)


def rows_of(
    template: ChatTemplate, *conversations: Conversation, limit: int | None = None
) -> list[Row]:
    return as_rows(tokenize(conversations, template, limit), conversations)


@pytest.mark.parametrize("limit", [None, 120])
def test_a_prompt_is_that_of_its_example_or_the_newest_of_it(
    template: ChatTemplate, limit: int | None
) -> None:
    long = talk(*(f"some words {n}" for n in range(24)))
    row = rows_of(template, long, limit=limit)[-1]
    whole = prompt_within(template, row, None)
    assert whole == row.example.input_ids[: len(whole or [])].tolist()
    assert limit is None or len(whole or []) < limit
    short = prompt_within(template, row, 60)
    assert short
    assert len(short) <= 60
    kept = [message.content for message in long.messages[:-1]]
    assert short in [template.build_prompt(long.messages[k:-1]) for k in range(0, len(kept), 2)]


def test_prompts_without_room_are_counted(writer: TorchEngine, template: ChatTemplate) -> None:
    long = Conversation(
        (Message("user", "long " * 300), Message("assistant", "Aye.")), "rows.json:9"
    )
    held_out = rows_of(template, *(talk(f"Who is {n}?", "Aye.") for n in range(3)), long)
    heard = listen(writer, held_out, [], 9, 9, lambda what, done, total: None)
    assert (len(heard.replies), heard.unanswered) == (3, 1)
    assert heard.stops is not None
    assert heard.stops.tuned.n == 3
    none = listen(writer, held_out[-1:], [], 9, 9, lambda what, done, total: None)
    assert (none.replies, none.unanswered, none.voice) == ([], 1, None)


def test_an_adapter_that_changes_nothing_sounds_as_the_base_does(
    writer: TorchEngine, template: ChatTemplate
) -> None:
    """The engine has none: the two models are one."""
    held_out = rows_of(template, *(talk(f"Who is {n}?", f"Aye, {n} it is.") for n in range(16)))
    voice = listen(writer, held_out, [], 16, 16, lambda what, done, total: None).voice
    assert voice is not None
    for found in (voice.in_voice, voice.probability):
        assert found is not None
        assert found.change.low <= 0 <= found.change.high
        assert found.tuned == found.base
