"""The rows to train on, which may come from several places."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from offbook.data.conversations import ConversationReader
from offbook.data.formats import resolve
from offbook.settings.sections import DataSettings


def training_files(
    settings: DataSettings, commits: Mapping[str, str] | None = None
) -> dict[str, list[Path]]:
    """The files of each source of training rows, by the name of its setting.

    Args:
        settings: `data.train`.
        commits: of data sets on the hub, by setting, where not the newest.

    Raises:
        DataError: when there is no such data.
    """
    found = commits or {}
    return {key: resolve(one.data, found.get(key)) for key, one in settings.sources.items()}


def read_training(
    settings: DataSettings, commits: Mapping[str, str] | None = None
) -> ConversationReader:
    """Open the training rows.

    Args:
        settings: what to read, and how.
        commits: as for `training_files`.

    Raises:
        DataError: when there is no such data, or the format of a file cannot be found.
    """
    paths: list[Path] = []
    repeats: list[float] = []
    for key, files in training_files(settings, commits).items():
        new = [path for path in files if path not in paths]
        paths += new
        repeats += [settings.sources[key].repeat] * len(new)
    return ConversationReader(paths, settings, repeats)
