"""Where prompts end is known only where it is so, and then takes linear time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offbook.data.messages import Message
from offbook.errors import DataError
from offbook.tokens.render import Renderer
from offbook.tokens.template import ChatTemplate
from support.templates import FORMATS, talk
from support.tiny import make_tokenizer

SYSTEM = Message("system", "Be brief.")
TURNS = talk(*(f"turn {k}" for k in range(12))).messages
# They write one message after the other, and a constant header.
PLAIN = ("llama2", "llama3", "llama3.2", "chatml", "qwen2.5", "mistral-v1", "gemma", "phi3", "yi")
PLAIN += ("deepseek", "glm4")

LOOP = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
HEADER = "{% if add_generation_prompt %}[assistant]{% endif %}"
SCAN = "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}"
# In these, the text depends on messages that come later, or the header on those before.
LOOKING = {
    "last": LOOP.replace("[{{", "{% if loop.last %}!{% endif %}[{{") + HEADER,
    "last after": LOOP.replace("{% endfor", "{{ loop.revindex }}{% endfor") + HEADER,
    "length": LOOP.replace("[{{", "{{ loop.length }}[{{") + HEADER,
    "count": "{{ messages | length }}" + LOOP + HEADER,
    "final": "{{ messages[-1].role }}" + LOOP + HEADER,
    "next": LOOP.replace("[{{", "{{ loop.nextitem is defined }}[{{") + HEADER,
    "beyond": LOOP.replace("[{{", "{{ messages[loop.index] is defined }}[{{") + HEADER,
    "far": LOOP.replace("[{{", "{{ messages[7] is defined }}[{{") + HEADER,
    "scan": SCAN + "{{ ns.n }}" + LOOP + HEADER,
    "late scan": LOOP + SCAN + HEADER.replace("[a", "[{{ ns.n }}a"),
    "counted": "{% set ns = namespace(n=0) %}"
    + LOOP.replace("{% endfor", "{% set ns.n = ns.n + 1 %}{% endfor")
    + HEADER.replace("[a", "[{{ ns.n }}a"),
    "macro": "{% set ns = namespace(n='') %}{% macro end() %}[{{ ns.n }}assistant]{% endmacro %}"
    + LOOP.replace("{% endfor", "{% set ns.n = m.content %}{% endfor")
    + "{% if add_generation_prompt %}{{ end() }}{% endif %}",
    "header reads": LOOP + HEADER.replace("[a", "[{{ messages[0].content }}a"),
    "break": LOOP.replace("[{{", "{% if '9' in m.content %}{% break %}{% endif %}[{{") + HEADER,
    "continue": LOOP.replace("[{{", "{% if '4' in m.content %}{% continue %}{% endif %}[{{")
    + HEADER,
    "reversed": LOOP.replace("in messages", "in messages | reverse") + HEADER,
    "chosen": LOOP.replace("in messages", "in messages | selectattr('role', 'eq', 'user')")
    + HEADER,
    "tested": LOOP.replace("in messages", "in messages if m.content != 'turn 3'") + HEADER,
    "else": LOOP.replace("{% endfor", "{% else %}none{% endfor") + HEADER,
    "copied": "{% set all = messages | list %}" + LOOP.replace("in messages", "in all") + HEADER,
    "two loops": LOOP + LOOP + HEADER,
    "other loop": LOOP + "{% for x in [1, 2] %}{{ x }}{% endfor %}" + HEADER,
    "no loop": "{{ messages[0].content }}{{ messages[1].content }}" + HEADER,
    "branches": "{% if messages[0].role == 'system' %}"
    + LOOP
    + "{% else %}"
    + LOOP
    + "{% endif %}"
    + HEADER,
    "flag first": "{% if add_generation_prompt %}>{% endif %}" + LOOP + HEADER,
    "flag inside": LOOP.replace("[{{", "{{ add_generation_prompt }}[{{") + HEADER,
    "printed": "{{ messages }}" + LOOP + HEADER,
    "word": LOOP.replace("[{{", "{% if 'turn 4' in m.content and loop.last %}!{% endif %}[{{")
    + HEADER,
}


def renderer(folder: Path, name: str) -> Renderer:
    form = FORMATS[name]
    tokenizer = make_tokenizer(folder, form.template, form.bos, form.eos, form.special, form.added)
    return Renderer(tokenizer)


def known(template: Renderer, messages: Sequence[Message]) -> dict[int, int]:
    """The lengths of prompts, each compared with the prompt itself."""
    text = template.render(messages)
    found = template.prompt_lengths(messages, text)
    for k, length in found.items():
        assert template.render(messages[:k], add_generation_prompt=True) == text[:length]
    return found


@pytest.mark.parametrize("name", FORMATS)
def test_what_is_known_of_published_templates_is_so(tmp_path: Path, name: str) -> None:
    template = renderer(tmp_path, name)
    form = FORMATS[name]
    words = (*form.special, *form.added, form.eos, "<think>", "</think>", "a", " ", "\n", "x {{ y")

    @settings(max_examples=25, derandomize=True, database=None, deadline=None)
    @given(
        st.lists(st.lists(st.sampled_from(words), min_size=1).map("".join), min_size=2),
        st.booleans(),
    )
    def holds(texts: list[str], system: bool) -> None:
        messages = [*([SYSTEM] if system else []), *talk(*texts).messages]
        try:
            found = known(template, messages)
        except DataError:  # it takes no system text
            return
        if name in PLAIN:
            assert {k for k, m in enumerate(messages) if m.role == "assistant"} <= found.keys()

    holds()


@pytest.mark.parametrize("name", LOOKING)
def test_what_depends_on_other_messages_is_not_known(tmp_path: Path, name: str) -> None:
    template = Renderer(make_tokenizer(tmp_path, LOOKING[name]))
    for count in range(2, len(TURNS) + 1):
        known(template, TURNS[:count])
        known(template, [SYSTEM, *TURNS[:count]])


@pytest.mark.parametrize("name", [*PLAIN, "r1-january"])
def test_a_long_conversation_is_the_same_example_as_with_each_prompt_rendered(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = ChatTemplate(renderer(tmp_path, name)._tokenizer)
    for row in (talk(*(m.content for m in TURNS)), talk(*(f"</s> {k}<|end|>" for k in range(16)))):
        fast = template.build_example(row)
        with monkeypatch.context() as patch:
            patch.setattr(Renderer, "prompt_lengths", lambda *_: {})
            slow = template.build_example(row)
        assert fast.input_ids.tolist() == slow.input_ids.tolist()
        assert fast.labels.tolist() == slow.labels.tolist()


@pytest.mark.parametrize("name", PLAIN)
def test_what_is_rendered_is_linear_in_the_turns(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = ChatTemplate(renderer(tmp_path, name)._tokenizer)
    rendered: list[int] = []
    render = Renderer.render

    def count(self: Renderer, *arguments: object, **more: object) -> str:
        text = render(self, *arguments, **more)  # type: ignore[arg-type]
        rendered.append(len(text))
        return text

    monkeypatch.setattr(Renderer, "render", count)
    row = talk(*(f"And drawer {k}?" for k in range(400)))
    template.build_examples([row])
    # The conversation, once more without its texts, and its first and last prompt.
    assert sum(rendered) <= 3.1 * max(rendered)
