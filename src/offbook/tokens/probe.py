"""What a chat template does, found by rendering a few short conversations.

A template does not say whether it has a place for system text, or which token ends a reply. Its
source could be read for that, but there are many ways to write the same; its output is simple.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date

from offbook.data.conversations import Message
from offbook.errors import DataError
from offbook.tokens.encoding import TextEncoder
from offbook.tokens.render import Renderer

SYSTEM = Message("system", "You are 三娘, who keeps an inn.")
TURNS = (
    Message("user", "Hello world: 你好?"),
    Message("assistant", "Yes, it's 3.14.\n\n臣妾谢皇上！"),
    Message("user", "And  then"),
    Message("assistant", "No."),
)
# They differ in everything that a date consists of, the day of the week included.
DAYS = date(2001, 2, 3), date(2024, 11, 26)


@dataclass(frozen=True)
class TemplateTraits:
    """What a chat template does.

    Attributes:
        takes_system: whether it has a place for system text.
        keeps_turns: whether a finished turn stays the same when more turns follow.
        reply_lead: the text between the prompt and a reply's own text, such as the space after
            `Assistant:`. It is supervised, because the model has to write it.
        reply_tail: the text between a reply's own text and `stop_id`. It is supervised too.
        stop_id: the token that ends a reply.
        encodes_in_pieces: whether text that is encoded piece by piece, cut at its control tokens,
            gives the same ids as in one go; see `TextEncoder.encode_masked`.
        prints_date: whether the text depends on the day on which it is rendered.
    """

    takes_system: bool
    keeps_turns: bool
    reply_lead: str
    reply_tail: str
    stop_id: int
    encodes_in_pieces: bool
    prints_date: bool = False


def probe(renderer: Renderer, encoder: TextEncoder) -> TemplateTraits:
    """Find out what a template does.

    Raises:
        ModelError: when a reply does not follow its prompt, or no token ends it.
    """
    question, reply = TURNS[:2]
    try:
        prompt = renderer.render([question], add_generation_prompt=True)
        whole = renderer.render([question, reply])
    except DataError as error:
        raise renderer.refusal(error.what) from None
    if not whole.startswith(prompt) or reply.content not in whole[len(prompt) :]:
        raise renderer.refusal("a training row does not begin with the prompt given at chat time")
    lead, _, tail = whole[len(prompt) :].partition(reply.content)
    if not lead and (prompt[-1:].isalnum() or prompt[-1:] in ":："):
        raise renderer.refusal(
            f"the reply is glued to its header, {prompt[-12:] + reply.content[:3]!r}"
        )
    tail_ids, whole_ids = encoder.encode([tail, whole])
    stops = encoder.control_in(tail_ids)
    if not stops:
        raise renderer.refusal("no token ends a reply, so the model would never learn to stop")
    stop_text = next(text for text, index in encoder.control.items() if index == stops[0])
    return TemplateTraits(
        takes_system=_takes_system(renderer),
        keeps_turns=_keeps_turns(renderer, encoder, stops[0]),
        reply_lead=lead,
        reply_tail=tail.partition(stop_text)[0],
        stop_id=stops[0],
        encodes_in_pieces=encoder.encode_masked(whole, {}) == whole_ids,
        prints_date=_prints_date(renderer),
    )


def _takes_system(renderer: Renderer) -> bool:
    try:
        return SYSTEM.content in renderer.render([SYSTEM, *TURNS[:2]])
    except DataError:
        return False


def _keeps_turns(renderer: Renderer, encoder: TextEncoder, stop_id: int) -> bool:
    try:
        texts = [
            renderer.render(TURNS[:2]),
            renderer.render(TURNS[:3], add_generation_prompt=True),
            renderer.render(TURNS),
        ]
    except DataError:
        return False
    finished, prompt, whole = encoder.encode(texts)
    while finished[-1] != stop_id:  # what may come after the stop token is no part of the turn
        finished.pop()
    return prompt[: len(finished)] == finished and whole[: len(prompt)] == prompt


def _prints_date(renderer: Renderer) -> bool:
    first, second = map(renderer.on, DAYS)
    for messages in (TURNS[:1], TURNS[:3], TURNS, (SYSTEM, *TURNS[:1]), (SYSTEM, *TURNS)):
        prompt = messages[-1].role == "user"
        try:
            if first.render(messages, prompt) != second.render(messages, prompt):
                return True
        except DataError:
            continue
    return False
