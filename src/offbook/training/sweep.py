"""Runs with different settings, trained side by side on one base, and the best of them.

By successive halving (Jamieson and Talwalkar, arXiv:1502.07943), all runs take the first steps, the
better half by validation loss goes on to twice as many, and so on; the last one takes all. A run
that stops on the way can be resumed, so the result of a sweep is that of `train` with its settings.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path

from offbook.errors import ConfigError, EngineError, NonFiniteError
from offbook.files import storage
from offbook.monitor import Monitor
from offbook.runs import checkpoint
from offbook.runs.directory import RunDirectory, step_of
from offbook.runs.records import read_record
from offbook.settings.config import Config
from offbook.training.changeable import FREE_ON_RESUME
from offbook.training.ending import last_step
from offbook.training.schedule import Schedule
from offbook.training.shared import SharedBase
from offbook.training.train import train

FILE, BEST = "sweep.json", "best.yaml"
SECTIONS = ("lora.", "train.")


@dataclass(frozen=True)
class Candidate:
    """A run of a sweep.

    Attributes:
        name: of its directory, in that of the sweep.
        settings: in which it differs from the others, as they were given.
        steps: optimizer steps that it has taken.
        share: of its own steps, after which it was last compared with the others.
        loss: its last validation loss, in nats per token; None where there is none yet.
        seconds: its steps took.
        problem: why it could not go on.
    """

    name: str
    settings: dict[str, str]
    steps: int = 0
    share: float = 0.0
    loss: float | None = None
    seconds: float = 0.0
    problem: str | None = None


@dataclass(frozen=True)
class Sweep:
    """What a sweep found: the contents of `sweep.json`.

    Attributes:
        candidates: the best first, those that got further before the others.
        finished: whether the best one has taken all its steps.
    """

    candidates: list[Candidate]
    finished: bool = False

    @property
    def best(self) -> Candidate:
        return self.candidates[0]

    @classmethod
    def read(cls, file: Path) -> Sweep:
        """The sweep in a file, as `read_record`."""
        return read_record(cls, file, fix=f"remove it and {BEST}, and start the sweep again")

    def to_json(self) -> bytes:
        """The contents of the file."""
        return f"{json.dumps(asdict(self), indent=1, ensure_ascii=False)}\n".encode()


def parse_grid(arguments: Sequence[str]) -> tuple[dict[str, list[str]], list[str]]:
    """The settings of a command line that have several values, `key=a,b`, and the others.

    Raises:
        ConfigError: when none has several.
    """
    grid, others = dict[str, list[str]](), list[str]()
    for argument in arguments:
        key, _, text = argument.partition("=")
        # A list in brackets, or a text in quotes, is one value.
        values = re.findall(r"""(?:\[[^\]]*\]|"[^"]*"|'[^']*'|[^,])+""", text)
        if len(values) > 1:
            grid[key.strip()] = [value.strip() for value in values]
        else:
            others.append(argument)
    if not grid:
        raise ConfigError(
            "no setting has several values",
            where="command line",
            fix="write some with commas, as in train.learning_rate=1e-4,3e-4",
        )
    return grid, others


