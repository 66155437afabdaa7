"""The proof, for the model in hand, that its chat template can be trained on.

A chat model has learned one exact format: a header before each turn, and a token that ends it. If
fine-tuning uses a slightly different format, nothing fails. The loss falls and the run ends, but
the model does not stop, or writes its own header, or loses its role, because the prompt at chat
time is not the one it was trained to continue. No log shows this.

A copy of each model's format in our code could differ from the original, so there is none: the
tokenizer's own template is used. But a template is a program, written for chat and not for
training, and our code adds steps to it. So neither is trusted. `verify` builds examples from a few
conversations, compares them with what the tokenizer makes of the same text, and requires:

1. The ids are the tokenizer's own: encoding the whole rendered text gives the same ids. This rules
   out faults of our code, such as a lost space.
2. At most one BOS begins a conversation. Template and tokenizer might each add one, but the model
   was trained with one.
3. Prefix: the ids before each reply are those of the prompt at chat time. This rules out two forms
   of a header ("Assistant:" and "Assistant: "), and a token that spans prompt and reply.
4. Supervised span: each reply has one, which ends with the stop token. This rules out labels masked
   by pad id, because the pad token is often the stop token.
5. One stop token after the last reply begins. With none, the model never learns to stop; with two,
   it learns to write one that generation never reaches.
6. Parsing is the inverse of building: `parse_reply` turns each span into exactly the reply.
   This rules out a template that trims or changes replies, and a header that is trained on.

The probes contain what tokenizers and templates often get wrong: double spaces, line breaks,
digits, Chinese next to Latin text, one turn and two, with system text and without. They cannot show
everything. A template may branch on any word of a message, so `ChatTemplate` checks the prefix, the
number of control tokens and the text of each reply again for every row. And no probe shows that the
model was trained with this template; for that, its publisher has to be trusted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from offbook.data.messages import Conversation
from offbook.errors import DataError
from offbook.tokens.examples import supervised_spans
from offbook.tokens.probe import SYSTEM, TURNS
from offbook.tokens.render import move_system_text

if TYPE_CHECKING:
    from offbook.tokens.template import ChatTemplate


def verify(template: ChatTemplate) -> None:
    """Prove a template on a few conversations.

    Raises:
        ModelError: naming the property that does not hold.
    """
    probes = [TURNS[:2], (SYSTEM, *TURNS[:2])]
    if template.traits.keeps_turns:
        probes += [TURNS, (SYSTEM, *TURNS)]
    for messages in probes:
        try:
            reason = _fault(template, Conversation(messages))
        except DataError as error:
            reason = error.what
        if reason:
            raise template.renderer.refusal(reason)


def _fault(template: ChatTemplate, conversation: Conversation) -> str | None:
    """The first property that does not hold for this conversation."""
    example = template.build_example(conversation)
    ids, spans = example.input_ids.tolist(), supervised_spans(example.labels)
    messages = conversation.messages
    own = messages if template.traits.takes_system else move_system_text(messages)
    text = template.renderer.render(own)
    if not template.traits.ends_replies:
        text += template.traits.stop_text
    own_ids = template.tokenizer.encode(text, add_special_tokens=False)
    if template.traits.writes_replies and ids != own_ids:
        return "a training row differs from what the chat template writes"
    if ids[:2] == [template.tokenizer.bos_token_id] * 2:
        return "it begins with BOS twice"
    if len(spans) != len(conversation.replies):
        return f"{len(spans)} of {len(conversation.replies)} replies are supervised"
    for (start, end), k in zip(spans, conversation.replies, strict=True):
        if ids[:start] != template.build_prompt(messages[:k]):
            return "a training row does not begin with the prompt given at chat time"
        if ids[end - 1] != template.stop_id:
            return "the token that ends a reply is not supervised"
        reply, parsed = messages[k].content, template.parse_reply(ids[start:end])
        if parsed != reply:
            return f"{reply!r} reads back as {parsed!r}"
    if ids[spans[-1][0] :].count(template.stop_id) != 1:
        return "its stop token appears more than once after a reply"
    return None
