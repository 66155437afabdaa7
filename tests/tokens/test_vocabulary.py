"""Tokens that a base has no embedding for."""

from __future__ import annotations

import pytest

from offbook.data.messages import Conversation, Message
from offbook.errors import ModelError
from offbook.tokens.examples import Examples, tokenize
from offbook.tokens.template import ChatTemplate
from offbook.tokens.vocabulary import check_vocabulary


def examples(template: ChatTemplate, *prompts: str) -> Examples:
    rows = [
        Conversation((Message("user", prompt), Message("assistant", "yes")), f"rows.jsonl:{k}")
        for k, prompt in enumerate(prompts, 1)
    ]
    return tokenize(rows, template, 100)


def test_the_first_token_without_an_embedding_is_named(template: ChatTemplate) -> None:
    found = examples(template, "aa", "你好", "aa")
    highest = [int(example.input_ids.max()) for example in found]
    assert highest[1] > highest[0]
    size = highest[0] + 1
    check_vocabulary(found[:1], template.tokenizer, size, "base")
    check_vocabulary(found, template.tokenizer, None, "base")
    check_vocabulary(found, template.tokenizer, highest[1] + 1, "base")
    with pytest.raises(ModelError) as caught:
        check_vocabulary(found, template.tokenizer, size, "base")
    assert f"the embedding has {size} rows (vocab_size); 1 of the rows, such as rows.jsonl:2" in (
        str(caught.value)
    )
