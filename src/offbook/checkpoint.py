"""Save and resume: everything a run needs to go on as if it had not stopped.

Data order and dropout are functions of the seed and the step, so the adapter, the optimizer's
moments and the step are all there is. Safetensors and JSON only.
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from peft import PeftModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from offbook.errors import CheckpointError
from offbook.model import restore_adapter, save_adapter
from offbook.run import RunDirectory

OPTIMIZER = "optimizer.safetensors"
STATE = "state.json"


@dataclass
class Progress:
    """How far a run is.

    Attributes:
        step: optimizer steps done.
        window_loss, window_tokens: loss and supervised tokens summed since the last logged line.
    """

    step: int = 0
    window_loss: float = 0.0
    window_tokens: int = 0

    def add(self, loss: float, tokens: int) -> None:
        """Count an optimizer step with a mean loss over that many supervised tokens."""
        self.step += 1
        self.window_loss += loss * tokens
        self.window_tokens += tokens

    def take_mean(self) -> float:
        """The loss per token since the last call."""
        mean = self.window_loss / self.window_tokens
        self.window_loss, self.window_tokens = 0.0, 0
        return mean


def save(
    run: RunDirectory,
    model: PeftModel,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    keep: int,
) -> Path:
    """Write `checkpoints/step-N`, whole or not at all, and remove all but the `keep` newest."""
    final = run.checkpoints / f"step-{progress.step}"
    partial = final.with_name(f".{final.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_adapter(model, partial)
    save_file(_moments(model, optimizer), partial / OPTIMIZER)
    (partial / STATE).write_text(json.dumps(asdict(progress)), encoding="utf-8")
    replace_folder(partial, final)
    for _, old in _checkpoints(run)[:-keep]:
        shutil.rmtree(old)
    return final


def newest(run: RunDirectory) -> Path | None:
    """The checkpoint with the most steps, if there is one."""
    found = _checkpoints(run)
    return found[-1][1] if found else None


def restore(folder: Path, model: PeftModel, optimizer: torch.optim.Optimizer) -> Progress:
    """Load a checkpoint into a model and optimizer of the same shape.

    Raises:
        CheckpointError: when a part is missing, unreadable or does not fit.
    """
    restore_adapter(model, folder)
    try:
        moments = load_file(folder / OPTIMIZER)
        progress = Progress(**json.loads((folder / STATE).read_text(encoding="utf-8")))
        state = optimizer.state_dict()
        state["state"] = {
            index: {key: moments[f"{name}.{key}"] for key in ("step", "exp_avg", "exp_avg_sq")}
            for index, name in enumerate(_trainable(model))
        }
        optimizer.load_state_dict(state)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise CheckpointError(
            f"the checkpoint cannot be used: {error}",
            where=str(folder),
            fix="remove it, and --resume takes the one before",
        ) from error
    return progress


def replace_folder(partial: Path, final: Path) -> None:
    """Give a finished folder its name, in the place of any that had it."""
    shutil.rmtree(final, ignore_errors=True)
    partial.replace(final)


def _checkpoints(run: RunDirectory) -> list[tuple[int, Path]]:
    """Complete checkpoints by step, oldest first."""
    found = [
        (int(match[1]), path)
        for path in run.checkpoints.glob("step-*")
        if (match := re.fullmatch(r"step-(\d+)", path.name))
    ]
    return sorted(found)


def _trainable(model: PeftModel) -> dict[str, torch.nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def _moments(model: PeftModel, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    return {
        f"{name}.{key}": value.contiguous()
        for name, parameter in _trainable(model).items()
        for key, value in optimizer.state[parameter].items()
    }
