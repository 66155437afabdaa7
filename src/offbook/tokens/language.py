"""Does the base know the language of the replies? Its tokenizer tells, for Chinese characters."""

from __future__ import annotations

import re

from transformers import PreTrainedTokenizerBase

from offbook.tokens.examples import IGNORED, Examples

# Chinese characters, kana and Hangul: a tokenizer made for them has at most about one token each.
CHARACTERS = re.compile("[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7a3]")
SAMPLED = 100  # examples
MOST_TOKENS = 1.5  # per character; DeepSeek-LLM has 0.8, SmolLM2 1.9


def unknown_language(examples: Examples, tokenizer: PreTrainedTokenizerBase) -> float | None:
    """Tokens per character of the replies, where the base can hardly know their language.

    A tokenizer learned its tokens from text like the base's. One that writes a character as the
    bytes of it has seen few of them.
    """
    special = set(tokenizer.all_special_ids)
    tokens, replies = 0, ""
    for number in range(0, len(examples), max(1, len(examples) // SAMPLED)):
        labels = examples[number].labels
        ids = [index for index in labels[labels != IGNORED].tolist() if index not in special]
        tokens += len(ids)
        replies += str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))
    written = len("".join(replies.split()))
    if 2 * len(CHARACTERS.findall(replies)) < written or tokens <= MOST_TOKENS * written:
        return None
    return tokens / written
