"""What can be chatted with: a run, an adapter on its base, or a whole model."""

from __future__ import annotations

from enum import Enum
from pathlib import Path

from offbook.errors import MAX_QUOTED, CheckpointError, ConfigError, quoted
from offbook.files.untrusted import read_json
from offbook.models.base import ADAPTER_CONFIG
from offbook.runs.directory import RunDirectory, step_of
from offbook.settings.config import local_path


class Source(Enum):
    """The kinds, as messages name them."""

    RUN = "a run"
    ADAPTER = "an adapter"
    MODEL = "a whole model"


def identify(path: Path, base: str | None = None, checkpoint: str | int | None = None) -> Source:
    """Which kind a path is, by the names of its files; nothing is loaded.

    Args:
        path: a run directory, a PEFT folder, a model's folder or a `.gguf` file.
        base: a base that the user has named, if any.
        checkpoint: of a run, that the user has named, if any.

    Raises:
        ConfigError: when an adapter has no base, or `base` or `checkpoint` is not for this kind.
        CheckpointError: when it is none of them.
    """
    if _is_run(path):
        return Source.RUN
    source = Source.ADAPTER if (path / ADAPTER_CONFIG).is_file() else Source.MODEL
    is_gguf = path.is_file() and path.suffix.lower() == ".gguf"
    is_model = is_gguf or (path / "config.json").is_file()
    if source == Source.MODEL and not is_model:
        RunDirectory.open(path)  # says that it is no run
    where, chat = str(path), f"`offbook chat {quoted(path)}"
    if checkpoint is not None:
        what = f"--checkpoint chooses a checkpoint of a run, and this is {source.value}"
        raise ConfigError(what, where=where, fix="leave it out, or give the run")
    if source == Source.MODEL and base is not None:
        what = "this is a whole model, which has no other base"
        raise ConfigError(what, where=where, fix=f"leave --base out: {chat}`")
    if source == Source.ADAPTER and base is None:
        what = "this is an adapter, which needs its base"
        raise ConfigError(what, where=where, fix=_way_to_base(path, chat))
    return source


def _is_run(path: Path) -> bool:
    try:
        RunDirectory.open(path)
    except CheckpointError:
        return False
    return True


def _way_to_base(path: Path, chat: str) -> str:
    """The command that opens an adapter: by its run, if it is in one, or with the base it names."""
    folder = path.resolve()
    parent = path.parent if path.name == folder.name else folder.parent
    if folder.name == "adapter" and _is_run(parent):
        return f"open its run: `offbook chat {quoted(parent)}`"
    if step_of(folder) is not None and _is_run(folder.parent.parent):
        run = quoted(parent.parent if parent.name else folder.parent.parent)
        return f"open its run: `offbook chat {run} --checkpoint {step_of(folder)}`"
    name = read_json(path / ADAPTER_CONFIG, CheckpointError).get("base_model_name_or_path")
    if not isinstance(name, str) or not name or len(name) > MAX_QUOTED:
        return f"name it: {chat} --base PATH`"
    if Path(name).is_absolute() and local_path(name) is None:
        return f"it was {name}, which is not here; say where it is: {chat} --base PATH`"
    return f"name it: {chat} --base {quoted(name)}`"
