"""Counts and the token view."""

from __future__ import annotations

import random

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from offbook.data.conversations import read_conversations
from offbook.doctor.inspection import measure, token_view
from offbook.models.base import resolve_base
from offbook.tokens.examples import IGNORED, Example, tokenize
from offbook.tokens.template import ChatTemplate
from offbook.tokens.tokenizer import load_tokenizer
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


ALPHABET = [
    "a",
    "Yes",
    " ",
    "  ",
    "\n",
    "臣",
    "妾",
    "你好",
    "🙂",
    "\N{REPLACEMENT CHARACTER}",
    "é",
    ".",
]


def sentencepiece(decoder: decoders.Decoder) -> PreTrainedTokenizerFast:
    """A tokenizer that writes spaces as "▁", and characters that it does not know as bytes."""
    vocabulary = ["<unk>", "<s>", "</s>", "▁", "a", "Yes", "▁Yes", "臣", "."]
    vocabulary += [f"<0x{byte:02X}>" for byte in range(256)]
    merges = [("Y", "e"), ("Ye", "s"), ("▁", "Yes")]
    vocabulary += ["Y", "e", "s", "Ye"]
    raw = Tokenizer(
        models.BPE(
            {token: index for index, token in enumerate(vocabulary)},
            merges,
            unk_token="<unk>",
            byte_fallback=True,
        )
    )
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    raw.decoder = decoder
    raw.add_special_tokens(["<s>", "</s>"])
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>")


DECODERS = {
    "llama": decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    ),
    "metaspace": decoders.Sequence(
        [decoders.ByteFallback(), decoders.Metaspace("▁", "first", split=False)]
    ),
}


@pytest.mark.parametrize("kind", ["byte-level", "smollm2", *DECODERS])
def test_the_token_view_shows_exactly_the_characters(kind: str, template: ChatTemplate) -> None:
    if kind == "byte-level":
        tokenizer: PreTrainedTokenizerBase = template.tokenizer
    elif kind == "smollm2":
        tokenizer = load_tokenizer(resolve_base("smollm2-135m"))
    else:
        tokenizer = sentencepiece(DECODERS[kind])
    draw = random.Random(kind)
    for _ in range(200):
        prompt, reply = ("".join(draw.choices(ALPHABET, k=draw.randrange(1, 12))) for _ in "pr")
        starts = tokenizer.encode(f"<s>{prompt}</s>", add_special_tokens=False)
        ends = tokenizer.encode(f"{reply}</s>", add_special_tokens=False)
        ids = np.array(starts + ends, dtype=np.int32)
        labels = np.where(np.arange(len(ids)) < len(starts), IGNORED, ids)
        spans = token_view(Example(ids, labels), tokenizer)
        whole, before = tokenizer.decode(ids.tolist()), tokenizer.decode(starts)
        assert [len(span.tokens) for span in spans] == [len(starts), len(ends)]
        assert "".join(spans[0].tokens) == before
        assert "".join(spans[1].tokens) == whole[len(before) :]


def test_a_character_of_several_tokens_is_shown_with_the_last() -> None:
    tokenizer = sentencepiece(DECODERS["llama"])
    ids = np.array(tokenizer.encode("Yes 你 Yes", add_special_tokens=False), dtype=np.int32)
    (span,) = token_view(Example(ids, ids), tokenizer)
    assert span.tokens == ("Yes", " ", "", "", "你", " Yes")


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
    examples = tokenize(read_conversations(str(HUANHUAN)), deepseek)
    lengths = measure(examples)
    assert lengths.longest == 240
    assert (round(lengths.mean), round(lengths.prompt_mean), round(lengths.reply_mean)) == (
        54,
        31,
        23,
    )
