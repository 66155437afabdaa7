"""A row knows what its example trains on."""

from __future__ import annotations

import pytest

from offbook.data.messages import Conversation, Message
from offbook.evaluation.subject import as_rows
from offbook.tokens.examples import supervised_spans, tokenize
from offbook.tokens.template import ChatTemplate

TURNS = (
    Message("user", "Who is there?"),
    Message("assistant", "Only me.", trained=False),
    *(
        Message(role, f"{text} {number}")
        for number in range(6)
        for role, text in (("user", "number"), ("assistant", "aye, the lamp is lit"))
    ),
)


@pytest.mark.parametrize("limit", [None, 120, 80])
def test_a_row_ends_with_the_last_reply_that_its_example_trains_on(
    template: ChatTemplate, limit: int | None
) -> None:
    long = Message("assistant", "no " * 200)  # which is left out where there is a limit
    talk = Conversation((*TURNS[:6], TURNS[6], long, *TURNS[8:]), "rows.json:1")
    other = Conversation(TURNS[2:4], "rows.json:2")
    rows = as_rows(tokenize([talk, other], template, limit), [talk, other])
    assert (len(rows) > 2) == (limit is not None)
    for row in rows:
        begin, end = supervised_spans(row.example.labels)[-1]
        said = template.parse_reply(row.example.input_ids[begin:end])
        assert said == row.conversation.messages[-1].content
    assert rows[-2].conversation == talk
