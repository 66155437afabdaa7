"""What a chat template may contain, and how long it may run."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch  # noqa: F401  # loaded before memory is limited

from offbook.data.messages import Conversation, Message
from offbook.errors import DataError
from offbook.models.base import resolve_base
from offbook.tokens import sandbox
from offbook.tokens.sandbox import check_source, within_limits
from offbook.tokens.template import ChatTemplate
from offbook.tokens.tokenizer import load_tokenizer
from support.templates import PUBLISHED, REWRITING
from support.tiny import DEEPSEEK_TEMPLATE, make_tokenizer

# Idioms of published templates: Llama 3.1 (dates, indented JSON), Qwen 3 (reverse loops,
# namespaces), gpt-oss and Gemma 4 (macros), SmolLM 3 (generation blocks), Command R (control flow).
IDIOMS = (
    "{%- set date = strftime_now('%d %b %Y') if strftime_now is defined else '26 Jul 2024' -%}"
    "{{ tools | tojson(indent=4) }}",
    "{% set ns = namespace(last=messages|length - 1) %}{% for message in messages[::-1] %}"
    "{% set index = (messages|length - 1) - loop.index0 %}"
    "{% if ns.last and message.content.startswith('<tool>') %}{% set ns.last = index %}{% endif %}"
    "{{ message.content.split('</think>')[-1].lstrip('\\n') }}{% endfor %}",
    "{% macro m(d) %}{% for k, v in d|dictsort %}{{ k|upper }}:{{ m(v) }}{% endfor %}{% endmacro %}"
    "{% if (messages[0]['role'] == 'user') != (loop.index0 % 2 == 0) %}{% endif %}"
    "{{ raise_exception('Roles must alternate.') }}{{ '  ' * 2 }}{{ '%s: %d' % ('a', 1) }}",
    "{% for m in messages %}{% generation %}{{ m.content | trim | indent(2) }}{% endgeneration %}"
    "{% if loop.last %}{% break %}{% endif %}{% continue %}{% endfor %}"
    "{{ documents | tojson(ensure_ascii=False, separators=(',', ': ')) }}{{ level * '  ' }}"
    "{{ '{}: {:>4}'.format('a', 2) }}{{ x | selectattr('role', 'equalto', 'user') | list }}",
)

BUSY = {
    "{{ 2 ** n }}": "line 1 computes a power",
    "\n{{ n * n }}": "line 2 multiplies by something that is not a small constant",
    "{{ 'x' * 1000000 * n }}": "line 1 multiplies by",
    "{{ 'x'.center(n) }}": "line 1 calls center with",
    "{{ 'x' | center(10000000) }}": "line 1 calls center with",
    "{{ 'x'.ljust(*n) }}": "line 1 calls ljust with",
    "{{ 1.5 | round(n) }}": "line 1 calls round with",
    "{{ '%1000000000d' % 1 }}": "line 1 formats text to a large width",
    "{{ '%*d' % (n, 1) }}": "line 1 formats text to a large width",
    "{{ '{:1000000000}'.format(1) }}": "line 1 formats text to a large width",
    "{{ '{:{}}'.format(1, n) }}": "line 1 formats text to a large width",
    "{{ '%99999d' | format(1) }}": "line 1 formats text to a large width",
    "{{ x | urlize }}": "line 1 uses the filter urlize",
    "{{ [1, 2] | random }}": "line 1 uses the filter random",
    "{% set x = lipsum %}": "line 1 uses lipsum",
    "{% import 'x' as y %}": "line 1 uses another file",
    "{% from 'x' import y %}": "line 1 uses another file",
    "{% include x %}": "line 1 uses another file",
    "{% extends 'x' %}": "line 1 uses another file",
    "x" * (2**20 + 1): "it has 1,048,577 characters",
    "{{ " + "(" * 10**5 + ")" * 10**5 + " }}": "it is nested too deeply",
}

SPIN = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "SECONDS", 0.2)


@pytest.mark.parametrize(
    "source", [*(entry[0] for entry in PUBLISHED.values()), REWRITING, *IDIOMS]
)
def test_published_templates_pass(source: str) -> None:
    check_source(source)


def test_the_embedded_models_template_passes() -> None:
    check_source(load_tokenizer(resolve_base("smollm2-135m")).get_chat_template())


def test_deepseeks_template_passes(deepseek: ChatTemplate) -> None:
    check_source(deepseek.tokenizer.get_chat_template())


@pytest.mark.parametrize("source", BUSY, ids=[source[:40] for source in BUSY])
def test_an_instruction_that_cannot_be_interrupted_is_refused(source: str) -> None:
    with pytest.raises(ValueError, match=BUSY[source]):
        check_source(source)


def test_work_that_does_not_end_is_stopped(quick: None) -> None:
    started = time.monotonic()
    with pytest.raises(DataError, match=r"the chat template has not finished after 0\.2 seconds"):
        within_limits(lambda: [None for _ in iter(int, 1)])
    assert time.monotonic() - started < 10
    assert within_limits(lambda: "next") == "next"


def test_the_limit_is_for_one_rendering_not_for_a_batch(quick: None) -> None:
    def one() -> int:
        return within_limits(lambda: time.sleep(0.01) or 1)

    assert sum(within_limits(lambda: [one() for _ in range(100)])) == 100


@pytest.mark.skipif(not sandbox.STATM.exists(), reason="Linux alone limits memory")
def test_work_that_uses_too_much_memory_is_stopped_and_the_limit_removed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sandbox, "MEMORY", 2**26)
    before = sandbox.resource.getrlimit(sandbox.resource.RLIMIT_AS)
    with pytest.raises(DataError, match=r"the chat template needs more than 0\.0625 GB of memory"):
        # More than the process can have free from earlier use.
        within_limits(lambda: [bytearray(2**27) for _ in range(100)])
    assert sandbox.resource.getrlimit(sandbox.resource.RLIMIT_AS) == before
    assert len(bytearray(2**27)) == 2**27


@pytest.fixture
def other_thread() -> Iterator[list[int]]:
    """A thread that goes on allocating 128 MB; how many it got, and then -1 where it failed."""
    sizes, go_on = [0], [True]

    def allocate() -> None:
        try:
            while go_on:
                sizes.append(len(bytearray(2**27)))
                time.sleep(0.001)
        except MemoryError:
            sizes.append(-1)

    thread = threading.Thread(target=allocate)
    thread.start()
    yield sizes
    go_on.clear()
    thread.join()


@pytest.mark.skipif(not sandbox.STATM.exists(), reason="Linux alone limits memory")
def test_the_memory_of_other_threads_is_not_limited(
    other_thread: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sandbox, "MEMORY", 2**26)
    for _ in range(3):
        with pytest.raises(DataError, match=r"needs more than 0\.0625 GB of memory"):
            within_limits(lambda: [bytearray(2**27) for _ in range(100)])
    before = len(other_thread)
    assert within_limits(lambda: time.sleep(0.2) or "done") == "done"
    assert len(other_thread) > before
    assert -1 not in other_thread


def test_limits_and_errors_beside_other_threads(other_thread: list[int], quick: None) -> None:
    with pytest.raises(DataError, match=r"has not finished after 0\.2 seconds"):
        within_limits(lambda: [None for _ in iter(int, 1)])
    with pytest.raises(KeyError, match="x"):
        within_limits(lambda: {}["x"])
    with pytest.raises(DataError, match="its own"):
        within_limits(lambda: exec("raise E('its own')", {"E": DataError}))
    assert within_limits(lambda: within_limits(lambda: 1) + 1) == 2
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)  # none is left


def test_errors_of_the_work_are_raised_and_end_the_limits(quick: None) -> None:
    with pytest.raises(KeyError):
        within_limits(lambda: {}["x"])
    time.sleep(0.5)  # a watchdog that still watched would bite here
    assert within_limits(lambda: 1) == 1


def test_no_exception_arrives_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """Work that ends just at the time limit either returns or fails; nothing is raised later."""
    monkeypatch.setattr(sandbox, "SECONDS", 0.01)
    outcomes = {"done": 0, "late": 0}
    for k in range(60):
        until = time.monotonic() + 0.005 + k % 10 * 0.006
        try:
            within_limits(
                lambda until=until: [None for _ in iter(lambda: time.monotonic() < until, 0)]
            )
            outcomes["done"] += 1
        except DataError:
            outcomes["late"] += 1
        for _ in range(1000):  # bytecode in which a late exception would arrive
            pass
    assert all(outcomes.values())
    assert sum(outcomes.values()) == 60


def test_threads_render_one_after_the_other(quick: None) -> None:
    results: list[str] = []

    def render(name: str) -> None:
        try:
            within_limits(lambda: [None for _ in iter(int, 1)] if name == "endless" else None)
            results.append(name)
        except DataError:
            results.append(f"{name} stopped")

    threads = [threading.Thread(target=render, args=[name]) for name in ("endless", "a", "b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == ["a", "b", "endless stopped"]


def test_a_template_that_spins_on_one_row_is_stopped_there(quick: None, tmp_path: Path) -> None:
    source = "{% if 'spin' in messages[0].content %}" + SPIN + "{% endif %}" + DEEPSEEK_TEMPLATE
    template = ChatTemplate(make_tokenizer(tmp_path, source))
    rows = [
        Conversation((Message("user", text), Message("assistant", "Yes.")), "rows.json:1")
        for text in ("hello", "spin")
    ]
    assert template.build_examples(rows[:1])
    with pytest.raises(DataError, match="the chat template has not finished"):
        template.build_examples(rows)
