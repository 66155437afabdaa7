"""The tokenizer of a GGUF file splits text as the file says, or the file is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from offbook.errors import ModelError
from offbook.models import base
from offbook.models.gguf import check_gguf
from offbook.models.gguf_tokenizer import RULES, WHOLE_FIRST, tokenizer_from_gguf
from support.gguf_files import CONTROL, GPT2, NORMAL, USER_DEFINED, Vocabulary, split, write_gguf
from support.shared import DEEPSEEK, HUANHUAN

TEXTS = [
    "I'LL pay 12345 €, HTTPServer's fooBar/x\n\n  ok",
    "  leading,   inner and trailing space  ",
    "家父是大理寺少卿。 臣妾  谢皇上！カ한국 \u3000x",
    "def f(x):\n\treturn x**2\r\n",
    "²3٣٤५ Ⅷ½ 1 2\u0301 é e\u0301 ª",
    "~!@#$%^&*()_+`-={}|[]\\:\";'<>?,./",
]
MERGES = ["Ġ t", "1 2", "12 3", "3 4", "Ġ Ġ", "Ċ Ċ", "h e", "Ġt he", "' s", "x *", "Ù £", "o o"]


def read(metadata: dict[str, Any]) -> Tokenizer:
    return Tokenizer.from_str(
        dict(tokenizer_from_gguf(metadata, "a.gguf"))["tokenizer.json"].decode()
    )


def written(vocabulary: Vocabulary, folder: Path) -> dict[str, Any]:
    """The header of a GGUF file with this vocabulary."""
    return check_gguf(write_gguf(folder / "a.gguf", vocabulary))[0]


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False).ids)


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_gives_the_tokens_of_a_plain_reader(rule: str, tmp_path: Path) -> None:
    vocabulary = Vocabulary.of_bytes(MERGES, rule=rule)
    tokenizer = read(written(vocabulary, tmp_path))
    for text in TEXTS:
        expected = vocabulary.ids(text, RULES[rule], whole_first=rule in WHOLE_FIRST)
        assert encode(tokenizer, text) == expected, text
        assert tokenizer.decode(expected) == text


@pytest.mark.parametrize(
    ("rule", "pieces"),
    [
        ("gpt-2", "I|'|LL| pay| 12345| €,| HTTPServer|'s| fooBar|/|x|\n\n | ok"),
        ("smollm", "I|'|LL| pay| |1|2|3|4|5| €,| HTTPServer|'s| fooBar|/|x|\n\n | ok"),
        ("llama-bpe", "I|'LL| pay| |123|45| €,| HTTPServer|'s| fooBar|/x|\n\n| | ok"),
        ("qwen2", "I|'LL| pay| |1|2|3|4|5| €,| HTTPServer|'s| fooBar|/x|\n\n| | ok"),
        ("tekken", "I|'LL| pay| |1|2|3|4|5| €,| HTTPServer|'s| foo|Bar|/x|\n\n| | ok"),
        ("gpt-4o", "I'LL| pay| |123|45| €,| HTTPServer's| foo|Bar|/x|\n\n| | ok"),
        ("deepseek-llm", "I|'|LL| pay| |1|2|3|4|5| |€|,| HTTPServer|'|s| fooBar|/|x|\n|\n| | ok"),
        ("deepseek-coder", "I|'|LL| pay| |1|2|3|4|5| |€|,| HTTPServer|'|s| fooBar|/|x|\n|\n| | ok"),
        ("deepseek-v3", "I|'LL| pay| |123|45| €,| HTTPServer|'s| fooBar|/x|\n\n| | ok"),
        ("default", "I|'|LL| pay| |123|45| €|,| HTTPServer|'|s| fooBar|/|x|\n\n | ok"),
    ],
)
def test_pieces_that_were_written_by_hand(rule: str, pieces: str) -> None:
    assert split(TEXTS[0], RULES[rule]) == pieces.split("|")


def test_a_piece_that_is_a_token_is_that_token_where_the_model_wants_it(tmp_path: Path) -> None:
    plain = Vocabulary.of_bytes()
    tokens, kinds = [*plain.tokens, "abc"], [*plain.kinds, NORMAL]
    letters = [tokens.index(letter) for letter in "abc"]
    for rule, ids in (("llama-bpe", [tokens.index("abc")]), ("qwen2", letters)):
        vocabulary = replace(plain, tokens=tokens, kinds=kinds, rule=rule)
        assert encode(read(written(vocabulary, tmp_path)), "abc") == ids


def test_control_tokens_are_whole_and_only_they_are_special(tmp_path: Path) -> None:
    plain = Vocabulary.of_bytes()
    vocabulary = replace(
        plain,
        tokens=[*plain.tokens, "<｜User｜>", "<think>"],
        kinds=[*plain.kinds, CONTROL, USER_DEFINED],
        rule="deepseek-v3",
    )
    tokenizer = read(written(vocabulary, tmp_path))
    assert encode(tokenizer, "<s><｜User｜><think></s>") == [0, 259, 260, 1]
    special = {
        token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special
    }
    assert special == {"<s>", "</s>", "<｜User｜>"}
    assert tokenizer.get_vocab_size() == len(vocabulary.tokens)


@pytest.mark.parametrize(
    ("flag", "rule", "begins"),
    [(True, "gpt-2", True), (None, "llama-bpe", True), (None, "gpt-2", False)],
)
def test_a_caller_who_asks_for_special_tokens_gets_bos_as_the_file_says(
    flag: bool | None, rule: str, begins: bool, tmp_path: Path
) -> None:
    more = {} if flag is None else {"tokenizer.ggml.add_bos_token": flag}
    tokenizer = read(written(Vocabulary.of_bytes(rule=rule, more=more), tmp_path))
    assert (tokenizer.encode("x").ids[0] == 0) == begins


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"rule": "kimi-k2"}, "its tokenizer.ggml.pre is 'kimi-k2'"),
        ({"rule": None}, "it has no tokenizer.ggml.pre, as files from before May 2024"),
        ({"kind": "llama"}, "its vocabulary is of the kind 'llama'"),
        ({"kind": "t5"}, "its vocabulary is of the kind 't5'"),
    ],
)
def test_what_is_not_known_is_refused_by_name(
    change: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    metadata = written(replace(Vocabulary.of_bytes(), **change), tmp_path)
    with pytest.raises(ModelError) as caught:
        read(metadata)
    assert str(caught.value) == (
        f"a.gguf: how this GGUF splits text into tokens is not known: {reason}; use the model with "
        "safetensors weights, by its hub id (owner/name) or as a folder"
    )


def test_readers_of_other_versions_know_what_is_written(tmp_path: Path) -> None:
    more = {"tokenizer.chat_template": "{{ messages }}\r\n"}
    files = dict(tokenizer_from_gguf(written(Vocabulary.of_bytes(MERGES, more=more), tmp_path), ""))
    config = json.loads(files["tokenizer_config.json"])
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert (config["bos_token"], config["eos_token"]) == ("<s>", "</s>")
    assert config["chat_template"] == "{{ messages }}\r\n"
    assert files["chat_template.jinja"] == b"{{ messages }}\r\n"
    # tokenizers before 0.20 reads merges as text only.
    assert json.loads(files["tokenizer.json"])["model"]["merges"] == MERGES


def test_the_embedded_model_splits_digits_as_its_file_says() -> None:
    path = base._embedded()
    vocabulary, tokenizer = Vocabulary.read(path), read(check_gguf(path)[0])
    assert vocabulary.rule == "smollm"
    for text in [*TEXTS, "١٢٣ 四五 ½¾ ²³ ১২৩৪ ⅣⅤ", "<|im_start|"]:
        assert encode(tokenizer, text) == vocabulary.ids(text, (r"\p{N}", GPT2)), text
    assert encode(tokenizer, "<|im_start|>user\n")[0] == 1


def test_a_gguf_of_deepseek_tokenizes_as_the_published_tokenizer() -> None:
    if not (DEEPSEEK.is_dir() and HUANHUAN.is_file()):
        pytest.skip(f"needs {DEEPSEEK} and {HUANHUAN}")
    contents = json.loads((DEEPSEEK / "tokenizer.json").read_text(encoding="utf-8"))
    added = {token["id"]: token["content"] for token in contents["added_tokens"]}
    tokens = {number: token for token, number in contents["model"]["vocab"].items()} | added
    numbers = range(len(tokens))
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "deepseek-llm",
        "tokenizer.ggml.tokens": [tokens[number] for number in numbers],
        "tokenizer.ggml.token_type": [
            CONTROL if n in added else NORMAL for n in range(len(tokens))
        ],
        "tokenizer.ggml.merges": [" ".join(pair) for pair in contents["model"]["merges"]],
    }
    ours, published = read(metadata), Tokenizer.from_str(json.dumps(contents))
    rows = json.loads(HUANHUAN.read_text(encoding="utf-8"))
    texts = [*TEXTS, *(row[key] for row in rows for key in ("instruction", "output"))]
    batches = [t.encode_batch(texts, add_special_tokens=False) for t in (ours, published)]
    wrong = [text for text, a, b in zip(texts, *batches, strict=True) if a.ids != b.ids]
    assert wrong == []
