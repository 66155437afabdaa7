"""Tiny tokenizers, models and rows, made in the test so that no network is needed."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from peft import PeftModel
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from offbook.models.adapter import adapter_files
from offbook.tokens.tokenizer import load_tokenizer

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
    added: tuple[str, ...] = (),
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer, trained on a few sentences and loaded as a user's is.

    `more` are further tokens with the flag "special", and `added` tokens without it.
    """
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
    fast.add_tokens([AddedToken(token, normalized=False) for token in added])
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


def save_adapter(model: PeftModel, folder: Path) -> None:
    """Write only the files of an adapter, as another tool would."""
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


def make_sentencepiece(folder: Path, prefix_every_piece: bool = True) -> PreTrainedTokenizerFast:
    """A tokenizer as Llama 2's: BPE over characters, a mark for spaces, bytes for the rest.

    Args:
        folder: to save it in.
        prefix_every_piece: whether text after a control token gets a space, as in Llama 2; else
            only text at the very beginning does, as in Mistral v0.3.
    """
    specials, byte_tokens = ["<unk>", "<s>", "</s>"], [f"<0x{value:02X}>" for value in range(256)]
    raw = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    raw.pre_tokenizer = pre_tokenizers.Metaspace()  # no piece goes on after a space
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=[*specials, *byte_tokens], show_progress=False
    )
    raw.train_from_iterator(CORPUS * 4, trainer)
    if prefix_every_piece:
        spaces = normalizers.Replace(" ", "▁")
        raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces])
        raw.pre_tokenizer = None
    else:
        raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    description = json.loads(raw.to_str())
    # The bytes are tokens of the model, not added ones.
    description["added_tokens"] = description["added_tokens"][: len(specials)]
    description["model"]["byte_fallback"] = True
    raw = Tokenizer.from_str(json.dumps(description))
    raw.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    fast.chat_template = DEEPSEEK_TEMPLATE
    fast.save_pretrained(folder)
    return load_tokenizer(folder)
