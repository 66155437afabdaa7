"""Where the base and the data of a run are now.

They are known by their hashes. A local file is looked for in the same place as seen from the run,
for folders that were moved or copied together, and where it was when the run began; the first that
agrees is used. What came from the hub is that of the same commit.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from offbook.data.formats import resolve
from offbook.errors import CheckpointError, OffbookError, quoted
from offbook.files.hub import commit_of
from offbook.files.storage import sha256
from offbook.models.base import resolve_base
from offbook.runs.directory import RunDirectory
from offbook.runs.receipt import hash_base, hash_text
from offbook.settings.config import Config, exists, local_path
from offbook.settings.sections import EMBEDDED_BASE, SAMPLES
from offbook.tokens.template import ChatTemplate

BASE = "model.base"
WHAT = {BASE: "base", "data.validation": "validation data"}
NAMES = (EMBEDDED_BASE, *SAMPLES)


def places_from(run: Path, config: Config) -> dict[str, str]:
    """The local files that a run is given, by setting, as paths from its directory."""
    places = {}
    for key, value in config.places().items():
        if value not in NAMES and exists(value):
            try:
                absolute = Path(os.path.expanduser(value)).absolute()  # noqa: PTH111
                places[key] = Path(os.path.relpath(absolute, run.resolve())).as_posix()
            except ValueError:  # on another drive of Windows
                continue
    return places


def commits_of(config: Config, files: Mapping[str, Path]) -> dict[str, str]:
    """The commits of what was downloaded from the hub, by setting.

    Args:
        config: of the run.
        files: the folder of its base, and a file of each source of its data, by setting.
    """
    values = config.places()
    found = {
        key: commit_of(path)
        for key, path in files.items()
        if (value := values.get(key)) and value not in NAMES and not exists(value)
    }
    return {key: commit for key, commit in found.items() if commit}


def find_data(run: RunDirectory, config: Config) -> Config:
    """The settings of a run to resume, with the places where its local files are now.

    The base is found, too, but `find_base` decides between several.

    Raises:
        CheckpointError: when a file is not found, or is another one, with the command that names
            another place.
    """
    hashes = list(run.receipt().data.values())
    # Version 0.1 has one hash for two files of the same name, that of the last one.
    lacking = isinstance(config.data.validation, str) and len(hashes) == 1
    missing: dict[str, str] = {}
    changed: list[str] = []
    for key in config.places():
        places = _places(run, config, key)
        here = [place for place in places if exists(place)]
        if places and not here:
            missing[key] = places[-1]
        if key == BASE or not here:
            continue
        validates = key == "data.validation"
        any_data = lacking and not validates
        same = [place for place in here if any_data or _is_data(place, hashes, validates)]
        if not same:
            changed.append(key)
        config = config.with_place(key, (same or here)[0])
    if missing:
        what = ", ".join(f"{_what(key)} is not at {place}" for key, place in missing.items())
        raise _elsewhere(run, f"the {what}", resume_with(run, *missing))
    if changed:
        what = " and the ".join(dict.fromkeys(map(_what, changed)))
        raise _elsewhere(
            run, f"the {what} has changed since the run was started", resume_with(run, *changed)
        )
    return config


def _what(key: str) -> str:
    return WHAT.get(key, "data")


def _is_data(place: str, hashes: Sequence[str], validates: bool) -> bool:
    """Whether all files at a place went into the run, or are the last ones, which validated it."""
    try:
        found = [sha256(path) for path in resolve(place)]
    except OffbookError:
        return False
    if validates:
        return found == list(hashes[-len(found) :])
    return set(found) <= set(hashes)


def find_moved(run: RunDirectory, config: Config) -> Config:
    """The settings to replace a run with; files that are gone are those that moved with the run.

    Unlike those of a run to resume, they may have changed.
    """
    for key in config.places():
        places = _places(run, config, key)
        if len(places) > 1 and not exists(places[1]) and exists(places[0]):
            config = config.with_place(key, places[0])
    return config


def find_base(
    run: RunDirectory, config: Config, announce: Callable[[str], None], command: str
) -> tuple[str, Path]:
    """Where the base of a run is now, as a setting and as a folder; `require_base` verifies it.

    Args:
        run: that it is the base of.
        config: its settings, or those to resume with.
        announce: called with a line of text before something slow.
        command: that names another place.

    Raises:
        CheckpointError: when it is not found, with the command.
        ModelError: when it cannot be used.
    """
    receipt, own = run.receipt(), run.config().model
    places = _places(run, config, BASE) or [config.model.base]
    here = [place for place in places if local_path(place)]
    if Path(places[-1]).is_absolute() and not here:
        raise _elsewhere(run, f"the base is not at {places[-1]}", command)
    for place in here[:-1]:
        try:
            folder = resolve_base(place, announce=announce)
            if not receipt.differing_parts(hash_base(folder)):
                return place, folder
        except (OffbookError, OSError):  # something else is there now
            continue
    revision = config.model.revision
    if (config.model.base, revision) == (own.base, own.revision):
        revision = receipt.commits.get(BASE, revision)
    place = (here or places)[-1]
    return place, resolve_base(place, revision, announce)


def require_base(run: RunDirectory, base: Path, template: ChatTemplate, command: str) -> None:
    """Refuse a base on which the run's adapter would answer wrongly.

    Args:
        run: that it is the base of.
        base: its folder.
        template: its chat template.
        command: that names another place.

    Raises:
        CheckpointError: naming the parts that differ, and the command.
    """
    text = hash_text(str(template.tokenizer.chat_template))
    if changed := run.receipt().differing_parts(hash_base(base), text):
        what = f"the base is not the one the run was started with: other {', '.join(changed)}"
        raise _elsewhere(run, what, command)


def resume_with(run: RunDirectory, *keys: str) -> str:
    """The command that resumes a run with other places for these settings."""
    # One of several sources is changed with all of them.
    given = dict.fromkeys(
        "'data.train=[PATH, ...]'" if "[" in key else f"{key}=PATH" for key in keys
    )
    return " ".join((run.command, *given))


def chat_with(run: RunDirectory) -> str:
    """The command that chats with a run whose base is in another place."""
    return f"offbook chat {quoted(run.path)} --base PATH"


def _places(run: RunDirectory, config: Config, key: str) -> list[str]:
    """Where a local file of a run may be; none for names, and for what is on the hub."""
    value, receipt = config.places()[key], run.receipt()
    if not Path(value).is_absolute():
        return []
    if value != run.config().places().get(key) or key not in receipt.places:
        return [value]
    near = os.path.normpath(run.path.resolve() / receipt.places[key])
    return list(dict.fromkeys((near, value)))


def _elsewhere(run: RunDirectory, what: str, command: str) -> CheckpointError:
    fix = f"say where it is now: `{command}`"
    return CheckpointError(what, where=str(run.path), fix=fix)
