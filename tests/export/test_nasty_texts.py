"""llama.cpp gives the same tokens to nasty texts, or it is known to which it does not."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from offbook.errors import ModelError
from offbook.export.gguf import write_model
from offbook.export.gguf_tokenizer import other_texts
from offbook.export.weights import BaseWeights
from offbook.inference.llamacpp import LlamaCpp
from offbook.models.base import resolve_base
from offbook.models.gguf_tokenizer import WHOLE_FIRST, tokenizer_from_gguf
from offbook.tokens.template import ChatTemplate
from offbook.tokens.tokenizer import load_tokenizer
from support.nasty import nasty_texts
from support.shared import DEEPSEEK
from support.tiny import DEEPSEEK_TEMPLATE, make_base, make_sentencepiece, make_tokenizer

pytest.importorskip("xllamacpp", reason="llama.cpp is not installed")

Make = Callable[[Path], PreTrainedTokenizerFast]


def split_by(rule: str, normalizer: str | None = None) -> Make:
    """A tokenizer whose merges do not respect its rule, so that each wrong split is seen."""

    def make(folder: Path) -> PreTrainedTokenizerFast:
        raw = Tokenizer(models.BPE(ignore_merges=rule in WHOLE_FIRST))
        raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        raw.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=2000,
            special_tokens=["<s>", "</s>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            max_token_length=12,
            show_progress=False,
        )
        raw.train_from_iterator(nasty_texts(1000, seed=9), trainer)
        fast = PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>")
        fast.chat_template = DEEPSEEK_TEMPLATE
        fast.save_pretrained(folder)
        empty = {"tokenizer.ggml.tokens": [], "tokenizer.ggml.merges": []}
        kind = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": rule}
        (_, ruled), *_ = tokenizer_from_gguf(empty | kind, "")
        return changed(
            folder,
            pre_tokenizer=json.loads(ruled)["pre_tokenizer"],
            normalizer={"type": normalizer} if normalizer else None,
        )

    return make


def changed(folder: Path, **parts: object) -> PreTrainedTokenizerFast:
    """A tokenizer with other parts."""
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | parts), "utf-8")
    return load_tokenizer(folder)


def has_marks_or_case(text: str) -> bool:
    kinds = {unicodedata.category(character) for character in text if not character.isascii()}
    return any(kind[0] == "M" or kind in ("Lu", "Ll", "Lt") for kind in kinds)


def never(text: str) -> bool:
    return False


# How a tokenizer is made, and which texts are known to have other tokens in llama.cpp.
TOKENIZERS: dict[str, tuple[Make, Callable[[str], bool]]] = {
    "tiny": (make_tokenizer, never),
    "smollm2": (lambda _: load_tokenizer(resolve_base("smollm2-135m")), never),
    "llama 2": (make_sentencepiece, never),
    "mistral v0.3": (lambda folder: make_sentencepiece(folder, False), never),
    "qwen2, NFC": (
        split_by("qwen2", "NFC"),
        lambda text: not unicodedata.is_normalized("NFC", text),
    ),
    **{
        rule: (split_by(rule), never)
        for rule in ("gpt-2", "smollm", "llama-bpe", "qwen2", "deepseek-v3", "default")
    },
    "tekken": (split_by("tekken"), has_marks_or_case),
    "gpt-4o": (split_by("gpt-4o"), has_marks_or_case),
    "deepseek-coder": (
        split_by("deepseek-coder"),
        lambda text: any(c.isspace() and not c.isascii() for c in text),
    ),
    "deepseek": (
        lambda _: load_tokenizer(DEEPSEEK),
        lambda text: re.search(r"\s\s\u3000", text) is not None,
    ),
}
FAST = ("tiny", "smollm2", "llama 2", "mistral v0.3", "qwen2, NFC", "deepseek")


def write(folder: Path, tokenizer: PreTrainedTokenizerFast) -> ChatTemplate:
    """Write `model.gguf`, of a tiny model with a tokenizer."""
    base = make_base(folder / "base", tokenizer=tokenizer)
    template = ChatTemplate(tokenizer)
    write_model(folder / "model.gguf", BaseWeights.of(base), None, "f32", template)
    return template


def other_tokens(
    engine: LlamaCpp, template: ChatTemplate, texts: Sequence[str], begin: str
) -> list[str]:
    whole = [begin + text for text in texts]
    ours = template.encoder.encode(whole)
    pairs = zip(texts, whole, ours, strict=True)
    return [text for text, prompt, ids in pairs if engine.tokenize(prompt) != ids]


@pytest.mark.parametrize(
    ("name", "count"),
    [
        *((name, 100) for name in FAST),
        *(pytest.param(name, 1000, marks=pytest.mark.slow) for name in TOKENIZERS),
    ],
)
def test_nasty_texts_have_the_same_tokens(tmp_path: Path, name: str, count: int) -> None:
    make, differs = TOKENIZERS[name]
    if name == "deepseek" and not DEEPSEEK.is_dir():
        pytest.skip(f"{DEEPSEEK} is absent")
    template = write(tmp_path, make(tmp_path / "base"))
    control = sorted(template.encoder.control)
    decode = template.tokenizer.decode
    size = len(template.tokenizer)
    words = [str(decode([index])) for index in range(0, size, 1 + size // 2000)]
    texts = [*nasty_texts(count, control), *nasty_texts(count, control, words, seed=1)]
    # A prompt begins with a control token; there Mistral's tokenizer puts no space.
    begin = control[0] if name == "mistral v0.3" else ""
    with LlamaCpp(tmp_path / "model.gguf", context=64) as engine:
        others = other_tokens(engine, template, texts, begin)
    assert [text for text in others if not differs(text)] == []
    assert bool(other_texts(template)) == (differs is not never)


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ({"normalizer": {"type": "NFD"}}, "its tokenizer changes text before splitting it"),
        (
            {
                "pre_tokenizer": {
                    "type": "ByteLevel",
                    "add_prefix_space": True,
                    "trim_offsets": True,
                }
            },
            "llama.cpp has no name for the way in which its tokenizer splits text",
        ),
    ],
)
def test_other_tokenizers_are_refused(
    tmp_path: Path, parts: dict[str, object], reason: str
) -> None:
    make_tokenizer(tmp_path / "base")
    with pytest.raises(ModelError, match=f"cannot be written as GGUF: {reason}"):
        write(tmp_path, changed(tmp_path / "base", **parts))


def test_merges_of_another_kind_are_refused(tmp_path: Path) -> None:
    tokenizer = split_by("llama-bpe")(tmp_path / "base")
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    other = changed(tmp_path / "base", model=model | {"ignore_merges": False})
    with pytest.raises(ModelError, match="merges pieces that are tokens in another way"):
        write(tmp_path, other)


def test_sentencepiece_that_splits_text_is_refused(tmp_path: Path) -> None:
    make_sentencepiece(tmp_path / "base", prefix_every_piece=False)
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": True}
    with pytest.raises(ModelError, match="as SentencePiece does not"):
        write(tmp_path, changed(tmp_path / "base", pre_tokenizer=metaspace))
