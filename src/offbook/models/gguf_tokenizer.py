"""The tokenizer in a GGUF file, as the files that transformers reads.

A GGUF holds a vocabulary, its merges, and the name of the rule by which text is split before bytes
are merged (`tokenizer.ggml.pre`). llama.cpp has these rules in its source; here they are those of
the tokenizers that were published with the models, which are the same but for rare texts. A name
that is not in the table is refused: with another rule most texts have the same tokens, and the rest
have tokens that the model never saw there.

A SentencePiece vocabulary is refused, too. Models differ in whether a space is added at the
beginning of a text only or also after each control token, and the file does not say which. Text is
not normalized, as in llama.cpp, whose files do not say either that a model (Qwen2) wants NFC.

Sources: `llm_tokenizer_bpe` and `llama_vocab::impl::load` in llama.cpp's `src/llama-vocab.cpp`
(commit 00ad355e), and `pre_tokenizer` in the `tokenizer.json` of the models named below.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from offbook.errors import ModelError

MODEL, RULE = "tokenizer.ggml.model", "tokenizer.ggml.pre"
BYTE_LEVEL = "gpt2"  # the kind of vocabulary whose tokens are bytes
CONTROL, USER_DEFINED = 3, 4  # in tokenizer.ggml.token_type
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}

WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"  # GPT-2's
DIGIT = r"\p{N}"
_SHORT_FORMS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_CASED = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
)
# The letters that DeepSeek-LLM splits from others: those with case, but for a few alphabets. As
# escapes, since editors may replace characters that look alike.
_DEEPSEEK_LETTERS = (
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-"
    "\u02af\u0370-\u0373\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1"
    "\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-"
    "\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a\u1e00-\u1f15"
    "\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d"
    "\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb"
    "\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d"
    "\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f\u2145-\u2149\u214e\u2183"
    "\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b"
    "\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-"
    "\uff3a\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb"
    "\U00010c80-\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943"
)
_DEEPSEEK_MARKS = "!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002"
_WIDE = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"  # Chinese, Japanese, Korean and more
_HAN_KANA = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"


def _words(digits: str) -> str:
    """The rule of GPT-4's tokenizer, and with it of Llama 3 and Qwen2, which differ in digits."""
    return (
        rf"{_SHORT_FORMS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}"
        rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}"
    )


_PUNCTUATION = rf" ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
_GPT_4O = "|".join([*(part + f"{_SHORT_FORMS}?" for part in _CASED), r"\p{N}{1,3}", _PUNCTUATION])
_TEKKEN = "|".join([*_CASED, r"\p{N}", _PUNCTUATION])
LLAMA_3 = ("llama-bpe", "llama3", "llama-v3", "falcon3", "lfm2")
# By name: regular expressions, each of which splits what those before it left whole.
RULES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("gpt-2", "phi-2", "olmo"), (WORDS,)),
    **dict.fromkeys(("smollm", "starcoder", "refact"), (DIGIT, WORDS)),
    **dict.fromkeys(LLAMA_3, (_words(r"\p{N}{1,3}"),)),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "megrez"), (_words(r"\p{N}"),)),
    **dict.fromkeys(("gpt-4o", "llama4"), (_GPT_4O,)),
    "tekken": (_TEKKEN,),
    "deepseek-llm": (
        r"[\r\n]",
        rf"\s?[{_DEEPSEEK_LETTERS}]+",
        rf"\s?[{_DEEPSEEK_MARKS}]+",
        r"\s+$",
        _WIDE,
        DIGIT,
    ),
    "deepseek-coder": (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _WIDE, DIGIT),
    "deepseek-v3": (
        r"\p{N}{1,3}",
        _HAN_KANA,
        r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
        rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_SPACES}",
    ),
    "default": (r"[\p{P}\$\+<=>\^~\|]+", WORDS, r"\p{N}+", "[0-9][0-9][0-9]"),
}
# Those in which a piece of text that is a token is that token, whatever the merges make of it.
WHOLE_FIRST = (*LLAMA_3, "tekken")


