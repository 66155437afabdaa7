"""Several runs of one base in llama.cpp, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest

pytest.importorskip("xllamacpp", reason="llama.cpp is not installed")

from offbook.errors import CheckpointError, ConfigError, EngineError
from offbook.inference.chat import Chat
from offbook.inference.generate import Sampling
from offbook.inference.model import FoundModel, find_model
from offbook.serve.chat import LlamaEngine, open_chat
from offbook.serve.engine import start
from offbook.serve.gguf import base_gguf
from offbook.tokens.template import ChatTemplate
from support.exports import train_run
from support.families import make_family
from support.tiny import DEEPSEEK_TEMPLATE

GREEDY = Sampling(temperature=0, max_new_tokens=24)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("engine")
    return train_run(folder, make_family("llama", folder / "base")).path


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "offbook"


@contextmanager
def exact_chat(path: Path, sampling: Sampling, base: str | None = None) -> Iterator[Chat]:
    """As `offbook chat` opens one, but in float32 and on one thread."""
    found = find_model(path, base=base)
    with start([found], "f32", threads=1) as engine:
        role = next(iter(engine.roles.values()))
        yield Chat(LlamaEngine(engine, role, sampling.seed), found.system, sampling)


def test_a_chat_says_the_same_with_both_engines(run: Path) -> None:
    torch = Chat.open(run, GREEDY)
    with exact_chat(run, GREEDY) as chat:
        assert chat.context == torch.context
        for question in ("who are you", "hello", "你好", "ten"):
            assert chat.ask(question) == torch.ask(question)
            assert (chat.finish_reason, chat.reply_tokens) == (
                torch.finish_reason,
                torch.reply_tokens,
            )
        assert chat.messages == torch.messages
        few = GREEDY.model_copy(update={"max_new_tokens": 4})
        chat.sampling = torch.sampling = few
        assert chat.ask("ten", base=True) == torch.ask("ten", base=True)
        assert (chat.finish_reason, chat.reply_tokens) == ("length", 4)
        for strength in (0.5, 1.5, 0):
            for one in (chat, torch):
                one.reset()
                one.set_strength(strength)
            assert chat.ask("ten") == torch.ask("ten")


def test_a_chat_can_be_repeated_with_its_seed(run: Path) -> None:
    sampled = Sampling(temperature=3, seed=5, max_new_tokens=12)

    def ask_twice() -> list[str]:
        with exact_chat(run, sampled) as chat:
            first = chat.ask("hello")
            chat.reset()
            return [first, chat.ask("hello")]

    first, second = ask_twice()
    assert ask_twice() == [first, second]
    assert first != second


def test_no_chat_begins_in_a_forked_process(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("offbook.engine.machine._forked", True)
    with pytest.raises(EngineError, match="was forked"), open_chat(run):
        pass


def test_an_adapter_and_a_whole_model_are_chatted_with(run: Path, tmp_path: Path) -> None:
    base = run.parent / "base"
    with exact_chat(run / "adapter", GREEDY, str(base)) as chat:
        tuned, untuned = chat.ask("hello"), chat.ask("hello", base=True)
    assert tuned == Chat.open(run, GREEDY).ask("hello")
    with exact_chat(base, GREEDY) as chat:
        assert chat.ask("hello") == untuned
        with pytest.raises(ConfigError, match="no adapter that could be left out"):
            chat.ask("hello", base=True)


def test_the_base_is_converted_once(run: Path, cache: Path) -> None:
    found, heard = find_model(run), list[str]()
    path = base_gguf(found, "f16", heard.append)
    assert heard == [f"converting the base for llama.cpp (f16), into {cache}"]
    changed = path.stat().st_mtime_ns
    assert base_gguf(found, "f16", heard.append) == path
    assert path.stat().st_mtime_ns == changed
    assert base_gguf(found, "q8_0", heard.append) != path
    assert len(heard) == 2
    assert {file.suffix for file in cache.iterdir()} == {".gguf"}
    # Other weights in the same place are another base.
    time.sleep(0.01)
    os.utime(found.base / "model.safetensors")
    assert base_gguf(found, "f16", heard.append) != path


def test_another_day_is_no_other_base(run: Path) -> None:
    found, heard = find_model(run), list[str]()

    def path_on(day: int, template: str) -> Path:
        found.template.tokenizer.chat_template = template
        today = ChatTemplate(found.template.tokenizer, date(2026, 1, day))
        return base_gguf(replace(found, template=today), "f16", heard.append)

    dated = "{{ strftime_now('%d %b %Y') + '\n' }}" + DEEPSEEK_TEMPLATE
    assert path_on(1, dated) == path_on(2, dated)
    assert len(heard) == 1
    # What ends a reply is in the file.
    assert path_on(1, dated.replace("eos_token", "bos_token")) != path_on(1, dated)


def test_what_cannot_be_together_is_named(run: Path, tmp_path: Path) -> None:
    def refuse(error: type[Exception], said: str, *paths: Path, **options: int) -> None:
        found: list[FoundModel] = [find_model(path) for path in paths]
        with pytest.raises(error, match=said), start(found, **options, threads=1):  # type: ignore[arg-type]
            pass

    copy = Path(shutil.copytree(run, tmp_path / "copies" / run.name))
    refuse(ConfigError, f"two models would have the name '{run.name}'; rename", run, copy)
    refuse(ConfigError, "two models would have the name 'base'", copy.rename(copy.parent / "base"))
    other = train_run(tmp_path, make_family("llama", tmp_path / "base", hidden_size=48))
    renamed = other.path.rename(tmp_path / "other")
    refuse(CheckpointError, "it has another base than .*; serve it from a process", run, renamed)
    refuse(ConfigError, "llama.cpp takes at most 256 tokens; give fewer", run, context=512)


def test_what_is_refused_is_served_as_advised(run: Path, tmp_path: Path) -> None:
    def roles(*paths: Path, context: int | None = None) -> list[str]:
        with start([find_model(path) for path in paths], context=context, threads=1) as engine:
            return list(engine.roles)

    copy = Path(shutil.copytree(run, tmp_path / run.name))
    with pytest.raises(ConfigError, match="rename the folder of one of them"):
        roles(run, copy)
    renamed = copy.rename(tmp_path / "keeper")
    assert roles(run, renamed) == ["run", "keeper", "base"]
    with pytest.raises(ConfigError, match="give fewer"):
        roles(run, context=257)
    assert roles(run, context=256) == ["run", "base"]
    elsewhere = tmp_path / "elsewhere"
    other = train_run(elsewhere, make_family("llama", elsewhere / "base", hidden_size=48)).path
    with pytest.raises(CheckpointError, match="serve it from a process of its own"):
        roles(renamed, other)
    assert roles(other) == ["run", "base"]


def test_a_context_ends_with_a_sliding_window(tmp_path: Path) -> None:
    base = make_family("mistral", tmp_path / "base", sliding_window=64)
    assert json.loads((base / "config.json").read_text())["max_position_embeddings"] == 256
    found = [find_model(base)]
    with pytest.raises(ConfigError, match="at most 64 tokens"), start(found, context=65):
        pass
    with start(found, threads=1) as engine:
        assert engine.context == 64


def test_dora_is_refused(tmp_path: Path) -> None:
    base = make_family("llama", tmp_path / "base")
    path = train_run(tmp_path, base, "lora.use_dora=true").path
    with (
        pytest.raises(CheckpointError, match="no DoRA adapters; export it as a whole model"),
        start([find_model(path)], threads=1),
    ):
        pass


def test_a_damaged_adapter_is_refused(run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "damaged"))
    weights = copy / "adapter" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CheckpointError), start([find_model(copy)], threads=1):
        pass
    config = copy / "adapter" / "adapter_config.json"
    values = json.loads(config.read_text())
    config.write_text(json.dumps(values | {"r": 3}))
    with pytest.raises(CheckpointError), start([find_model(copy)], threads=1):
        pass
