"""Where everything is that a model to talk to consists of; no weights are loaded before `load`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from offbook.inference.sources import Source, identify
from offbook.models.adapter import load_adapter
from offbook.models.base import resolve_base
from offbook.models.load import choose_device, choose_precision, load_base
from offbook.runs.trained import open_run
from offbook.tokens.template import ChatTemplate
from offbook.tokens.tokenizer import load_tokenizer


@dataclass(frozen=True)
class FoundModel:
    """A run, an adapter on its base, or a whole model. `find_model` makes it.

    Attributes:
        path: as it was named.
        base: folder of the base.
        adapter: folder of the adapter; None for a whole model.
        template: tokenizer and chat template.
        system: system text of a run, if any.
        devices, dtype, quantization: what `load` uses.
    """

    path: Path
    base: Path
    adapter: Path | None
    template: ChatTemplate
    system: str | None
    devices: tuple[torch.device, ...]
    dtype: torch.dtype
    quantization: str

    def load(self) -> PeftModel | PreTrainedModel:
        """The model in PyTorch, in evaluation mode.

        Raises:
            ModelError: when the base cannot be loaded.
            CheckpointError: when the adapter does not fit it.
        """
        device, *others = self.devices
        model = load_base(self.base, self.dtype, device, self.quantization, others)
        return load_adapter(model, self.adapter) if self.adapter else model


def find_model(
    path: str | Path,
    announce: Callable[[str], None] = lambda text: None,
    *,
    base: str | None = None,
    checkpoint: str | int | None = None,
) -> FoundModel:
    """Find a model to talk to, and check its parts; see `Chat.open` for arguments and errors."""
    path = Path(path)
    source = identify(path, base, checkpoint)
    if source == Source.RUN:
        run = open_run(path, announce, base=base, checkpoint=checkpoint)
        return FoundModel(
            path,
            run.base,
            run.adapter,
            run.template,
            run.config.data.system,
            run.devices,
            run.dtype,
            run.config.model.quantization,
        )
    # An absolute path is not taken for the name of the embedded base, or for a hub id.
    folder = resolve_base(base or str(path.absolute()), announce=announce)
    adapter = path if source == Source.ADAPTER else None
    # An adapter may come with its own tokenizer, whose template it was trained with.
    has_own = adapter is not None and (path / "tokenizer.json").is_file()
    template = ChatTemplate(load_tokenizer(path if has_own else folder))
    device = choose_device()
    dtype = choose_precision("auto", device)
    return FoundModel(path, folder, adapter, template, None, (device,), dtype, "none")
