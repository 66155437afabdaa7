"""Counts and the token view."""

from __future__ import annotations

from offbook.data.conversations import read_conversations
from offbook.doctor.inspection import Census, measure, token_view
from offbook.tokens.examples import tokenize
from offbook.tokens.template import ChatTemplate
from support.shared import HUANHUAN
from support.templates import talk


def test_the_token_view_shows_every_token_once(template: ChatTemplate) -> None:
    example = template.build_example(talk("Well?", "臣妾 Yes.", "And?", "🙂"))
    spans = token_view(example, template.tokenizer)
    assert [span.trained for span in spans] == [False, True, False, True]
    assert sum(len(span.tokens) for span in spans) == len(example)
    text = "".join(token for span in spans for token in span.tokens)
    assert text == template.tokenizer.decode(example.input_ids.tolist())
    assert "".join(spans[1].tokens) == " 臣妾 Yes.</s>"


def test_the_deepseek_view_trains_on_the_reply_with_its_space_and_one_eos(
    deepseek: ChatTemplate,
) -> None:
    example = deepseek.build_example(talk("娘娘。", "你放心。"))
    prompt, reply = token_view(example, deepseek.tokenizer)
    assert not prompt.trained
    assert "".join(prompt.tokens) == "<｜begin▁of▁sentence｜>User: 娘娘。\n\nAssistant:"
    assert reply.trained
    assert "".join(reply.tokens) == " 你放心。<｜end▁of▁sentence｜>"


def test_a_subset_is_measured_by_itself(template: ChatTemplate) -> None:
    rows = [talk("one", "two"), talk("one two three", "four five six " * 4), talk("x", "y")]
    whole = tokenize(rows, template)
    part = whole[1:]
    assert part.supervised.tolist() == [int((e.labels >= 0).sum()) for e in part]
    lengths = measure(part)
    assert (lengths.longest, lengths.longest_source) == (len(whole[1]), whole[1].source)
    assert lengths.total == len(whole[1]) + len(whole[2])
    assert lengths.supervised == part.supervised.sum() < whole.supervised.sum()


def test_the_known_facts_of_the_tutorials_data(deepseek: ChatTemplate) -> None:
    census = Census()
    examples = tokenize(census.watch(read_conversations(str(HUANHUAN))), deepseek)
    lengths = measure(examples)
    assert census.counts() == {
        "rows": 3729,
        "replies": 3729,
        "duplicates": 112,
        "open_prompts": 50,
    }
    assert lengths.longest == 240
    assert (round(lengths.mean), round(lengths.prompt_mean), round(lengths.reply_mean)) == (
        54,
        31,
        23,
    )
