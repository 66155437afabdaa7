"""Write a tokenizer and its chat template into a GGUF.

llama.cpp has its own code for each way of splitting text, chosen by a name (`tokenizer.ggml.pre`).
The name follows from how tokenizer.json splits text, never from the model's name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import gguf
from gguf import TokenType

from offbook.errors import ModelError
from offbook.models.gguf_tokenizer import WHOLE_FIRST, rule_name
from offbook.tokens.template import ChatTemplate

SPACE = "▁"  # stands for a space in SentencePiece's pieces
SENTENCEPIECE = (
    {"type": "Prepend", "prepend": SPACE},
    {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
)
_CASED = "letters with combining marks, as in Hindi, and capitals within a word, unless ASCII"
# What llama.cpp splits in another way than the rule of that name says.
OTHER_TEXTS = {
    "deepseek-llm": "several spaces before U+3000, the wide space of Chinese text",
    "deepseek-coder": "white space that is not ASCII",
    "tekken": _CASED,
    "gpt-4o": _CASED,
}


def write_tokenizer(writer: gguf.GGUFWriter, template: ChatTemplate, size: int) -> None:
    """Write the tokenizer with which a template was verified.

    The file says that no token is added before or after a text: the chat template writes all.

    Args:
        writer: of the GGUF.
        template: the chat template, with its tokenizer.
        size: the rows of the embedding; rows without a token get an unused one.

    Raises:
        ModelError: when llama.cpp has no tokenizer of this kind.
    """
    tokenizer = template.tokenizer
    description = json.loads(tokenizer.backend_tokenizer.to_str())
    model = description["model"]
    if model["type"] != "BPE":
        raise _refusal(f"its tokenizer is {model['type']}, not BPE")
    added = {token["id"]: token["content"] for token in description["added_tokens"]}
    texts = {index: text for text, index in model["vocab"].items()} | added
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    if model["byte_fallback"]:
        if not _is_sentencepiece(description):
            raise _refusal("its tokenizer changes or splits text as SentencePiece does not")
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        scores = _scores(merges)
        writer.add_token_scores([scores.get(texts.get(i, ""), 0.0) for i in range(size)])
        writer.add_add_space_prefix(_adds_space(template))
    else:
        if _steps(description["normalizer"], "normalizers") not in ([], [{"type": "NFC"}]):
            raise _refusal(
                "its tokenizer changes text before splitting it, which llama.cpp does not"
            )
        writer.add_tokenizer_model("gpt2")
        if (rule := rule_name(description["pre_tokenizer"])) is None:
            raise _refusal("llama.cpp has no name for the way in which its tokenizer splits text")
        if bool(model.get("ignore_merges")) != (rule in WHOLE_FIRST):
            raise _refusal("llama.cpp merges pieces that are tokens in another way")
        writer.add_tokenizer_pre(rule)
        writer.add_token_merges(merges)
        writer.add_add_space_prefix(False)
    writer.add_token_list([texts.get(index, f"[PAD{index}]") for index in range(size)])
    writer.add_token_types(_types(texts, added, template.encoder.control, model, size))
    for kind in ("bos", "eos", "unk", "pad"):
        index = getattr(tokenizer, f"{kind}_token_id")
        if index is not None:
            getattr(writer, f"add_{kind}_token_id")(index)
    writer.add_eot_token_id(template.stop_id)  # what ends a reply, whatever eos_token says
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)
    writer.add_chat_template(template.renderer.source)


def other_texts(template: ChatTemplate) -> list[str]:
    """Kinds of text to which llama.cpp gives other tokens, however the file is written."""
    description = json.loads(template.tokenizer.backend_tokenizer.to_str())
    found = [OTHER_TEXTS.get(rule_name(description["pre_tokenizer"]) or "")]
    if {"type": "NFC"} in _steps(description["normalizer"], "normalizers"):
        found.append("text that is not composed (Unicode's NFC)")
    return [texts for texts in found if texts]


def _is_sentencepiece(description: Mapping[str, Any]) -> bool:
    """Whether text is only given marks for spaces, and is not split."""
    changes = _steps(description["normalizer"], "normalizers")
    pieces = description["pre_tokenizer"]
    metaspace = {"type": "Metaspace", "replacement": SPACE, "split": False}
    return all(change in SENTENCEPIECE for change in changes) and (
        pieces is None or pieces.items() >= metaspace.items()
    )


def _steps(part: Mapping[str, Any] | None, key: str) -> list[Any]:
    """The steps of a normalizer, of which there may be one, several or none."""
    return list(part.get(key, [part])) if part else []


def _types(
    texts: Mapping[int, str],
    added: Mapping[int, str],
    control: Mapping[str, int],
    model: Mapping[str, Any],
    size: int,
) -> list[int]:
    """The kind of each token; a control token is one that the chat template writes."""
    controls = set(control.values())
    bytes_of = {f"<0x{value:02X}>" for value in range(256)} if model["byte_fallback"] else set()

    def type_of(index: int) -> TokenType:
        text = texts.get(index)
        if text is None:
            return TokenType.UNUSED
        if text == model.get("unk_token") and model["byte_fallback"]:
            return TokenType.UNKNOWN
        if index in controls:
            return TokenType.CONTROL
        if index in added:
            return TokenType.USER_DEFINED
        return TokenType.BYTE if text in bytes_of else TokenType.NORMAL

    return [int(type_of(index)) for index in range(size)]


def _scores(merges: list[str]) -> dict[str, float]:
    """SentencePiece's scores: of two possible merges, the one that is listed first comes first."""
    scores: dict[str, float] = {}
    for rank, pair in enumerate(merges):
        scores.setdefault(pair.replace(" ", "", 1), -float(rank))
    return scores


def _adds_space(template: ChatTemplate) -> bool:
    """Whether the tokenizer puts a space before text that follows a control token."""
    control = next(iter(template.encoder.control))
    ids = template.encoder.encode([f"{control}a"])[0]
    tokens = template.tokenizer.convert_ids_to_tokens(ids)
    return str(tokens[1]).startswith(SPACE)


def _refusal(why: str) -> ModelError:
    return without_llama_cpp(f"cannot be written as GGUF: {why}")


def without_llama_cpp(why: str) -> ModelError:
    """The error of what llama.cpp does not compute; `export`, `serve` and `chat` all raise it."""
    return ModelError(
        why,
        fix="chat with PyTorch, by `offbook chat` without --engine; or export with --to merged or "
        "--to adapter",
    )
