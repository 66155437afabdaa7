"""Does the base know the language of the replies? Its tokenizer tells, for Chinese characters."""

from __future__ import annotations

import re

from transformers import PreTrainedTokenizerBase

from offbook.tokens.examples import IGNORED, Examples

# Chinese characters, kana and Hangul: a tokenizer made for them has at most about one token each.
CHARACTERS = re.compile("[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7a3]")
SAMPLED = 100  # examples
MOST_TOKENS = 1.5  # per character; of DeepSeek-LLM 0.7, of SmolLM2 2.2


def unknown_language(examples: Examples, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """What to say where the base can hardly know the language of the replies, or None.

    A tokenizer learned its tokens from text like the base's. One that writes a character as the
    bytes of it has seen few of them.
    """
    tokens = characters = letters = 0
    for number in range(0, len(examples), max(1, len(examples) // SAMPLED)):
        labels = examples[number].labels
        ids = labels[labels != IGNORED].tolist()
        text = str(tokenizer.decode(ids, skip_special_tokens=True))
        tokens += len(ids)
        letters += len("".join(text.split()))
        characters += len(CHARACTERS.findall(text))
    if 2 * characters < letters or tokens <= MOST_TOKENS * characters:
        return None
    return (
        f"the replies take {tokens / characters:.1f} tokens per character: this base hardly knows "
        "their language, and will not learn it from them; set model.base to one that was trained "
        "on it"
    )
