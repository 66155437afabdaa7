"""Text that does not belong in rows: what is taken for it, and what is not."""

from __future__ import annotations

import pytest

from offbook.data.messages import Conversation, Message
from offbook.doctor.fixes import without_control_text
from offbook.doctor.leftovers import CONTROL, PLACEHOLDER, Leftovers, boilerplate_in, model_in
from offbook.doctor.row import Row
from support.templates import talk


def details(kind: str, *rows: Conversation) -> list[str]:
    """What was found of a kind, in each row that has it."""
    check = Leftovers()
    for number, row in enumerate(rows):
        check.see(Row.of(number, row))
    return [
        hit.detail for finding, hits in check.findings() for hit in hits if finding.kind == kind
    ]


@pytest.mark.parametrize(
    "text",
    [
        "As an AI language model, I cannot eat.",
        "Well, as an artificial intelligence assistant, no.",
        "I'm sorry, but I can't assist with that request.",
        "How can I assist you today?",
        "作为一个人工智能语言模型，我没有感情。",
        "很抱歉，我无法回答这个问题。",
    ],
)
def test_an_assistants_phrases_are_found(text: str) -> None:
    assert boilerplate_in(text)


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I cannot leave the lamp tonight.",
        "As a keeper I have no opinion.",
        "As an aide to the harbour master, I know.",
        "作为一个守灯人，我从不睡觉。",
        "抱歉，我不能离开这里。",
        "我是在给小主出主意。",
    ],
)
def test_a_role_may_be_sorry(text: str) -> None:
    assert not boilerplate_in(text)
    assert not model_in(text)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("Ask ChatGPT about it.", "ChatGPT"),
        ("I was created by OpenAI.", "itself"),
        ("我是由阿里巴巴开发的。", "itself"),
        ("你可以问问文心一言。", "文心一言"),
        ("Aye, the machine in the lamp room hums.", ""),
        ("I like apple pie, and Google is a strange word.", ""),
    ],
)
def test_models_are_found_by_name_and_by_what_they_say(text: str, named: str) -> None:
    assert model_in(text) == named


@pytest.mark.parametrize(
    "text",
    ["Hello {{user}}!", "Dear [Your Name],", "I am <name>.", "你好，{姓名}。", "Ask ${owner}."],
)
def test_placeholders_are_found(text: str) -> None:
    assert PLACEHOLDER.search(text)


@pytest.mark.parametrize(
    "text",
    ["[laughs] No.", "(sighs)", "a < b > c", "{a, b}", "【旁白】", "（笑）你来了。", "[phone 1]"],
)
def test_stage_directions_are_no_placeholders(text: str) -> None:
    assert not PLACEHOLDER.search(text)


@pytest.mark.parametrize(
    "text", ["nan", " None\n", "NULL", "<NA>", "#N/A", "#REF!", "#NAME?", "#VALUE!", "nan\nNone"]
)
def test_the_text_of_an_empty_cell_says_nothing(text: str) -> None:
    assert details("placeholder", talk("a?", text), talk(text, "b.")) == [text.strip()] * 2
    assert details("placeholder", talk("a?", f"{text}?"), talk("Any?", "No.", text, "Fine.")) == []


def test_an_empty_cell_is_found_where_a_system_text_or_an_input_is() -> None:
    system = Conversation((Message("system", "nan"), *talk("a?", "b.").messages))
    rows = (system, talk("a?\nNone", "b."), talk("a?", "b.", "c?\n\n#N/A", "d."))
    assert details("empty_cell", *rows) == ["nan", "None", "#N/A"]
    assert details("empty_cell", talk("None", "b.\nNone"), talk("a?\n    None", "b.")) == []


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        ("<think>\nHm.\n</think>\n\n", "nothing after </think>"),
        ("<think>\nHm, because the", "no </think>"),
        ("<think>\nHm.\n</think>\n\nAye.", ""),
        ("I think.", ""),
    ],
)
def test_a_reply_of_reasoning_alone_has_no_answer(reply: str, why: str) -> None:
    assert details("no_answer", talk("Well?", reply)) == [why] * bool(why)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("red\x1b[0m.", "\\x1b"),
        ("x\0\by.", "\\x00"),
        ("So \ufffd.", "\ufffd"),
        ("锟斤拷", "锟斤拷"),
        ("l'Ã©tÃ©.", "Ã©"),
        ("itâ€™s.", "â€"),
        ("Tabs\tand\r\nlines, l'été, «AMANHû, 30 €, 烫烫烫！", ""),
    ],
)
def test_text_that_was_decoded_wrongly_is_found(text: str, found: str) -> None:
    assert details("garbled", talk("Well?", text)) == [found] * bool(found)


@pytest.mark.parametrize(
    ("reply", "left"),
    [
        ("Yes.<|im_end|>", "Yes."),
        ("<s>[INST] Yes. [/INST] No.", "Yes."),
        ("Yes.\n### Instruction:\nMore", "Yes."),
        ("Yes.<｜end▁of▁sentence｜>User: And?", "Yes."),
        ("<|assistant|>\nYes.", "Yes."),
        ("</s>", ""),
    ],
)
def test_a_reply_ends_where_control_text_begins(reply: str, left: str) -> None:
    assert CONTROL.search(reply)
    assert without_control_text(reply, is_reply=True) == left
    assert CONTROL.search(without_control_text(reply, is_reply=False)) is None


def test_a_prompt_of_marks_alone_says_nothing() -> None:
    said = ("……", "？", "🙂", "7")
    assert details("empty_prompt", *(talk(prompt, "Yes.") for prompt in said)) == ["……", "？"]
