"""Save and resume: everything a run needs to go on as if it had not stopped.

Data order and dropout are functions of the seed and the step, so there is no random state to save:
the adapter, the optimizer's moments and the progress are all there is. Safetensors and JSON only.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from peft import PeftModel
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes

from offbook.errors import CheckpointError
from offbook.files import storage
from offbook.models.adapter import adapter_files, restore_adapter
from offbook.runs.directory import RunDirectory

OPTIMIZER = "optimizer.safetensors"
STATE = "state.json"
UNUSABLE = (CheckpointError, OSError, ValueError, KeyError, TypeError, SafetensorError)


@dataclass
class Progress:
    """How far a run is, and what its next step depends on.

    Attributes:
        micro_batch_tokens: most tokens of a micro-batch; less than was planned once memory was
            not enough.
        step: optimizer steps done.
        window_loss, window_tokens: loss and supervised tokens summed since the last logged line.
        recent_losses: of the last steps, oldest first, where loss spikes are to be skipped.
    """

    micro_batch_tokens: int
    step: int = 0
    window_loss: float = 0.0
    window_tokens: int = 0
    recent_losses: list[float] = field(default_factory=list)

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
) -> None:
    """Commit `checkpoints/step-N`; only then remove all but the `keep` newest up to that step.

    Raises:
        DiskError: when it cannot be written; the checkpoints before it are intact.
    """
    folder = run.checkpoints / f"step-{progress.step}"
    try:
        _progress(progress.step, folder)  # it may be there already, when nothing was done since
    except UNUSABLE:
        storage.commit(folder, _files(model, optimizer, progress))
    # One of a later step is damaged: the run has passed it over, and comes to it again.
    upto = [folder for step, folder in _checkpoints(run) if step <= progress.step]
    for old in upto[:-keep]:
        storage.discard(old)


def newest(run: RunDirectory, announce: Callable[[str], None]) -> Path | None:
    """The newest checkpoint that verifies; None when the run has none at all.

    Args:
        run: to look in.
        announce: told of each that is passed over, and why.

    Raises:
        CheckpointError: when there are checkpoints, and none of them verifies.
    """
    usable = _first_usable(run, announce, lambda folder: None)
    return usable[0] if usable else None


def restore(
    run: RunDirectory,
    model: PeftModel,
    optimizer: torch.optim.Optimizer,
    announce: Callable[[str], None],
) -> Progress | None:
    """Load the newest checkpoint that verifies into a model and optimizer of the same shape.

    Args:
        run: to look in.
        model: with a fresh adapter.
        optimizer: of the adapter, not used yet.
        announce: told of each that is passed over, and why.

    Returns:
        How far the run was; None when it has no checkpoint yet.

    Raises:
        CheckpointError: when there are checkpoints, and none of them can be used.
    """
    usable = _first_usable(run, announce, lambda folder: _load(folder, model, optimizer))
    return usable[1] if usable else None


def _first_usable(
    run: RunDirectory, announce: Callable[[str], None], use: Callable[[Path], None]
) -> tuple[Path, Progress] | None:
    """The newest checkpoint that is intact and can be used, and how far the run was."""
    problems = []
    for step, folder in reversed(_checkpoints(run)):
        try:
            progress = _progress(step, folder)
            use(folder)
        except UNUSABLE as error:
            problems.append(f"{folder.name}: {error}")
            announce(f"passing over {problems[-1]}")
        else:
            return folder, progress
    if problems:
        raise CheckpointError(
            f"no checkpoint can be used; {'; '.join(problems)}",
            where=str(run.checkpoints),
            fix="restore one from a copy, or train anew with --overwrite",
        )
    return None


def _progress(step: int, folder: Path) -> Progress:
    """What an intact checkpoint says of the run's progress; an error tells why it is not intact."""
    problem = storage.verify(folder)
    if problem:
        raise ValueError(problem)
    progress = Progress(**json.loads((folder / STATE).read_bytes()))
    if progress.step != step:
        raise ValueError(f"its state is that of step {progress.step}")
    return progress


def _load(folder: Path, model: PeftModel, optimizer: torch.optim.Optimizer) -> None:
    restore_adapter(model, folder)
    moments = load_file(folder / OPTIMIZER)
    state = optimizer.state_dict()
    state["state"] = {
        index: {key: moments[f"{name}.{key}"] for key in ("step", "exp_avg", "exp_avg_sq")}
        for index, name in enumerate(_trainable(model))
    }
    optimizer.load_state_dict(state)


def _checkpoints(run: RunDirectory) -> list[tuple[int, Path]]:
    """Checkpoints by step, oldest first."""
    found = [
        (int(match[1]), path)
        for path in run.checkpoints.glob("step-*")
        if (match := re.fullmatch(r"step-(\d+)", path.name))
    ]
    return sorted(found)


def _files(
    model: PeftModel, optimizer: torch.optim.Optimizer, progress: Progress
) -> Iterator[tuple[str, bytes]]:
    yield from adapter_files(model)
    moments = {
        f"{name}.{key}": value.contiguous()
        for name, parameter in _trainable(model).items()
        for key, value in optimizer.state[parameter].items()
    }
    yield OPTIMIZER, to_bytes(moments)
    yield STATE, json.dumps(asdict(progress)).encode()


def _trainable(model: PeftModel) -> dict[str, torch.nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}
