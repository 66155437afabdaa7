"""Whether the base knows the language of the replies."""

from __future__ import annotations

import pytest

from offbook.data.conversations import read_conversations
from offbook.settings.sections import DataSettings
from offbook.tokens.examples import tokenize
from offbook.tokens.language import unknown_language
from offbook.tokens.template import ChatTemplate
from offbook.tokens.tokenizer import load_tokenizer
from support.shared import DEEPSEEK


@pytest.mark.skipif(not DEEPSEEK.is_dir(), reason="needs the DeepSeek tokenizer")
def test_a_tokenizer_that_was_made_for_chinese_is_no_problem() -> None:
    template = ChatTemplate(load_tokenizer(DEEPSEEK))
    rows = read_conversations("teahouse-zh", DataSettings())
    assert unknown_language(tokenize(rows, template), template.tokenizer) is None
