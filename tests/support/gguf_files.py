"""GGUF files of tiny random Llamas with a given vocabulary, and a reader of such a vocabulary.

The reader shares nothing with `offbook` or transformers: it splits text with the `regex` package
and merges bytes by hand.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import regex
from gguf import GGUFReader, GGUFWriter

NORMAL, CONTROL, USER_DEFINED = 1, 3, 4
WIDTH, HEADS, LAYERS, INNER = 16, 2, 1, 32
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def byte_alphabet() -> list[str]:
    """The character that stands for each byte in a byte-level vocabulary."""
    shown = {*range(33, 127), *range(161, 173), *range(174, 256)}
    hidden = (256 + n for n in range(256))
    return [chr(b) if b in shown else chr(next(hidden)) for b in range(256)]


@dataclass
class Vocabulary:
    """A byte-level vocabulary, as a GGUF holds it."""

    tokens: list[str]
    kinds: list[int]
    merges: list[str]
    rule: str | None = "gpt-2"
    kind: str = "gpt2"
    more: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of_bytes(cls, merges: Sequence[str] = ("Ġ t",), **rest: Any) -> Vocabulary:
        """The control tokens `<s>` and `</s>`, all bytes, and what merges make of them."""
        tokens = ["<s>", "</s>", *byte_alphabet(), *(m.replace(" ", "") for m in merges)]
        kinds = [CONTROL] * 2 + [NORMAL] * (len(tokens) - 2)
        return cls(tokens, kinds, list(merges), **rest)

    @classmethod
    def read(cls, path: Path) -> Vocabulary:
        """The vocabulary in a GGUF file, as the `gguf` package reads it."""
        fields = GGUFReader(path).fields

        def contents(key: str) -> Any:
            return fields[f"tokenizer.ggml.{key}"].contents()

        keys = ("tokens", "token_type", "merges", "pre")
        return cls(*map(contents, keys))

    @cached_property
    def _tables(self) -> tuple[dict[str, int], dict[tuple[str, ...], int]]:
        number = {token: n for n, token in enumerate(self.tokens)}
        return number, {tuple(merge.split(" ")): n for n, merge in enumerate(self.merges)}

    def ids(self, text: str, patterns: Sequence[str], whole_first: bool = False) -> list[int]:
        """The tokens of a text without control tokens, found in the plainest way."""
        (number, rank), alphabet, ids = self._tables, byte_alphabet(), []
        for piece in split(text, patterns):
            symbols = [alphabet[b] for b in piece.encode()]
            if whole_first and "".join(symbols) in number:
                symbols = ["".join(symbols)]
            while True:
                pairs = list(pairwise(symbols))
                best = min(pairs, key=lambda pair: rank.get(pair, len(rank)), default=None)
                if best is None or best not in rank:
                    break
                at = pairs.index(best)
                symbols[at : at + 2] = ["".join(best)]
            ids += [number[symbol] for symbol in symbols]
        return ids


def split(text: str, patterns: Sequence[str]) -> list[str]:
    """A text cut at both ends of each match of the first pattern, then of the next, and so on."""
    pieces = [text]
    for pattern in patterns:
        pieces = [part for piece in pieces for part in regex.split(f"({pattern})", piece) if part]
    return pieces


def write_gguf(
    path: Path, vocabulary: Vocabulary, inner: int = INNER, **tensors: np.ndarray
) -> Path:
    """A GGUF of a tiny random Llama; `tensors` are added, with `__` for `.` in their names."""
    writer, chance = GGUFWriter(path, "llama"), np.random.default_rng(0)
    writer.add_block_count(LAYERS)
    writer.add_context_length(256)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(500000.0)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_vocab_size(len(vocabulary.tokens))
    writer.add_tokenizer_model(vocabulary.kind)
    if vocabulary.rule is not None:
        writer.add_tokenizer_pre(vocabulary.rule)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.kinds)
    writer.add_token_merges(vocabulary.merges)
    writer.add_bos_token_id(vocabulary.tokens.index("<s>"))
    writer.add_eos_token_id(vocabulary.tokens.index("</s>"))
    for key, value in vocabulary.more.items():
        add = {bool: writer.add_bool, float: writer.add_float32, str: writer.add_string}
        add[type(value)](key, value)
    shapes = {"token_embd.weight": (len(vocabulary.tokens), WIDTH), "output_norm.weight": (WIDTH,)}
    for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
        shapes[f"blk.0.{part}.weight"] = (WIDTH, WIDTH)
    shapes |= {f"blk.0.{part}.weight": (inner, WIDTH) for part in ("ffn_gate", "ffn_up")}
    shapes["blk.0.ffn_down.weight"] = (WIDTH, inner)
    shapes |= {f"blk.0.{part}_norm.weight": (WIDTH,) for part in ("attn", "ffn")}
    for name, shape in shapes.items():
        writer.add_tensor(name, chance.standard_normal(shape).astype(np.float32))
    for name, values in tensors.items():
        writer.add_tensor(name.replace("__", "."), values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