def tokenizer_from_gguf(metadata: Mapping[str, Any], name: str) -> Iterator[tuple[str, bytes]]:
    """The name and content of each file of the tokenizer that a GGUF describes.

    Args:
        metadata: the keys and values of its header.
        name: of the file, for messages.

    Raises:
        ModelError: when it does not say how text is split, or in a way that is not known.
    """
    rule = _rule(metadata, name)
    tokens, kinds = metadata["tokenizer.ggml.tokens"], metadata.get("tokenizer.ggml.token_type", ())
    special = {
        f"{role}_token": tokens[metadata[key]]
        for role, key in (
            ("bos", "tokenizer.ggml.bos_token_id"),
            ("eos", "tokenizer.ggml.eos_token_id"),
            ("unk", "tokenizer.ggml.unknown_token_id"),
            ("pad", "tokenizer.ggml.padding_token_id"),
        )
        if key in metadata
    }
    added = [
        _added(number, tokens[number], is_special=kind == CONTROL)
        for number, kind in enumerate(kinds)
        if kind in (CONTROL, USER_DEFINED)
    ]
    begins = "bos_token" in special and bool(
        metadata.get("tokenizer.ggml.add_bos_token", rule in WHOLE_FIRST)
    )
    contents = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": _splits(RULES[rule])},
        "post_processor": _begins_with(special["bos_token"], metadata) if begins else None,
        "decoder": BYTES | {"use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": rule in WHOLE_FIRST,
            "vocab": {token: number for number, token in enumerate(tokens)},
            # As text, not as pairs, which readers before tokenizers 0.20 do not know.
            "merges": metadata["tokenizer.ggml.merges"],
        },
    }
    yield "tokenizer.json", json.dumps(contents, ensure_ascii=False).encode()
    config = special | {
        "tokenizer_class": "PreTrainedTokenizerFast",  # known to every version of transformers
        "add_bos_token": begins,
        "clean_up_tokenization_spaces": False,
    }
    if template := metadata.get("tokenizer.chat_template"):
        config["chat_template"] = template
        yield "chat_template.jinja", template.encode()
    yield "tokenizer_config.json", json.dumps(config, indent=2, ensure_ascii=False).encode()


def _rule(metadata: Mapping[str, Any], name: str) -> str:
    """The name of the rule by which text is split."""
    kind, rule = metadata[MODEL], metadata.get(RULE)
    if kind == BYTE_LEVEL and rule in RULES:
        return str(rule)
    if kind != BYTE_LEVEL:
        reason = f"its vocabulary is of the kind {kind!r}"
    elif rule is None:
        reason = f"it has no {RULE}, as files from before May 2024"
    else:
        reason = f"its {RULE} is {rule!r}"
    raise ModelError(
        f"how this GGUF splits text into tokens is not known: {reason}",
        where=name,
        fix="use the model with safetensors weights, by its hub id (owner/name) or as a folder",
    )


def _splits(rule: tuple[str, ...]) -> list[dict[str, Any]]:
    """The steps of a pre-tokenizer; GPT-2's rule and digits have types of their own."""
    words_last = rule[-1] == WORDS
    steps: list[dict[str, Any]] = [
        {"type": "Digits", "individual_digits": True}
        if pattern == DIGIT
        else {
            "type": "Split",
            "pattern": {"Regex": pattern},
            "behavior": "Isolated",
            "invert": False,
        }
        for pattern in (rule[:-1] if words_last else rule)
    ]
    return [*steps, BYTES | {"use_regex": words_last}]


def rule_name(pre_tokenizer: Mapping[str, Any] | None) -> str | None:
    """The name in `RULES` of the way in which a tokenizer.json splits text; None if it has none."""
    steps = (pre_tokenizer or {}).get("pretokenizers", [pre_tokenizer or {}])
    patterns: list[str] = []
    for step in steps:
        match step:
            case {"type": "Digits", "individual_digits": True}:
                patterns.append(DIGIT)
            case {"type": "ByteLevel", "add_prefix_space": False}:
                patterns += [WORDS] if step.get("use_regex", True) else []
            case {"type": "Split", "behavior": "Isolated", "invert": False}:
                pattern = step["pattern"].get("Regex") or ""
                patterns.append(pattern.replace("\r", r"\r").replace("\n", r"\n"))
            case _:
                return None
    return next((name for name, rule in RULES.items() if rule == tuple(patterns)), None)


def _added(number: int, content: str, *, is_special: bool) -> dict[str, Any]:
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": number, "content": content, **plain, "special": is_special}


def _begins_with(bos: str, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The step that adds BOS where a caller asks for special tokens; offbook never does."""
    token, text = (
        {"SpecialToken": {"id": bos, "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
    )
    second = {"Sequence": {"id": "B", "type_id": 1}}
    number = metadata["tokenizer.ggml.bos_token_id"]
    return {
        "type": "TemplateProcessing",
        "single": [token, text],
        "pair": [token, text, second],
        "special_tokens": {bos: {"id": bos, "ids": [number], "tokens": [bos]}},
    }
