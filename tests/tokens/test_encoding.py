"""Text to ids and back, with tokenizers of the two common kinds."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers
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
