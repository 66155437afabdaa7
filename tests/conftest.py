"""Fixtures that many tests share, and which kernels are tested."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when the kernels are imported

from offbook.engine.ops import library
from offbook.settings.config import Config
from offbook.signals import STOPPING
from offbook.tokens.template import ChatTemplate
from offbook.tokens.tokenizer import load_tokenizer
from support import engines
from support.shared import DEEPSEEK
from support.tiny import ROWS, make_base


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--kernels",
        default="native",
        help="processor that the kernels are compiled for, such as x86-64-v3; none: do without",
    )
    parser.addoption("--device", default="cpu", help="that the engine's tests compute on")


def pytest_configure(config: pytest.Config) -> None:
    for kind in STOPPING:  # as in a terminal: a background job ignores some, as do its children
        if signal.getsignal(kind) is signal.SIG_IGN:
            default = signal.default_int_handler if kind == signal.SIGINT else signal.SIG_DFL
            signal.signal(kind, default)
    kernels = config.getoption("--kernels")
    library.TARGET = None if kernels == "none" else kernels
    engines.DEVICE = torch.device(config.getoption("--device"))


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with multi-head attention."""
    return make_base(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def template(tiny_base: Path) -> ChatTemplate:
    """The tiny Llama's chat template, shaped like DeepSeek-LLM's."""
    return ChatTemplate(load_tokenizer(tiny_base))


@pytest.fixture
def tiny_config(tiny_base: Path, tmp_path: Path) -> Callable[..., Config]:
    """Settings for a run of the tiny Llama on seven rows, with overrides."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text(ROWS, encoding="utf-8")

    def make(*overrides: str) -> Config:
        return Config.load(
            None,
            [
                f"model.base={tiny_base}",
                "model.precision=float32",
                f"data.train={rows}",
                "data.validation=0.2",
                "lora.lora_dropout=0.1",
                "train.batch_size=3",
                "train.learning_rate=0.01",
                "train.max_steps=5",
                "train.logging_steps=1",
                f"output_dir={tmp_path / 'run'}",
                *overrides,
            ],
        )

    return make


@pytest.fixture(scope="session")
def deepseek() -> ChatTemplate:
    """The real DeepSeek-LLM tokenizer and template."""
    if not DEEPSEEK.is_dir():
        pytest.skip(f"needs the DeepSeek-LLM tokenizer in {DEEPSEEK}")
    return ChatTemplate(load_tokenizer(DEEPSEEK))
