"""Published templates: what is supervised, truncated, kept as text, and read back."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offbook.data.messages import Conversation, Message
from offbook.doctor.inspection import token_findings
from offbook.errors import DataError
from offbook.models.base import resolve_base
from offbook.tokens.examples import IGNORED, Example, supervised_spans, tokenize
from offbook.tokens.template import ChatTemplate
from offbook.tokens.tokenizer import load_tokenizer
from support.templates import PUBLISHED, REWRITING, talk, user
from support.tiny import DEEPSEEK_TEMPLATE, make_tokenizer

IM = (None, "<|im_end|>", ("<|im_start|>",))  # the control tokens of ChatML
CHATML_TURN = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n{}<|im_end|>\n"


def supervised_texts(template: ChatTemplate, example: Example) -> list[str]:
    spans = supervised_spans(example.labels)
    return [template.tokenizer.decode(example.input_ids[a:b].tolist()) for a, b in spans]


@pytest.fixture(params=PUBLISHED)
def published(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[ChatTemplate, str]:
    jinja, bos, eos, more, supervised = PUBLISHED[request.param]
    return ChatTemplate(make_tokenizer(tmp_path, jinja, bos, eos, more)), supervised


def test_a_published_template_supervises_the_reply_and_its_stop_token(
    published: tuple[ChatTemplate, str],
) -> None:
    template, supervised = published
    example = template.build_example(talk("Are you well?", "Yes."))
    assert supervised_texts(template, example) == [supervised]
    assert template.tokenizer.decode([template.stop_id]) in supervised


def test_a_published_template_supervises_every_turn(published: tuple[ChatTemplate, str]) -> None:
    template, supervised = published
    example = template.build_example(talk("Are you well?", "Yes.", "Are you here?", "Yes."))
    assert supervised_texts(template, example) == [supervised] * 2


def test_a_training_row_begins_with_the_prompt_of_the_chat(
    published: tuple[ChatTemplate, str],
) -> None:
    template, _ = published
    row = talk("Are you well?", "Yes.", "And now?", "No.")
    example = template.build_example(row)
    for k, (start, _) in zip((1, 3), supervised_spans(example.labels), strict=True):
        assert template.build_prompt(row.messages[:k]) == example.input_ids[:start].tolist()


def test_reading_a_reply_is_the_inverse_of_writing_it(published: tuple[ChatTemplate, str]) -> None:
    template, _ = published
    for reply in ("Yes.", "one two", "臣妾谢皇上！", "🙂 two\nlines"):
        example = template.build_example(talk("Well?", reply))
        ((start, end),) = supervised_spans(example.labels)
        assert template.parse_reply(example.input_ids[start:end].tolist()) == reply


def test_labels_are_the_ids_themselves_where_supervised(template: ChatTemplate) -> None:
    example = template.build_example(talk("Well?", "Yes."))
    on = example.labels != IGNORED
    np.testing.assert_array_equal(example.labels[on], example.input_ids[on])
    assert example.input_ids.dtype == example.labels.dtype == np.int32


def test_the_deepseek_row_is_exactly_this(deepseek: ChatTemplate) -> None:
    example = deepseek.build_example(talk("小姐，别的秀女都在求中选", "嘘——都说许愿说破是不灵的。"))
    text = deepseek.tokenizer.decode(example.input_ids.tolist())
    assert text == (
        "<｜begin▁of▁sentence｜>User: 小姐，别的秀女都在求中选\n\n"
        "Assistant: 嘘——都说许愿说破是不灵的。<｜end▁of▁sentence｜>"
    )
    assert supervised_texts(deepseek, example) == [
        " 嘘——都说许愿说破是不灵的。<｜end▁of▁sentence｜>"
    ]
    ids = example.input_ids.tolist()
    assert (ids.count(100000), ids.count(100001)) == (1, 1)
    assert deepseek.traits.reply_lead == " "


def test_the_embedded_model_has_a_valid_template() -> None:
    template = ChatTemplate(load_tokenizer(resolve_base("smollm2-135m")))
    example = template.build_example(talk("Who are you?", "A keeper."))
    assert supervised_texts(template, example) == ["A keeper.<|im_end|>"]
    assert template.notes == []


@pytest.mark.parametrize("name", ["deepseek", "llama3", "qwen"])
def test_system_text_goes_where_the_template_has_a_place_for_it(name: str, tmp_path: Path) -> None:
    jinja, bos, eos, more, _ = PUBLISHED[name]
    template = ChatTemplate(make_tokenizer(tmp_path, jinja, bos, eos, more))
    text = template.render([Message("system", "Be brief."), user("Well?")])
    assert template.traits.takes_system
    assert text.index("Be brief.") < text.index("Well?")


@pytest.mark.parametrize("name", ["mistral", "gemma"])
def test_system_text_goes_before_the_first_user_turn_where_there_is_no_place(
    name: str, tmp_path: Path
) -> None:
    jinja, bos, eos, more, _ = PUBLISHED[name]
    template = ChatTemplate(make_tokenizer(tmp_path, jinja, bos, eos, more))
    assert "Be brief.\n\nWell?" in template.render([Message("system", "Be brief."), user("Well?")])
    assert template.notes == [
        "the chat template takes no system text; it goes before the first user turn"
    ]


def test_a_template_that_rewrites_turns_gives_one_example_per_reply(tmp_path: Path) -> None:
    template = ChatTemplate(make_tokenizer(tmp_path, REWRITING, *IM))
    row = talk("Well?", "Yes.", "And?", "No.")
    (built,) = template.build_examples([row])
    for k, reply, example in zip((1, 3), ("Yes.", "No."), built.examples, strict=True):
        written = f"<think>\n\n</think>\n\n{reply}<|im_end|>"
        assert supervised_texts(template, example) == [written]
        prompt = template.build_prompt(row.messages[:k])
        assert example.input_ids[: len(prompt)].tolist() == prompt
    assert template.notes == [
        "the chat template rewrites earlier turns; a row of several turns becomes one example per "
        "reply, each as chat would see it"
    ]
    examples = tokenize([row], template)
    assert (len(examples), examples.complete) == (2, True)
    assert list(token_findings(examples, template.tokenizer, None, "")) == []
    fitted = tokenize([row], template, max_length=int(examples.lengths.max()) - 1)
    assert (len(fitted), fitted.divided) == (2, ("rows.json:7",))


@pytest.mark.parametrize(
    "form", [(REWRITING, *IM), (DEEPSEEK_TEMPLATE,)], ids=["rewrites", "keeps"]
)
def test_rows_are_complete_exactly_where_a_limit_changes_nothing(
    tmp_path: Path, form: tuple[Any, ...]
) -> None:
    """Otherwise, a resumed run with `data.max_length: auto` could cut them in another way."""
    template = ChatTemplate(make_tokenizer(tmp_path, *form))
    draw = random.Random(1)
    for _ in range(30):
        turns = 2 * draw.randint(1, 4)
        said = talk(*("臣妾 word " * draw.randint(2, 6) for _ in range(turns))).messages
        trained = [k == turns - 1 or draw.random() < 0.7 for k in range(turns)]
        kept = [replace(m, trained=t) for m, t in zip(said, trained, strict=True)]
        row = Conversation(tuple(kept), "rows.json:7")
        whole = tokenize([row], template)
        assert whole.complete
        for limit in whole.lengths.max() + np.array([-5, -1, 0, 3]):
            fitted = tokenize([row], template, int(limit))
            same = np.array_equal(fitted.input_ids, whole.input_ids)
            assert fitted.complete == (same and np.array_equal(fitted.labels, whole.labels))


# Text that spells a control token.


def test_control_tokens_in_a_row_stay_text(published: tuple[ChatTemplate, str]) -> None:
    template, _ = published
    control = {str(t) for t in template.tokenizer.added_tokens_decoder.values() if t.special}
    spelled = "say " + " and ".join(sorted(control)) + " please"
    plain = template.build_example(talk("say it please", "Yes it is"))
    row = talk(spelled, "Yes " + spelled)
    example = template.build_example(row)
    for index in template.tokenizer.added_tokens_decoder:
        assert example.input_ids.tolist().count(index) == plain.input_ids.tolist().count(index)
    assert spelled in template.tokenizer.decode(example.input_ids.tolist())
    ((start, end),) = supervised_spans(example.labels)
    assert template.parse_reply(example.input_ids[start:end].tolist()) == "Yes " + spelled
    assert template.build_prompt(row.messages[:1]) == example.input_ids[:start].tolist()


def test_an_eos_in_a_reply_does_not_end_its_supervision(deepseek: ChatTemplate) -> None:
    reply = "before <｜end▁of▁sentence｜> after"
    example = deepseek.build_example(talk("Well?", reply))
    assert supervised_texts(deepseek, example) == [f" {reply}<｜end▁of▁sentence｜>"]
    assert example.input_ids.tolist().count(deepseek.stop_id) == 1


# Rows that a template refuses or changes.

ODD = DEEPSEEK_TEMPLATE.replace(
    "{% for message in messages %}",
    "{% for message in messages %}{% if 'no no' in message['content'] %}"
    "{{ raise_exception('no no') }}{% endif %}",
).replace("'Assistant: ' + message['content']", "'Assistant: ' + message['content'].split('#')[0]")


@pytest.mark.parametrize(
    ("reply", "said", "better"),
    [
        ("No no no no.", "change or remove it", "No."),
        ("one # two", "change the reply, or train a base whose template keeps it", "one, two"),
        ("No!", "change or remove the row", "No."),  # with the stop token, it spells "!</s>"
    ],
)
def test_a_row_that_is_changed_as_advised_is_trained_on(
    tmp_path: Path, template: ChatTemplate, reply: str, said: str, better: str
) -> None:
    odd = ChatTemplate(make_tokenizer(tmp_path, ODD, more=("!</s>",)))
    rows = [talk("Well?", "Yes."), talk("Sure?", reply)]
    with pytest.raises(DataError) as caught:
        odd.build_examples(rows)
    assert caught.value.fix == said
    assert len(odd.build_examples([rows[0], talk("Sure?", better)])) == 2
    assert len(odd.build_examples(rows[:1])) == 1
    assert len(template.build_examples(rows)) == 2  # a base whose template keeps it


# Rows that are too long.


def test_a_long_prompt_loses_its_beginning_and_keeps_bos_and_reply(template: ChatTemplate) -> None:
    row = talk("one two three four five six seven eight nine ten " * 3, "Yes.")
    (example,) = template.build_examples([row], max_length=30)[0].examples
    assert example.truncated
    assert len(example) <= 30
    assert example.input_ids[0] == template.tokenizer.bos_token_id
    assert supervised_texts(template, example) == [" Yes.</s>"]
    assert "ten" in template.tokenizer.decode(example.input_ids.tolist())


def test_a_reply_that_does_not_fit_is_left_out_by_name(template: ChatTemplate) -> None:
    row = talk("Well?", "very long " * 40, "And?", "Yes.")
    (built,) = template.build_examples([row], max_length=30)
    assert built.dropped == ["rows.json:7 (reply 1 of 2)"]
    (example,) = built.examples
    assert supervised_texts(template, example) == [" Yes.</s>"]


def test_a_row_that_just_fits_is_not_truncated(template: ChatTemplate) -> None:
    row = talk("one two three", "four")
    length = len(template.build_example(row))
    (exact,), (cut,) = (template.build_examples([row], n)[0].examples for n in (length, length - 1))
    assert (exact.truncated, cut.truncated) == (False, True)


# Conversations that are too long.


@pytest.mark.parametrize("jinja", ["published", "rewriting"])
def test_every_reply_of_a_long_conversation_is_supervised_once(jinja: str, tmp_path: Path) -> None:
    more = ("<|im_start|>",)
    source = REWRITING if jinja == "rewriting" else PUBLISHED["qwen"][0]
    template = ChatTemplate(make_tokenizer(tmp_path, source, None, "<|im_end|>", more))
    lead = template.traits.reply_lead

    @settings(max_examples=40, derandomize=True, database=None, deadline=None)
    @given(
        st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12)), min_size=1, max_size=12),
        st.integers(130, 300),
        st.booleans(),
    )
    def holds(sizes: list[tuple[int, int]], limit: int, system: bool) -> None:
        texts = [f"{k} " + "one " * size for k, pair in enumerate(sizes) for size in pair]
        opening = (Message("system", "Be brief."),) if system else ()
        row = Conversation((*opening, *talk(*texts).messages), "rows.json:1")
        (built,) = template.build_examples([row], limit)
        assert not built.dropped
        found = [t for e in built.examples for t in supervised_texts(template, e)]
        assert found == [f"{lead}{text}<|im_end|>" for text in texts[1::2]]
        for example in built.examples:
            assert len(example) <= limit
            text = template.tokenizer.decode(example.input_ids.tolist())
            assert ("Be brief." in text) == system
            assert fits_no_more(text, texts, limit)

    def fits_no_more(text: str, texts: list[str], limit: int) -> bool:
        """Whether one more turn before this text would be too long."""
        first = next(k for k in range(0, len(texts), 2) if f"user\n{texts[k]}<|" in text)
        if first == 0:
            return True
        more = template.encoder.encode([text, CHATML_TURN.format(*texts[first - 2 : first])])
        return sum(map(len, more)) > limit

    holds()


def test_a_conversation_of_200_turns_takes_less_than_a_second(template: ChatTemplate) -> None:
    row = talk(*(f"And drawer {k}? Nothing but string, mostly." for k in range(200)))
    template.build_examples([talk("Well?", "Yes.")])
    for limit in (384, 8192, None):
        begin = time.process_time()
        (built,) = template.build_examples([row], limit)
        assert time.process_time() - begin < 1
        assert sum(len(supervised_spans(e.labels)) for e in built.examples) == 100


# A reply's ids back to text, as they arrive.

REPLIES = (
    "Yes.",
    "臣妾谢皇上！",
    "👩‍👩‍👧 and 🙂🙂",
    " two  spaces \n",
    "\N{REPLACEMENT CHARACTER}",
    "ends in \N{REPLACEMENT CHARACTER}",
    "",
)


def decoded_at_once(template: ChatTemplate, ids: list[int]) -> str:
    """The text of a reply that ends with the stop token, decoded in one call."""
    text = template.tokenizer.decode(ids[:-1], clean_up_tokenization_spaces=False)
    return text.removeprefix(template.traits.reply_lead).removesuffix(template.traits.reply_tail)


def ids_of_reply(template: ChatTemplate, reply: str) -> list[int]:
    text = template.traits.reply_lead + reply + template.traits.reply_tail
    return [*template.encoder.encode([text])[0], template.stop_id]


def test_the_pieces_of_a_reply_are_the_whole_reply(published: tuple[ChatTemplate, str]) -> None:
    template, _ = published

    @settings(max_examples=100, derandomize=True, database=None, deadline=None)
    @given(st.text() | st.text("a 家🙂é\n", max_size=9) | st.sampled_from(REPLIES))
    def holds(reply: str) -> None:
        ids = ids_of_reply(template, reply)
        pieces = list(template.stream_reply([*ids, 5, 6, 7]))
        assert "".join(pieces) == template.parse_reply(ids) == decoded_at_once(template, ids)
        assert "".join(pieces) == reply
        assert all(pieces)

    holds()


def test_pieces_hold_whole_characters_as_soon_as_they_are_there(template: ChatTemplate) -> None:
    arrived: list[int] = []

    def ids() -> Iterator[int]:
        for index in ids_of_reply(template, "a家🙂b"):
            arrived.append(index)
            yield index

    heard = [(piece, len(arrived)) for piece in template.stream_reply(ids())]
    assert [piece for piece, _ in heard] == ["a", "家", "🙂", "b"]
    lengths = [len(template.encoder.encode([text])[0]) for text in (" a", "家", "🙂", "b")]
    assert [count for _, count in heard] == np.cumsum(lengths).tolist()


def test_a_reply_cut_off_inside_a_character_ends_before_it(template: ChatTemplate) -> None:
    ids = ids_of_reply(template, "well 🙂")
    assert [template.parse_reply(ids[:-k]) for k in (1, 2, 3)] == ["well 🙂", "well ", "well "]


def test_a_lead_or_tail_that_is_not_complete_is_text(tmp_path: Path) -> None:
    tokenizer = make_tokenizer(tmp_path, REWRITING, None, "<|im_end|>", ("<|im_start|>",))
    template = ChatTemplate(tokenizer)
    assert template.traits.reply_lead == "<think>\n\n</think>\n\n"
    for text, reply in (("<think>\n\n</think>\n\nYes.", "Yes."), ("<b>", "<b>"), ("No.", "No.")):
        assert template.parse_reply(template.encoder.encode([text])[0]) == reply
