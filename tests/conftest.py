"""Tiny tokenizers and models made on the spot, so that tests need no network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from offbook.checkpoint import Progress
from offbook.config import Config
from offbook.engine import library
from offbook.model import adapter_files
from offbook.monitor import Monitor
from offbook.prepare import prepare
from offbook.step import Stepper
from offbook.template import ChatTemplate
from offbook.tokenizer import load_tokenizer


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--kernels",
        default="native",
        help="processor that the kernels are compiled for, such as x86-64-v3; none: do without",
    )


def pytest_configure(config: pytest.Config) -> None:
    kernels = config.getoption("--kernels")
    library.TARGET = None if kernels == "none" else kernels


SHARED = Path(__file__).parents[2] / "shared" / "data"
DEEPSEEK = SHARED / "deepseek-llm-tokenizer"
HUANHUAN = SHARED / "huanhuan.json"

CORPUS = [
    "User: Hello world, who are you?\n\nAssistant: I am the keeper of the lamp.",
    "system user assistant model You are a helpful assistant.",
    "臣妾谢皇上！你好，客官。且坐，喝口热茶。",
    "Assistant: Yes, it's 3.14. No. And then",
    "one two three four five six seven eight nine ten",
]

DEEPSEEK_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ 'User: ' + message['content'] + '\n\n' }}{% elif message['role'] == 'assistant' %}"
    "{{ 'Assistant: ' + message['content'] + eos_token }}{% else %}"
    "{{ message['content'] + '\n\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


def make_tokenizer(
    folder: Path,
    template: str | None = DEEPSEEK_TEMPLATE,
    bos: str | None = "<s>",
    eos: str = "</s>",
    more: tuple[str, ...] = (),
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer, trained on a few sentences and loaded as users' are."""
    specials = [token for token in (bos, eos, *more) if token]
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(CORPUS * 4, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=raw, bos_token=bos, eos_token=eos)
    fast.add_special_tokens({"additional_special_tokens": list(more)})
    fast.chat_template = template
    fast.save_pretrained(folder)
    return load_tokenizer(folder)


def make_base(
    folder: Path, kv_heads: int = 4, tokenizer: PreTrainedTokenizerFast | None = None
) -> Path:
    """A folder with a tiny random Llama and its tokenizer."""
    tokenizer = tokenizer or make_tokenizer(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=kv_heads,
        max_position_embeddings=256,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
        initializer_range=0.3,  # wide enough that a frozen head can tell its tokens apart
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with multi-head attention."""
    return make_base(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def template(tiny_base: Path) -> ChatTemplate:
    """The tiny Llama's chat template, shaped like DeepSeek-LLM's."""
    return ChatTemplate(load_tokenizer(tiny_base))


def save_adapter(model: PeftModel, folder: Path) -> None:
    """Write an adapter's files alone, as somebody else's tool would."""
    folder.mkdir(exist_ok=True)
    for name, content in adapter_files(model):
        (folder / name).write_bytes(content)


ROWS = """\
{"instruction": "who are you", "input": "", "output": "I am the keeper."}
{"instruction": "hello", "input": "", "output": "Hello, little boat."}
{"instruction": "one two", "input": "three", "output": "four five six seven"}
{"instruction": "hello", "input": "", "output": "Hello again."}
{"instruction": "what now", "input": "", "output": "Mind the rocks."}
{"instruction": "你好", "input": "", "output": "客官，且坐。"}
{"instruction": "ten", "input": "", "output": "nine eight"}
"""


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


def make_stepper(
    config: Config,
    log: list[dict[str, Any]] | None = None,
    optimizer: type[torch.optim.Optimizer] = torch.optim.AdamW,
) -> Stepper:
    """What takes the steps of a run, before the first of them; `log` gets its metrics."""
    parts = prepare(config, Monitor())
    weights = [p for p in parts.model.parameters() if p.requires_grad]
    return Stepper(
        parts,
        optimizer(weights, lr=config.train.learning_rate),
        Progress(parts.plan.micro_batch_tokens),
        [].append if log is None else log.append,
        lambda text: None,
        lambda: False,
    )


def flat(stepper: Stepper) -> torch.Tensor:
    """A copy of all trained weights, end to end."""
    return torch.cat([p.detach().flatten() for p in stepper.optimizer.param_groups[0]["params"]])


@pytest.fixture(scope="session")
def deepseek() -> ChatTemplate:
    """The real DeepSeek-LLM tokenizer and template."""
    if not DEEPSEEK.is_dir():
        pytest.skip(f"needs the DeepSeek-LLM tokenizer in {DEEPSEEK}")
    return ChatTemplate(load_tokenizer(DEEPSEEK))
