"""Text to ids and back, with tokenizers of the two common kinds."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from offbook.tokens.encoding import TextEncoder
from support.tiny import make_tokenizer

STOP = 1


def make_byte_fallback_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer shaped like Llama 2's: spaces are "▁", and unknown characters are bytes."""
    pieces = ["<s>", "</s>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += ["▁", *"abé家", "▁a", "ab", "▁家"]
    merges = [("▁", "a"), ("a", "b"), ("▁", "家")]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    raw = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True))
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    raw.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>")


@pytest.fixture(params=["byte-level", "byte fallback"])
def tokenizer(request: pytest.FixtureRequest, tmp_path: Path) -> PreTrainedTokenizerBase:
    if request.param == "byte-level":
        return make_tokenizer(tmp_path)
    return make_byte_fallback_tokenizer()


def test_a_decoded_stream_is_the_text(tokenizer: PreTrainedTokenizerBase) -> None:
    encoder = TextEncoder(tokenizer)

    @settings(max_examples=300, derandomize=True, database=None, deadline=None)
    @given(st.text() | st.text("ab 家🙂é\n", max_size=9))
    def holds(text: str) -> None:
        (ids,) = encoder.encode([text])
        whole = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        assert "".join(encoder.decode_stream([*ids, STOP, 5], STOP)) == whole

    holds()


def test_text_cut_at_control_tokens_has_the_same_ids(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.backend_tokenizer.add_tokens([AddedToken("<|user|>", normalized=False, rstrip=True)])
    tokenizer.chat_template = "<|user|> {{ bos_token }}"
    encoder = TextEncoder(tokenizer)
    assert "<|user|>" in encoder.control

    @settings(max_examples=200, derandomize=True, database=None, deadline=None)
    @given(st.lists(st.sampled_from(("a", "ab ", " 家", "\n", "b", *encoder.control)), max_size=9))
    def holds(pieces: list[str]) -> None:
        text = "".join(pieces)
        assert encoder.encode_masked(text, {}) == encoder.encode([text])[0]

    holds()


def test_words_that_are_added_tokens_are_no_control_tokens(tmp_path: Path) -> None:
    added = ("user", "   ", "<|user|>", "<unused>")
    tokenizer = make_tokenizer(tmp_path, "<|user|>user   {{ bos_token }}", added=added)
    assert set(TextEncoder(tokenizer).control) == {"<s>", "</s>", "<|user|>"}


def test_bytes_that_are_not_text_are_held_until_text_follows(tmp_path: Path) -> None:
    encoder = TextEncoder(make_tokenizer(tmp_path))
    half = encoder.encode(["🙂"])[0][:2]
    (letter,) = encoder.encode(["z"])[0]
    assert list(encoder.decode_stream([*half, letter], STOP)) == ["\N{REPLACEMENT CHARACTER}z", ""]
    assert list(encoder.decode_stream([letter, *half], STOP)) == ["z", ""]
    assert list(encoder.decode_stream([letter, *half, STOP], STOP)) == [
        "z",
        "\N{REPLACEMENT CHARACTER}",
    ]
