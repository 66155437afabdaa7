"""Templates and code that `probe` or `verify` must refuse, each with its reason."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from offbook.errors import ModelError
from offbook.tokens.examples import IGNORED, supervised_spans
from offbook.tokens.template import ChatTemplate
from support.tiny import DEEPSEEK_TEMPLATE, make_tokenizer

# Faults of a template.

MUTANTS = {
    "BOS doubled": (
        DEEPSEEK_TEMPLATE.replace("{{ bos_token }}", "{{ bos_token + bos_token }}"),
        "it begins with BOS twice",
    ),
    "EOS missing": (
        DEEPSEEK_TEMPLATE.replace(" + eos_token", ""),
        "no token ends a reply, so the model would never learn to stop",
    ),
    "EOS twice": (
        DEEPSEEK_TEMPLATE.replace("+ eos_token", "+ eos_token + eos_token"),
        "its stop token appears more than once after a reply",
    ),
    "space after Assistant: lost": (
        DEEPSEEK_TEMPLATE.replace("'Assistant: '", "'Assistant:'"),
        "the reply is glued to its header, '\\n\\nAssistant:Yes'",
    ),
    "space in the prompt as well as before the reply": (
        DEEPSEEK_TEMPLATE.replace("'Assistant:' }}", "'Assistant: ' }}"),
        "its tokens do not begin with those of its prompt",
    ),
    "another header in the prompt": (
        DEEPSEEK_TEMPLATE.replace("'Assistant:' }}", "'Bot:' }}"),
        "a training row does not begin with the prompt given at chat time",
    ),
    "reply changed": (
        DEEPSEEK_TEMPLATE.replace("'Assistant: ' + message['content']", "'Assistant: ' + 'x'"),
        "a training row does not begin with the prompt given at chat time",
    ),
    "not jinja": ("{% for %}", "it is not a jinja2 template: Expected an expression"),
    "refuses everything": (
        "{{ raise_exception('no') }}",
        "the chat template refuses it: no",
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_broken_template_is_refused_with_the_reason(name: str, tmp_path: Path) -> None:
    jinja, reason = MUTANTS[name]
    tokenizer = make_tokenizer(tmp_path, jinja)
    with pytest.raises(ModelError, match="the chat template cannot be trained on") as caught:
        ChatTemplate(tokenizer)
    assert reason in str(caught.value)


def test_a_model_without_a_template_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="it does not exist; use a chat model"):
        ChatTemplate(make_tokenizer(tmp_path, None))


# Faults of our own code.


class SpaceLost(ChatTemplate):
    def render(self, messages, add_generation_prompt=False):  # type: ignore[no-untyped-def]
        return super().render(messages, add_generation_prompt).replace("Assistant: ", "Assistant:")


class BosDoubled(ChatTemplate):
    def render(self, messages, add_generation_prompt=False):  # type: ignore[no-untyped-def]
        return "<s>" + super().render(messages, add_generation_prompt)


class StopUnsupervised(ChatTemplate):
    def build_example(self, conversation):  # type: ignore[no-untyped-def]
        example = super().build_example(conversation)
        example.labels[-1] = IGNORED
        return example


class HeaderSupervised(ChatTemplate):
    def build_example(self, conversation):  # type: ignore[no-untyped-def]
        example = super().build_example(conversation)
        for start, _ in supervised_spans(example.labels):
            example.labels[start - 1] = example.input_ids[start - 1]
        return example


class StopTwice(ChatTemplate):
    def build_example(self, conversation):  # type: ignore[no-untyped-def]
        example = super().build_example(conversation)
        ids = np.append(example.input_ids, example.input_ids[-1])
        return replace(example, input_ids=ids, labels=np.append(example.labels, IGNORED))


class OneReplySupervised(ChatTemplate):
    def build_example(self, conversation):  # type: ignore[no-untyped-def]
        example = super().build_example(conversation)
        for start, end in supervised_spans(example.labels)[:-1]:
            example.labels[start:end] = IGNORED
        return example


class AnotherPrompt(ChatTemplate):
    def build_prompt(self, messages):  # type: ignore[no-untyped-def]
        return super().build_prompt(messages)[:-1]


class LeadShown(ChatTemplate):
    def stream_reply(self, ids):  # type: ignore[no-untyped-def]
        yield self.traits.reply_lead
        yield from super().stream_reply(ids)


DIFFERS = "a training row differs from what the chat template writes"
PROMPT = "a training row does not begin with the prompt given at chat time"


@pytest.mark.parametrize(
    ("mutant", "reason"),
    [
        (SpaceLost, DIFFERS),
        (BosDoubled, DIFFERS),
        (StopTwice, DIFFERS),
        (HeaderSupervised, PROMPT),
        (AnotherPrompt, PROMPT),
        (StopUnsupervised, "the token that ends a reply is not supervised"),
        (OneReplySupervised, "1 of 2 replies are supervised"),
        (LeadShown, "reads back as"),
    ],
)
def test_broken_code_is_caught(
    mutant: type[ChatTemplate], reason: str, template: ChatTemplate
) -> None:
    with pytest.raises(ModelError, match="the chat template cannot be trained on") as caught:
        mutant(template.tokenizer)
    assert reason in str(caught.value)
