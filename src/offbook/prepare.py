"""Everything a run is made of, loaded and checked, cheapest first so that mistakes show early."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftModel

from offbook.base import resolve_base
from offbook.batching import Batch, micro_batches
from offbook.config import Config
from offbook.data import ConversationReader, read_conversations
from offbook.examples import Examples, tokenize
from offbook.model import attach_adapter, base_of, choose_device, choose_precision, load_base
from offbook.monitor import Monitor
from offbook.template import ChatTemplate, Example
from offbook.tokenizer import load_tokenizer, quiet_transformers

# Tokens of a padded micro-batch: few on a processor, so that a layer's activations stay near its
# caches; a GPU wants more work at a time. The result does not depend on it.
MICRO_BATCH_TOKENS = {"cpu": 512, "cuda": 8192}


@dataclass(frozen=True)
class Parts:
    """What a run is made of, loaded."""

    config: Config
    base: Path
    template: ChatTemplate
    data: tuple[Path, ...]
    training: Examples
    validation: Examples
    model: PeftModel
    device: torch.device

    def batches(self, examples: Sequence[Example]) -> list[Batch]:
        """Examples as micro-batches for this device."""
        return micro_batches(examples, MICRO_BATCH_TOKENS[self.device.type], self.device)


def prepare(config: Config, monitor: Monitor) -> Parts:
    """Load what `config` names. The result's config has its precision resolved."""
    device = choose_device()
    base = resolve_base(config.model.base, config.model.revision, monitor.announce)
    template = ChatTemplate(load_tokenizer(base))
    for note in template.notes:
        monitor.announce(note)
    reader = read_conversations(config.data.train, config.data)
    monitor.announce(reader.describe())
    training, validation, files = _examples(config, template, reader, monitor)
    dtype = choose_precision(config.model.precision, device)
    precision = str(dtype).removeprefix("torch.")
    config = config.override(f"model.precision={precision}")
    model = attach_adapter(
        load_base(base, dtype, device), config.lora, config.train.seed, config.model.base
    )
    if config.train.gradient_checkpointing:
        with quiet_transformers():  # 5.23 renames it; the old name works in all releases so far
            base_of(model).gradient_checkpointing_enable({"use_reentrant": False})
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    monitor.announce(
        f"{config.model.base} in {precision} on {device}, {trainable:,} parameters to train; "
        f"{len(training):,} rows to learn, {len(validation):,} held out"
    )
    return Parts(config, base, template, files, training, validation, model, device)


def _examples(
    config: Config, template: ChatTemplate, reader: ConversationReader, monitor: Monitor
) -> tuple[Examples, Examples, tuple[Path, ...]]:
    limit, share = config.data.max_length, config.data.validation
    examples = tokenize(reader, template, limit, monitor.reading)
    for notice in examples.notices(limit):
        monitor.announce(notice)
    if isinstance(share, float):
        return *examples.split(share, config.train.seed), reader.paths
    held_out = read_conversations(share, config.data)
    return examples, tokenize(held_out, template, limit), (*reader.paths, *held_out.paths)
