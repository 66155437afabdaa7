"""What a chat template does, found by rendering a few short conversations.

A template does not say whether it has a place for system text, or which token ends a reply. Its
source could be read for that, but there are many ways to write the same; its output is simple.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date

from offbook.data.messages import Message
from offbook.errors import DataError
from offbook.tokens.encoding import TextEncoder
from offbook.tokens.reasoning import CLOSE, OPENING
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
        opening: the "<think>" and white space with which a prompt ends; empty where it does not.
        writes_replies: whether a reply in a conversation follows its prompt. Some templates end a
            prompt with `opening` and leave it out of finished turns.
        reply_lead: the text between the prompt and a reply's own text, such as the space after
            `Assistant:`. It is supervised, because the model has to write it.
        reply_tail: the text between a reply's own text and `stop_id`. It is supervised too.
        ends_replies: whether the last reply has a stop token. In some templates, only the header
            of the next user turn ends a reply.
        stop_text, stop_id: the token that ends a reply.
        prints_date: whether the text depends on the day on which it is rendered.
    """

    takes_system: bool
    keeps_turns: bool
    opening: str
    writes_replies: bool
    reply_lead: str
    reply_tail: str
    ends_replies: bool
    stop_text: str
    stop_id: int
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
    match = OPENING.search(prompt)
    opening = match[0] if match else ""
    writes_replies = whole.startswith(prompt)
    header = prompt if writes_replies else prompt.removesuffix(opening)
    if not whole.startswith(header) or reply.content not in whole[len(header) :]:
        raise renderer.refusal("a training row does not begin with the prompt given at chat time")
    lead, _, tail = whole[len(header) :].partition(reply.content)
    if not writes_replies:
        lead = f"\n{CLOSE}\n\n"  # a reply without reasoning closes the block at once
    if not lead and (prompt[-1:].isalnum() or prompt[-1:] in ":："):
        raise renderer.refusal(
            f"the reply is glued to its header, {prompt[-12:] + reply.content[:3]!r}"
        )
    (tail_ids,) = encoder.encode([tail])
    stops = encoder.control_in(tail_ids)
    ends_replies = bool(stops)
    if not stops:
        stops = _next_header(renderer, encoder, whole)
        tail = ""
    if not stops:
        raise renderer.refusal("no token ends a reply, so the model would never learn to stop")
    stop_text = next(text for text, index in encoder.control.items() if index == stops[0])
    return TemplateTraits(
        takes_system=_takes_system(renderer),
        keeps_turns=writes_replies and _keeps_turns(renderer, encoder, stops[0], ends_replies),
        opening=opening,
        writes_replies=writes_replies,
        reply_lead=lead,
        reply_tail=tail.partition(stop_text)[0],
        ends_replies=ends_replies,
        stop_text=stop_text,
        stop_id=stops[0],
        prints_date=_prints_date(renderer),
    )


def sample(renderer: Renderer) -> str:
    """Text with all that a template writes around messages.

    Raises:
        ModelError: when it refuses a question.
    """
    texts = []
    for messages in ([SYSTEM, *TURNS], TURNS, TURNS[:1]):
        try:
            texts.append(renderer.render(messages))
            texts.append(renderer.render(messages[:-1] or messages, add_generation_prompt=True))
        except DataError as error:
            refused = error
    if not texts:
        raise renderer.refusal(refused.what)
    return "".join(texts)


def _next_header(renderer: Renderer, encoder: TextEncoder, finished: str) -> list[int]:
    """The control token that follows a reply directly, where a user turn comes next."""
    try:
        text = renderer.render(TURNS[:3])
    except DataError:
        return []
    ids, after = encoder.encode([finished, text])
    following = after[len(ids) : len(ids) + 1] if text.startswith(finished) else []
    return encoder.control_in(following)


def turn_tokens(renderer: Renderer, encoder: TextEncoder) -> int:
    """About how many tokens a template writes around each message."""
    question, reply = TURNS[:2]
    try:  # a second turn tells what is written for each turn and what only once
        texts = [renderer.render(TURNS[:2]), renderer.render([*TURNS[:2], *TURNS[:2]])]
    except DataError:
        return 1
    one, two, *own = map(len, encoder.encode([*texts, question.content, reply.content]))
    return max((two - one - sum(own)) // 2, 1)


def _takes_system(renderer: Renderer) -> bool:
    try:
        return SYSTEM.content in renderer.render([SYSTEM, *TURNS[:2]])
    except DataError:
        return False


def _keeps_turns(
    renderer: Renderer, encoder: TextEncoder, stop_id: int, ends_replies: bool
) -> bool:
    try:
        texts = [
            renderer.render(TURNS[:2]),
            renderer.render(TURNS[:3], add_generation_prompt=True),
            renderer.render(TURNS),
        ]
    except DataError:
        return False
    finished, prompt, whole = encoder.encode(texts)
    while (
        ends_replies and finished[-1] != stop_id
    ):  # what may come after the stop token is no part of the turn
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
