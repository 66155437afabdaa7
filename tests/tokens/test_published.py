"""Published templates train on each reply of a row once, and whole, whatever it says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offbook.data.messages import Conversation, Message
from offbook.errors import DataError
from offbook.tokens.examples import supervised_spans, tokenize
from offbook.tokens.template import ChatTemplate
from support.templates import FORMATS, Format, talk
from support.tiny import make_tokenizer

WORDS = ("Yes.", "one two", "臣妾", " ", "\n\n", "🙂", "  ", "x")
BLOCKS = ("<think>\n\n</think>\n\n", "<think>\nHe asks.\n</think>\n\n", "<think>Hm</think>")


def texts(markers: tuple[str, ...], reasons: bool) -> st.SearchStrategy[str]:
    """Text that may spell control tokens and begin with reasoning."""
    words = st.lists(st.sampled_from((*WORDS, *markers)), min_size=1, max_size=5).map("".join)
    words = words.filter(lambda text: bool(text.strip()))
    blocks = st.sampled_from(("", "", *BLOCKS)) if reasons else st.just("")
    return st.tuples(blocks, words).map("".join)


def readings(reply: str) -> tuple[str, str]:
    """A reply without white space; the second also without an empty block of reasoning."""
    text = re.sub(r"\s", "", reply)
    return text, text.removeprefix("<think></think>")


@pytest.fixture(params=FORMATS)
def published(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[ChatTemplate, Format]:
    form = FORMATS[request.param]
    tokenizer = make_tokenizer(
        tmp_path, form.template, form.bos, form.eos, form.special, form.added
    )
    return ChatTemplate(tokenizer), form


def test_every_reply_is_supervised_once_and_whole(
    published: tuple[ChatTemplate, Format],
) -> None:
    template, form = published
    markers = (*form.special, *form.added, form.eos, "<think>", "</think>")

    @settings(max_examples=50, derandomize=True, database=None, deadline=None)
    @given(
        st.lists(st.tuples(texts(markers, False), texts(markers, True)), min_size=1, max_size=4),
        st.booleans(),
        st.sampled_from((None, 400)),
    )
    def holds(turns: list[tuple[str, str]], system: bool, limit: int | None) -> None:
        row = talk(*(text for pair in turns for text in pair))
        if system:
            opening = Message("system", "Be brief.")
            row = Conversation((opening, *row.messages), row.source)
        (built,) = template.build_examples([row], limit)  # none of these rows has to be refused
        found = []
        for example in built.examples:
            assert limit is None or len(example) <= limit
            for start, end in supervised_spans(example.labels):
                ids = example.input_ids[start:end].tolist()
                assert ids[-1] == template.stop_id
                assert template.stop_id not in ids[:-1]
                found.append(template.parse_reply(ids))
        for text, (_, reply) in zip(found, turns, strict=True):
            assert readings(text)[0] in readings(reply)
        if not template.traits.opening:  # it begins a block of reasoning in its own way
            changed = [
                one
                for one, (_, reply) in zip(found, turns, strict=True)
                if one not in (reply, reply.removeprefix("<think>\n\n</think>\n\n"))
            ]
            assert len(changed) <= built.trimmed

    holds()


def test_a_single_reply_follows_exactly_the_prompt_of_the_chat(
    published: tuple[ChatTemplate, Format],
) -> None:
    template, form = published

    @settings(max_examples=20, derandomize=True, database=None, deadline=None)
    @given(texts((*form.special, *form.added), False), texts(form.added, True))
    def holds(question: str, reply: str) -> None:
        row = talk(question, reply)
        example = template.build_example(row)
        ((start, _),) = supervised_spans(example.labels)
        assert template.build_prompt(row.messages[:1]) == example.input_ids[:start].tolist()

    holds()


def test_what_a_row_spells_is_no_control_token(published: tuple[ChatTemplate, Format]) -> None:
    template, form = published
    spelled = "say " + " and ".join((*form.special, *form.added, form.eos)) + " please"
    plain, row = talk("say it please", "Yes it is"), talk(spelled, "Yes " + spelled)
    counts = [
        template.encoder.control_in(template.build_example(r).input_ids.tolist())
        for r in (plain, row)
    ]
    assert counts[0] == counts[1]


def make(name: str, folder: Path, source: str | None = None) -> ChatTemplate:
    form = FORMATS[name]
    jinja = source or form.template
    return ChatTemplate(make_tokenizer(folder, jinja, form.bos, form.eos, form.special, form.added))


@pytest.mark.parametrize("name", ["qwen3", "r1-january", "r1-think"])
def test_reasoning_is_trained_on_after_the_prompt_that_chat_gives(
    name: str, tmp_path: Path
) -> None:
    template = make(name, tmp_path)
    reply = "<think>\nHe asks.\n</think>\n\nAye."
    row = talk("Well?", reply, "And?", reply)
    examples = tokenize([row], template)
    assert (len(examples), examples.replies, examples.divided) == (2, 2, ())
    for k, example in zip((1, 3), examples, strict=True):
        ((start, end),) = supervised_spans(example.labels)
        ids = example.input_ids.tolist()
        assert template.build_prompt(row.messages[:k]) == ids[:start]
        assert template.parse_reply(ids[start:end]) == reply
        assert template.encoder.control["</think>"] in ids[start:end]


def test_a_prompt_that_begins_reasoning_is_followed_by_an_empty_block(tmp_path: Path) -> None:
    template = make("r1-think", tmp_path)
    example = template.build_example(talk("Well?", "Aye."))
    assert template.tokenizer.decode(example.input_ids.tolist()).endswith(
        "<｜Assistant｜><think>\n\n</think>\n\nAye.<｜end▁of▁sentence｜>"
    )


def test_a_reply_that_the_template_changes_is_named(tmp_path: Path) -> None:
    changes = FORMATS["chatml"].template.replace(
        "message['content'] +", "message['content'] | replace('damn', 'darn') +"
    )
    template = make("chatml", tmp_path, changes)
    with pytest.raises(DataError) as caught:
        template.build_examples([talk("Well?", "Yes.", "And?", "Well, damn.")])
    assert str(caught.value) == (
        "rows.json:7 (reply 2 of 2): the chat template writes something else than its reply; "
        "change the reply, or train a base whose template keeps it"
    )


def test_trimmed_replies_are_counted_in_one_line(tmp_path: Path) -> None:
    rows = [talk("Well?", " Yes.\n"), talk("Well?", "Yes."), talk("And?", "No. ")]
    assert tokenize(rows, make("llama3", tmp_path)).notices(384) == [
        "the chat template removes outer white space from 2 replies"
    ]
