"""Write a PEFT folder: the adapter, its tokenizer and template, and a card that says what it is."""

from __future__ import annotations

import shutil
from pathlib import Path

from offbook.errors import CheckpointError
from offbook.export.certificate import Certificate
from offbook.files.untrusted import read_json
from offbook.models.adapter import read_adapter
from offbook.models.adapter_config import config_file
from offbook.models.base import ADAPTER_CONFIG, ADAPTER_WEIGHTS, published_name, read_config
from offbook.models.skeleton import make_skeleton
from offbook.runs.card import make_card
from offbook.runs.trained import TrainedRun
from offbook.tokens.tokenizer import tokenizer_files


def write_adapter(folder: Path, run: TrainedRun, strength: float) -> None:
    """Write the files of an adapter but its card.

    Args:
        folder: an empty folder.
        run: the run; its adapter may be a checkpoint, or an older version may have written it.
        strength: multiplies what the adapter adds.
    """
    config = read_adapter(run.adapter, make_skeleton(read_config(run.base)))
    stored = read_json(run.adapter / ADAPTER_CONFIG, CheckpointError)
    config.target_modules = stored["target_modules"]
    config.lora_alpha *= strength  # type: ignore[assignment]  # PEFT multiplies by any number
    name, revision = published_name(run.config.model.base, run.base)
    config.base_model_name_or_path, config.revision = name, revision
    shutil.copyfile(run.adapter / ADAPTER_WEIGHTS, folder / ADAPTER_WEIGHTS)
    template = run.template
    files = {
        ADAPTER_CONFIG: config_file(config),
        **dict(tokenizer_files(template.tokenizer, run.base, template.renderer.source)),
    }
    for file, content in files.items():
        (folder / file).write_bytes(content)


def adapter_card(run: TrainedRun, strength: float, certificate: Certificate | None) -> bytes:
    """The README of an exported adapter, with what its certificate says.

    Args:
        run: the run.
        strength: that was multiplied into it.
        certificate: None when it was not compared.
    """
    name, revision = published_name(run.config.model.base, run.base)
    facts = {"strength": f"{strength:g}"} if strength != 1 else {}
    facts["certificate"] = f"by {certificate.reader}" if certificate else "not verified"
    if certificate and certificate.gain:
        gain = certificate.gain
        facts[f"loss on {gain.rows} held-out rows"] = (
            f"{gain.tuned:.4f}; {gain.base:.4f} without the adapter, a gain of "
            f"{gain.base - gain.tuned:.4f} (95% interval {gain.low:.4f} to {gain.high:.4f})"
        )
    return make_card(run.config, run.receipt, run.base, run.template, name, revision, facts)
