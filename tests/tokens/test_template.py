"""The one renderer: published templates are proved, broken ones are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from offbook.data.conversations import Conversation, Message
from offbook.errors import DataError, ModelError
from offbook.models.base import resolve_base
from offbook.tokens.examples import IGNORED, Example, supervised_spans
from offbook.tokens.template import ChatTemplate
from offbook.tokens.tokenizer import load_tokenizer
from support.templates import PUBLISHED, REWRITING, talk, user
from support.tiny import DEEPSEEK_TEMPLATE, make_tokenizer


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
    assert deepseek.reply_lead == " "


def test_the_embedded_model_has_a_template_that_holds() -> None:
    template = ChatTemplate(load_tokenizer(resolve_base("smollm2-135m")))
    example = template.build_example(talk("Who are you?", "A keeper."))
    assert supervised_texts(template, example) == ["A keeper.<|im_end|>"]
    assert template.notes == []


@pytest.mark.parametrize("name", ["deepseek", "llama3", "qwen"])
def test_system_text_goes_where_the_template_takes_it(name: str, tmp_path: Path) -> None:
    jinja, bos, eos, more, _ = PUBLISHED[name]
    template = ChatTemplate(make_tokenizer(tmp_path, jinja, bos, eos, more))
    text = template.render([Message("system", "Be brief."), user("Well?")])
    assert template.takes_system
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


def test_a_template_that_rewrites_turns_takes_single_turns_only(tmp_path: Path) -> None:
    template = ChatTemplate(
        make_tokenizer(tmp_path, REWRITING, None, "<|im_end|>", ("<|im_start|>",))
    )
    example = template.build_example(talk("Well?", "Yes."))
    assert supervised_texts(template, example) == ["<think>\n\n</think>\n\nYes.<|im_end|>"]
    assert template.notes == [
        "the chat template rewrites earlier turns; rows of several turns are refused"
    ]
    with pytest.raises(DataError) as caught:
        template.build_example(talk("Well?", "Yes.", "And?", "No."))
    assert str(caught.value) == (
        "rows.json:7: several replies, but this chat template rewrites earlier turns; "
        "change or remove it"
    )


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


# Rows that are too long.


def test_a_long_prompt_loses_its_beginning_and_keeps_bos_and_reply(template: ChatTemplate) -> None:
    row = talk("one two three four five six seven eight nine ten " * 3, "Yes.")
    (example,) = template.build_examples([row], max_length=30)
    assert example is not None
    assert example.truncated
    assert len(example) <= 30
    assert example.input_ids[0] == template.tokenizer.bos_token_id
    assert supervised_texts(template, example) == [" Yes.</s>"]
    assert "ten" in template.tokenizer.decode(example.input_ids.tolist())


def test_a_long_conversation_loses_its_oldest_turns_first(template: ChatTemplate) -> None:
    opening = Message("system", "Be brief.")
    row = Conversation((opening, *talk("one " * 9, "two " * 9, "three", "four").messages))
    (example,) = template.build_examples([row], max_length=40)
    assert example is not None
    assert example.truncated
    text = template.tokenizer.decode(example.input_ids.tolist())
    assert text == "<s>Be brief.\n\nUser: three\n\nAssistant: four</s>"


def test_a_reply_that_does_not_fit_is_dropped(template: ChatTemplate) -> None:
    assert template.build_examples([talk("Well?", "very long " * 40)], max_length=30) == [None]


def test_a_row_that_just_fits_is_left_alone(template: ChatTemplate) -> None:
    row = talk("one two three", "four")
    length = len(template.build_example(row))
    (exact,), (cut,) = (template.build_examples([row], n) for n in (length, length - 1))
    assert exact is not None
    assert cut is not None
    assert (exact.truncated, cut.truncated) == (False, True)


# What `verify` must catch.

MUTANTS = {
    "BOS doubled": (
        DEEPSEEK_TEMPLATE.replace("{{ bos_token }}", "{{ bos_token + bos_token }}"),
        "it begins with BOS twice",
    ),
    "EOS missing": (
        DEEPSEEK_TEMPLATE.replace(" + eos_token", ""),
        "no token ends a reply, so the model would never learn to stop",
    ),
    "EOS twice": (
        DEEPSEEK_TEMPLATE.replace("+ eos_token", "+ eos_token + eos_token"),
        "its stop token stands more than once after a reply",
    ),
    "space after Assistant: lost": (
        DEEPSEEK_TEMPLATE.replace("'Assistant: '", "'Assistant:'"),
        "the reply is glued to its header, '\\n\\nAssistant:Yes'",
    ),
    "space in the prompt as well as before the reply": (
        DEEPSEEK_TEMPLATE.replace("'Assistant:' }}", "'Assistant: ' }}"),
        "its tokens do not begin with those of its prompt",
    ),
    "another header in the prompt": (
        DEEPSEEK_TEMPLATE.replace("'Assistant:' }}", "'Bot:' }}"),
        "a training row does not begin with the prompt given at chat time",
    ),
    "reply changed": (
        DEEPSEEK_TEMPLATE.replace("'Assistant: ' + message['content']", "'Assistant: ' + 'x'"),
        "a training row does not begin with the prompt given at chat time",
    ),
    "not jinja": ("{% for %}", "it is no jinja2 template: Expected an expression"),
    "refuses everything": (
        "{{ raise_exception('no') }}",
        "the chat template refuses it: no",
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_broken_template_is_refused_with_the_reason(name: str, tmp_path: Path) -> None:
    jinja, reason = MUTANTS[name]
    tokenizer = make_tokenizer(tmp_path, jinja)
    with pytest.raises(ModelError, match="the chat template cannot be trained on") as caught:
        ChatTemplate(tokenizer)
    assert reason in str(caught.value)


def test_a_model_without_a_template_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="it does not exist; use a chat model"):
        ChatTemplate(make_tokenizer(tmp_path, None))


class SpaceLost(ChatTemplate):
    def render(self, messages, add_generation_prompt=False):  # type: ignore[no-untyped-def]
        return super().render(messages, add_generation_prompt).replace("Assistant: ", "Assistant:")


class BosDoubled(ChatTemplate):
    def render(self, messages, add_generation_prompt=False):  # type: ignore[no-untyped-def]
        return "<s>" + super().render(messages, add_generation_prompt)


class EosUnsupervised(ChatTemplate):
    def _supervise(self, source, prompts, whole):  # type: ignore[no-untyped-def]
        example = super()._supervise(source, prompts, whole)
        example.labels[-1] = IGNORED
        return example


class HeaderSupervised(ChatTemplate):
    def _supervise(self, source, prompts, whole):  # type: ignore[no-untyped-def]
        return super()._supervise(source, [prompt[:-1] for prompt in prompts], whole)


class EosTwice(ChatTemplate):
    def _supervise(self, source, prompts, whole):  # type: ignore[no-untyped-def]
        return super()._supervise(source, prompts, [*whole, whole[-1]])


@pytest.mark.parametrize(
    "mutant", [SpaceLost, BosDoubled, EosUnsupervised, HeaderSupervised, EosTwice]
)
def test_a_broken_renderer_is_caught(mutant: type[ChatTemplate], template: ChatTemplate) -> None:
    with pytest.raises(ModelError, match="the chat template cannot be trained on"):
        mutant(template.tokenizer)
