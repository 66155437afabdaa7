"""The files of a finished adapter: PEFT's two, the tokenizer, and a README that says what it is."""

from __future__ import annotations

import html
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from peft import PeftModel

from offbook.models.adapter import adapter_files
from offbook.models.adapter_config import notes_for_readers
from offbook.models.gguf import source_of
from offbook.runs.receipt import Receipt
from offbook.settings.config import Config
from offbook.settings.sections import EMBEDDED_BASE
from offbook.tokens.template import ChatTemplate
from offbook.tokens.tokenizer import tokenizer_files

CARD = """\
---
{base_model}library_name: peft
pipeline_tag: text-generation
tags:
- lora
- offbook
---

# {title}

A LoRA adapter for {base}, trained with offbook {version}. The files beside it are
the base's tokenizer and chat template.
{notes}
## Use

```python
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer

folder = "."  # the one that this file is in
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoPeftModelForCausalLM.from_pretrained(folder)
messages = {messages}
prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt").input_ids
reply = model.generate(input_ids=ids, max_new_tokens=200, do_sample=False, eos_token_id={stop_id})
print(tokenizer.decode(reply[0, ids.shape[1] :], skip_special_tokens=True))
```

`model.merge_and_unload()` gives the base with the adapter merged into its weights.

## Training

| | |
|---|---|
{facts}
"""


def finished_adapter(
    model: PeftModel, config: Config, receipt: Receipt, base: Path, template: ChatTemplate
) -> Iterator[tuple[str, bytes]]:
    """The name and content of each file of a run's result.

    Args:
        model: with the adapter.
        config: of the run.
        receipt: of the run.
        base: the folder of the base.
        template: of its chats.
    """
    yield from adapter_files(model)
    yield from tokenizer_files(template.tokenizer, base, template.renderer.source)
    adapter = model.peft_config["default"]
    name, revision = str(adapter.base_model_name_or_path), adapter.revision
    yield "README.md", make_card(config, receipt, base, template, name, revision)


def make_card(
    config: Config,
    receipt: Receipt,
    base: Path,
    template: ChatTemplate,
    name: str,
    revision: str | None,
    results: Mapping[str, str] | None = None,
) -> bytes:
    """The README of an adapter.

    Args:
        config: of the run.
        receipt: of the run.
        base: the folder of the base.
        template: of its chats.
        name: by which other programs load the base.
        revision: of a base on the hub.
        results: what is known of how good it is.
    """
    notes = notes_for_readers(config.lora)
    if config.model.base == EMBEDDED_BASE:
        notes.append(
            "it was trained on that model's weights in 4 bits, so replies may differ a little on "
            "the model itself"
        )
    elif Path(name).is_absolute():
        notes.append(
            "the base is named by its path on the machine that trained; elsewhere, change "
            "`base_model_name_or_path` in `adapter_config.json`"
        )
    system = [{"role": "system", "content": config.data.system}] if config.data.system else []
    facts = {
        **(results or {}),
        "base": name,
        "revision of the base": revision,
        **{f"{key} of the base's GGUF": value for key, value in source_of(base).items()},
        "fingerprint of its weights": receipt.base.get("weights"),
        "rows": f"{receipt.rows.training:,}" if receipt.rows else None,
        **{f"SHA-256 of {file}": digest for file, digest in receipt.data.items()},
        **{f"{section}.{key}": _shown(value) for section, key, value in _settings(config)},
        **{f"version of {package}": number for package, number in receipt.versions.items()},
    }
    text = CARD.format(
        base_model="" if Path(name).is_absolute() else f"base_model: {name}\n",
        title=Path(config.output_dir).name,
        base=name,
        version=receipt.versions.get("offbook"),
        notes="".join(f"\n- {note}" for note in notes) + ("\n" if notes else ""),
        messages=json.dumps([*system, {"role": "user", "content": "Who are you?"}]),
        stop_id=template.stop_id,
        facts="\n".join(
            f"| {_cell(key)} | {_cell(value)} |" for key, value in facts.items() if value
        ),
    )
    return text.encode()


def _settings(config: Config) -> Iterator[tuple[str, str, object]]:
    """The settings that decide the result, but no paths."""
    yield "model", "precision", config.model.precision
    yield "model", "quantization", config.model.quantization
    for key, value in config.lora:
        yield "lora", key, value
    for key in ("num_train_epochs", "max_steps", "batch_size", "learning_rate", "seed"):
        yield "train", key, getattr(config.train, key)


def _shown(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _cell(value: object) -> str:
    """A value in a table: on one line, and neither HTML nor the end of the cell."""
    return html.escape(" ".join(str(value).split()), quote=False).replace("|", r"\|")