def sweep(
    config: Config,
    grid: Mapping[str, Sequence[str]],
    *,
    full: bool = False,
    overwrite: bool = False,
    monitor: Monitor | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Sweep:
    """Train a run for each combination of settings, into folders of `output_dir`.

    A sweep that was stopped or killed goes on where it was when it is started again.

    Args:
        config: the settings that the runs have in common.
        grid: the values of each setting that differs.
        full: let each run take all its steps, and not only the best.
        overwrite: train all runs again.
        monitor: receives progress and messages.
        should_stop: called before each micro-batch; when it returns true, the sweep ends.

    Returns:
        What was found so far; not finished where it was stopped.

    Raises:
        OffbookError: its class says what kind of thing is wrong.
    """
    monitor = monitor or Monitor()
    folder = Path(os.path.expanduser(config.output_dir))  # noqa: PTH111
    configs = candidates(config, grid)
    known = _known(folder, overwrite)
    found = {
        name: replace(known.get(name) or Candidate(name, settings), settings=settings, problem=None)
        for name, settings in zip(configs, _combinations(grid), strict=True)
    }
    shared, going = SharedBase(), list(found)
    failed: NonFiniteError | EngineError | None = None
    for share in [1.0] if full else shares(len(found)):
        for name in going:
            first = overwrite and found[name].steps == 0
            one = found[name]
            try:
                then = _advance(one, configs[name], share, first, monitor, should_stop, shared)
            except (NonFiniteError, EngineError) as error:
                monitor.announce(f"{_told(one)}: it goes no further; {error.what}")
                failed, then = error, replace(one, loss=None, problem=error.what)
            if then is None:
                return _write(folder, found.values(), finished=False)
            found[name] = then
            _write(folder, found.values(), finished=False)
        going = [name for name in going if found[name].problem is None]
        going.sort(key=lambda name: _loss(found[name]))
        going = going[: math.ceil(len(going) / 2)]
    if not going:
        assert failed is not None
        if isinstance(failed, EngineError):
            raise failed
        raise NonFiniteError(
            f"no run could go on; {failed.what}",
            where=str(folder),
            fix="lower the values of train.learning_rate",
        )
    best = configs[going[0]].model_copy(update={"output_dir": config.output_dir})
    storage.replace_file(folder / BEST, best.to_yaml().encode())
    return _write(folder, found.values(), finished=True)


def shares(count: int) -> Iterator[float]:
    """The shares of the steps after which a sweep of so many runs halves them; the last is all."""
    halvings = math.ceil(math.log2(count))
    return (2.0 ** (k - halvings) for k in range(halvings + 1))


def candidates(config: Config, grid: Mapping[str, Sequence[str]]) -> dict[str, Config]:
    """The settings of each run of a sweep, by the name of its directory.

    Raises:
        ConfigError: when a setting cannot be compared, or two runs would be the same.
    """
    for key in grid:
        free = key.removeprefix("train.") in FREE_ON_RESUME
        if not key.startswith(SECTIONS) or free:
            raise ConfigError(
                "the runs of a sweep have this in common",
                where=key,
                fix="vary settings of lora and train that change the result",
            )
        if key == "train.seed" and isinstance(config.data.validation, float):
            raise ConfigError(
                "with another seed, other rows are held out, so losses cannot be compared",
                where=key,
                fix="give data.validation a file",
            )
    if config.data.validation == 0:
        raise _nothing_held_out()
    configs: dict[str, Config] = {}
    for settings in _combinations(grid):
        parts = [f"{key.rpartition('.')[2]}={value}" for key, value in settings.items()]
        name = "sweep-" + re.sub(r"[^\w.=+-]+", "_", "-".join(parts))
        if name in configs:
            raise ConfigError(
                "two runs of the sweep would be the same",
                where=name,
                fix="remove one of the values",
            )
        overrides = [f"{key}={value}" for key, value in settings.items()]
        place = os.path.join(config.output_dir, name)  # noqa: PTH118  # "~" stays as it is
        configs[name] = config.override(*overrides).model_copy(update={"output_dir": place})
    return configs


def _nothing_held_out() -> ConfigError:
    return ConfigError(
        "the runs of a sweep are compared on held-out rows, and there are none",
        where="data.validation",
        fix="set it to a share of the rows, such as 0.05",
    )


def _combinations(grid: Mapping[str, Sequence[str]]) -> list[dict[str, str]]:
    return [dict(zip(grid, values, strict=True)) for values in product(*grid.values())]


def _advance(
    one: Candidate,
    config: Config,
    share: float,
    overwrite: bool,
    monitor: Monitor,
    should_stop: Callable[[], bool],
    shared: SharedBase,
) -> Candidate | None:
    """Train a run up to a share of its steps, if it is not there yet; None where it was stopped.

    Raises:
        OffbookError: as `train`.
    """
    run = RunDirectory(Path(os.path.expanduser(config.output_dir)))  # noqa: PTH111
    if run.begun and not overwrite and share < 1 and (there := _reached(run, share)):
        return replace(one, steps=there[0], share=share, loss=there[1])
    monitor.announce(f"{_told(one)}: all the steps" if share == 1 else _told(one))
    result = train(
        config,
        resume=run.begun and not overwrite,
        overwrite=overwrite,
        monitor=monitor,
        should_stop=should_stop,
        share=share,
        shared=shared,
    )
    there = _reached(run, share)
    if there is None:
        if result.finished:  # the share of the rows was less than a prompt
            raise _nothing_held_out()
        return None
    seconds = one.seconds + result.seconds
    return replace(one, steps=there[0], share=share, loss=there[1], seconds=round(seconds, 1))


def _reached(run: RunDirectory, share: float) -> tuple[int, float] | None:
    """The steps of a share, and the validation loss after them, if a run has taken them."""
    rows, config = run.receipt().rows, run.config()
    if rows is None:
        return None
    schedule, losses = Schedule.of(rows.training, config), checkpoint.validations(run)
    steps = schedule.steps_of_share(config.train, share)
    steps = min(steps, last_step(losses, schedule, config.train))  # out of patience before
    newest = checkpoint.newest(run, lambda text: None)
    if newest is None or (step_of(newest) or 0) < steps:
        return None
    return (steps, losses[steps]) if steps in losses else None


def _known(folder: Path, overwrite: bool) -> dict[str, Candidate]:
    """The runs of the same sweep, as it was when it was stopped.

    Raises:
        ConfigError: when a file of the user has the name of one of ours.
    """
    file, best = folder / FILE, folder / BEST
    if file.exists():
        before = Sweep.read(file)  # else it is not ours to replace
        return {} if overwrite else {one.name: one for one in before.candidates}
    if best.exists():
        raise ConfigError(
            f"{BEST} is here, and is not that of a sweep",
            where=str(folder),
            fix="set another output_dir, or move the file",
        )
    return {}


def _write(folder: Path, found: Iterable[Candidate], *, finished: bool) -> Sweep:
    """Write what is known so far, the best run first."""
    # The share and not the steps, of which there may be more in all, as with smaller batches.
    order = sorted(found, key=lambda one: (one.problem is not None, -one.share, _loss(one)))
    told = Sweep(order, finished)
    storage.make_folder(folder)
    storage.replace_file(folder / FILE, told.to_json())
    return told


def _told(one: Candidate) -> str:
    return ", ".join(f"{key}={value}" for key, value in one.settings.items())


def _loss(one: Candidate) -> float:
    return math.inf if one.loss is None else one.loss
