"""llama.cpp's engine: replies in pieces, and what it must not remember."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from offbook.data.messages import Message
from offbook.errors import ModelError
from offbook.export.gguf import write_lora, write_model
from offbook.export.weights import BaseWeights, LoraWeights
from offbook.inference.generate import Sampling
from offbook.inference.llamacpp import LlamaCpp
from offbook.runs.trained import TrainedRun
from support.exports import train_run
from support.families import make_family

pytest.importorskip("xllamacpp", reason="llama.cpp is not installed")

GREEDY = Sampling(temperature=0, max_new_tokens=16)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    folder = tmp_path_factory.mktemp("llamacpp")
    base = make_family("llama", folder / "base", max_position_embeddings=2**15)
    run = train_run(folder, base)
    weights = BaseWeights.of(run.base)
    write_model(folder / "base.gguf", weights, None, "f32", run.template)
    write_lora(folder / "lora.gguf", weights, LoraWeights.of(run.adapter, run.base))
    return run


@pytest.fixture
def engine(run: TrainedRun) -> Iterator[LlamaCpp]:
    folder = run.path.parent
    with LlamaCpp(folder / "base.gguf", [folder / "lora.gguf"], context=8192, threads=1) as engine:
        yield engine


def ids(run: TrainedRun, text: str) -> list[int]:
    return run.template.build_prompt([Message("user", text)])


def test_a_prompt_of_an_adapter_is_not_gone_on_with(run: TrainedRun, engine: LlamaCpp) -> None:
    """Fails with llama.cpp's cache of prompts, by default 8 GB, which ignores the adapter."""
    control = run.template.encoder.control.values()
    prompts = [ids(run, text) for text in ("who are you " * 20, "hello " * 20)]
    slot = -1  # llama.cpp chooses

    def reply(prompt: list[int], strength: float) -> str:
        return "".join(engine.stream(prompt, GREEDY, control, [strength], slot=slot))

    fresh = {}
    for strength in (0.0, 1.0):
        for number, prompt in enumerate(prompts):
            reply([7, 8, 9], strength)  # nothing in common
            fresh[number, strength] = reply(prompt, strength)
    assert fresh[0, 0.0] != fresh[0, 1.0]
    for strength in (1.0, 0.0, 1.0, 0.0, 0.0, 1.0):
        for number, prompt in enumerate(prompts):
            assert reply(prompt, strength) == fresh[number, strength]


def test_a_reply_says_how_it_ended(run: TrainedRun, engine: LlamaCpp) -> None:
    control = run.template.encoder.control.values()
    reply = engine.stream(ids(run, "who are you"), GREEDY, control, [1.0])
    text = "".join(reply)
    assert text == " I am the keeper."
    assert reply.stopped
    assert reply.tokens == len(run.template.encoder.encode([text])[0])
    few = GREEDY.model_copy(update={"max_new_tokens": 2})
    cut = engine.stream(ids(run, "who are you"), few, control, [1.0])
    assert "".join(cut) == " I am"
    assert (cut.stopped, cut.tokens) == (False, 2)
    ended = engine.stream(ids(run, "who are you"), GREEDY, control, [1.0], stop=[" keeper"])
    assert "".join(ended) == " I am the"
    assert ended.stopped


def test_a_reply_is_ended_from_another_thread(run: TrainedRun, engine: LlamaCpp) -> None:
    endless = GREEDY.model_copy(update={"max_new_tokens": 8000, "temperature": 5.0})
    # Without control tokens, no stop token either.
    for wait in (0.0, 0.05):
        reply = engine.stream(ids(run, "hello"), endless, [], [0.0])
        timer = threading.Timer(wait, reply.stop)
        timer.start()
        start = time.monotonic()
        "".join(reply)
        timer.join()
        assert time.monotonic() - start < wait + 1
        assert "".join(engine.stream(ids(run, "who are you"), GREEDY, [], [1.0]))


def test_what_llama_cpp_refuses_is_an_error(run: TrainedRun, engine: LlamaCpp) -> None:
    for prompt in ([10**6], ids(run, "hello " * 9000)):
        with pytest.raises(ModelError, match=r"llama\.cpp refuses a request: "):
            list(engine.stream(prompt, GREEDY, [], [1.0]))


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(ModelError, match=r"x\.gguf: llama\.cpp does not load it"):
        LlamaCpp(tmp_path / "x.gguf", threads=1)


def test_an_engine_that_is_not_used_ends(run: TrainedRun) -> None:
    for _ in range(30):
        with LlamaCpp(run.path.parent / "base.gguf", threads=1):
            pass
