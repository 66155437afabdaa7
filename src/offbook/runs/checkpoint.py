"""Checkpoints: what a run needs to continue as if it had not stopped.

Data order and dropout are functions of the seed and the step, so no random state is saved: the
adapter, the optimizer's moments and the progress are enough. Safetensors and JSON only.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from peft import PeftModel
from pydantic import TypeAdapter
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes

from offbook.errors import CheckpointError
from offbook.files import storage
from offbook.models.adapter import adapter_files, restore_adapter
from offbook.models.base import ADAPTER_WEIGHTS
from offbook.monitor import EvalMetrics
from offbook.runs.directory import COMMITTED, OPTIMIZER, STATE, RunDirectory

FIRST_LOSSES = 20  # that are kept
BEST, LAST = "best", "last"  # names of checkpoints
UNUSABLE = (CheckpointError, OSError, ValueError, KeyError, TypeError, SafetensorError)


@dataclass
class Progress:
    """How far a run is, and what its next step depends on; the contents of `state.json`.

    Attributes:
        micro_batch_tokens: most tokens of a micro-batch; fewer than planned after memory was not
            enough.
        step: optimizer steps done.
        window_loss, window_tokens: loss and supervised tokens, summed since the last logged step.
        recent_losses: of the last steps, oldest first; filled where loss spikes are skipped.
        first_losses: of the first steps, which tell whether the learning rate fits.
        halvings: of the loss's scale in float16, after gradients did not fit.
    """

    micro_batch_tokens: int
    step: int = 0
    window_loss: float = 0.0
    window_tokens: int = 0
    recent_losses: list[float] = field(default_factory=list)
    first_losses: list[float] = field(default_factory=list)
    halvings: int = 0

    def add(self, loss: float, tokens: int) -> None:
        """Count an optimizer step with this mean loss over this number of supervised tokens."""
        self.step += 1
        self.window_loss += loss * tokens
        self.window_tokens += tokens
        if len(self.first_losses) < FIRST_LOSSES:
            self.first_losses.append(loss)

    @property
    def mean(self) -> float:
        """The loss per supervised token since the last logged step."""
        return self.window_loss / max(self.window_tokens, 1)

    def take_mean(self) -> float:
        """The `mean`, as this step is logged."""
        mean = self.mean
        self.window_loss, self.window_tokens = 0.0, 0
        return mean


def save(
    run: RunDirectory,
    model: PeftModel,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    keep: int,
    losses: Mapping[int, float],
) -> None:
    """Commit `checkpoints/step-N`, unless it is there; then remove older ones.

    Args:
        run: to write in.
        model: with the adapter.
        optimizer: of the adapter.
        progress: of the run, at step N.
        keep: how many of the newest checkpoints, up to this step, are left.
        losses: the validation loss after each step that has one; the checkpoint with the lowest is
            left, too. Empty where it is not to be.

    Raises:
        DiskError: when it cannot be written; the checkpoints before it are intact.
    """
    folder = run.checkpoints / f"step-{progress.step}"
    try:
        _read_progress(progress.step, folder)  # written before, when no step was taken since
    except UNUSABLE:
        storage.commit(folder, _files(model, optimizer, progress), COMMITTED)
    # A checkpoint of a later step is damaged and was skipped on resume. It is replaced when the run
    # reaches that step.
    up_to_now = {step: folder for step, folder in run.steps() if step <= progress.step}
    best = lowest({step: losses[step] for step in up_to_now if step in losses})
    for step in list(up_to_now)[:-keep]:
        if step != best:
            storage.discard(up_to_now[step], COMMITTED)


def lowest(losses: Mapping[int, float]) -> int | None:
    """The step with the lowest validation loss, the first of several; None where there is none.

    The base, which is step 0, does not count.
    """
    return min((step for step in sorted(losses) if step), key=lambda s: losses[s], default=None)


def best_step(run: RunDirectory) -> int | None:
    """The step of the checkpoint with the lowest validation loss; None where none has one."""
    present = dict(run.steps())
    return lowest({step: loss for step, loss in validations(run).items() if step in present})


def validations(run: RunDirectory) -> dict[int, float]:
    """The validation loss after each step that has one, in their order.

    Raises:
        CheckpointError: when `metrics.jsonl` is damaged.
    """
    return {r.step: r.eval_loss for r in run.metrics() if isinstance(r, EvalMetrics)}


def newest(run: RunDirectory, announce: Callable[[str], None]) -> Path | None:
    """The newest intact checkpoint; None when the run has none at all.

    Args:
        run: to look in.
        announce: receives a line for each checkpoint that is skipped, with the reason.

    Raises:
        CheckpointError: when there are checkpoints, and none of them is intact.
    """
    usable = _first_usable(run, announce)
    return usable[0] if usable else None


def is_result(run: RunDirectory) -> bool:
    """Whether `adapter/` is intact and has the weights of the newest checkpoint."""
    last = newest(run, lambda text: None)
    return (
        last is not None
        and storage.verify(run.adapter) is None
        and storage.sha256(run.adapter / ADAPTER_WEIGHTS) == storage.sha256(last / ADAPTER_WEIGHTS)
    )


def find(run: RunDirectory, name: str | int, announce: Callable[[str], None]) -> Path:
    """A checkpoint by its name.

    Args:
        run: to look in.
        name: `best`, the one with the lowest validation loss; `last`, the newest intact one; or a
            step.
        announce: receives a line for each damaged checkpoint that is newer than `last`.

    Raises:
        CheckpointError: when there is none, naming those that there are, or it is not intact.
    """
    folders, best = dict(run.steps()), best_step(run)
    named = {str(step): folder for step, folder in folders.items()}
    if best is not None:
        named[BEST] = folders[best]
    if name == LAST and (folder := newest(run, announce)):
        return folder
    if str(name) not in named:
        words = [f"best (step {best})"] * (best is not None) + ["last"] * bool(folders)
        there = ", ".join([*words, *map(str, folders)]) or "none yet"
        raise CheckpointError(
            f"no checkpoint {name}",
            where=str(run.path),
            fix=f"there are {there}; train.save_total_limit says how many are kept",
        )
    folder = named[str(name)]
    if problem := storage.verify(folder):
        raise CheckpointError(problem, where=str(folder), fix="use another checkpoint")
    return folder


def restore(
    run: RunDirectory,
    model: PeftModel,
    optimizer: torch.optim.Optimizer,
    announce: Callable[[str], None],
) -> Progress | None:
    """Load the newest intact checkpoint into a model and optimizer of the same shape.

    Args:
        run: to look in.
        model: with a fresh adapter.
        optimizer: of the adapter, not used yet.
        announce: receives a line for each checkpoint that is skipped, with the reason.

    Returns:
        How far the run was; None when it has no checkpoint yet.

    Raises:
        CheckpointError: when there are checkpoints, and none of them can be used.
    """

    def load(folder: Path) -> None:
        restore_adapter(model, folder)
        moments = load_file(folder / OPTIMIZER)
        state = optimizer.state_dict()
        names = {parameter: name for name, parameter in _trainable(model).items()}
        state["state"] = {
            index: {
                key: moments[f"{names[parameter]}.{key}"]
                for key in ("step", "exp_avg", "exp_avg_sq")
            }
            for index, parameter in enumerate(
                parameter for group in optimizer.param_groups for parameter in group["params"]
            )
        }
        optimizer.load_state_dict(state)

    usable = _first_usable(run, announce, load)
    return usable[1] if usable else None


def _first_usable(
    run: RunDirectory,
    announce: Callable[[str], None],
    load: Callable[[Path], None] | None = None,
) -> tuple[Path, Progress] | None:
    """The newest checkpoint that is intact and that `load` accepts, and how far the run was."""
    problems = []
    for step, folder in reversed(run.steps()):
        try:
            progress = _read_progress(step, folder)
            if load:
                load(folder)
        except UNUSABLE as error:
            problems.append(f"{folder.name}: {error}")
            announce(f"skipping {problems[-1]}")
        else:
            return folder, progress
    if problems:
        raise CheckpointError(
            f"no checkpoint can be used; {'; '.join(problems)}",
            where=str(run.checkpoints),
            fix="restore one from a copy, or start again with --overwrite",
        )
    return None


def _read_progress(step: int, folder: Path) -> Progress:
    """The progress in an intact checkpoint; raises one of `UNUSABLE` when it is not intact."""
    problem = storage.verify(folder)
    if problem:
        raise ValueError(problem)
    progress = TypeAdapter(Progress).validate_python(json.loads((folder / STATE).read_bytes()))
    if progress.step != step:
        raise ValueError(f"its state is that of step {progress.step}")
    return progress


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
