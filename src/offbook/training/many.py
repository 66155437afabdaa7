"""Several runs trained together: in one process, on one base that is loaded once.

Each has its own rows, seed, schedule and run directory, and ends in the adapter of training it
alone. They take their steps side by side, so each is as far as the others until the shorter ones
end. Steps that together fit a micro-batch are computed in one pass.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from offbook.errors import ConfigError, OffbookError
from offbook.monitor import Monitor
from offbook.runs.directory import RunDirectory
from offbook.settings.config import Config
from offbook.training.interrupt import Interrupt
from offbook.training.packing import Packer
from offbook.training.shared import SharedBase
from offbook.training.step import Wanted
from offbook.training.train import TrainResult, train_by_steps

Steps = Generator[Wanted | None, None, TrainResult]


@dataclass(frozen=True)
class Ending:
    """How one of several runs ended.

    Attributes:
        result: None where it failed, or had not begun when all were stopped.
        error: why it failed.
    """

    result: TrainResult | None = None
    error: OffbookError | None = None


def train_many(
    configs: Mapping[str, Config],
    *,
    resume: bool = False,
    overwrite: bool = False,
    monitors: Mapping[str, Monitor] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> dict[str, Ending]:
    """Train several adapters on one base, each into its own `output_dir`.

    A run that fails ends alone, as it would without the others, which go on. But until all are
    loaded, an error in one ends all, and new runs leave nothing behind. Where the program itself is
    at fault, all others are saved first.

    Args:
        configs: by the name of each run; see `named`.
        resume: continue each from its newest checkpoint, or start it.
        overwrite: replace runs that are there, but no other files.
        monitors: receive progress and messages of each run.
        should_stop: called before each micro-batch; when it returns true, all save and end.

    Returns:
        How each ended.

    Raises:
        ConfigError: when two do not share a base.
        OffbookError: when one cannot start; its name is in the text.
        KeyboardInterrupt: after Ctrl-C, when all are saved.
    """
    precision = _require_one_base(configs)
    shared = SharedBase(list(configs.values()))
    monitors = monitors or dict.fromkeys(configs, Monitor())
    endings = {name: Ending() for name in configs}
    going: dict[str, Steps] = {}
    faults: list[Exception] = []
    with ExitStack() as started, Interrupt(lambda: bool(faults) or should_stop()) as interrupt:
        for name, config in configs.items():
            if interrupt():
                break
            run = RunDirectory(Path(os.path.expanduser(config.output_dir)))  # noqa: PTH111
            if not (resume and run.begun):  # which has its own
                config = config.with_value("model.precision", shared.precision or precision)
            steps = train_by_steps(
                config,
                resume=resume,
                overwrite=overwrite,
                monitor=monitors[name],
                should_stop=interrupt,
                shared=shared,
            )
            started.callback(steps.close)
            try:
                next(steps)
            except StopIteration as end:  # it had finished before
                endings[name] = Ending(end.value)
            except OffbookError as error:
                what, fix, where = error.what, error.fix, f"{name}: {error.where or 'its settings'}"
                raise type(error)(what, where=where, fix=fix) from error
            else:
                going[name] = steps
        _take_steps(going, endings, monitors, faults)
    if faults:
        raise faults[0]
    if interrupt.arrived:
        raise KeyboardInterrupt("all runs are saved; continue with resume=True")
    return endings


def _take_steps(
    going: dict[str, Steps],
    endings: dict[str, Ending],
    monitors: Mapping[str, Monitor],
    faults: list[Exception],
) -> None:
    """Take steps until all have ended; errors of the program are added to `faults`."""
    packer = Packer()
    while going:
        wanted = []
        for name, steps in list(going.items()):
            try:
                if one := next(steps):
                    wanted.append(one)
                continue
            except StopIteration as end:
                endings[name] = Ending(end.value)
            except OffbookError as error:
                endings[name] = Ending(error=error)
                if len(going) > 1:
                    monitors[name].announce(f"it goes no further, the others do: {error}")
            except Exception as error:  # noqa: BLE001  # raised when the others are saved
                faults.append(error)
            del going[name]
        try:
            packer.compute(wanted)
        except Exception as error:  # noqa: BLE001  # as above
            faults.append(error)


def named(configs: Sequence[Config]) -> dict[str, Config]:
    """Settings by the name of each run: that of its folder, or where this is not enough, its path.

    Raises:
        ConfigError: when two write to the same folder.
    """
    places = [Path(os.path.expanduser(c.output_dir)).resolve() for c in configs]  # noqa: PTH111
    for place, times in Counter(places).items():
        if times > 1:
            raise ConfigError(
                f"{times} configurations have this output_dir",
                where=str(place),
                fix="give each its own",
            )
    names = Counter(place.name for place in places)
    return {
        place.name if names[place.name] == 1 else config.output_dir: config
        for place, config in zip(places, configs, strict=True)
    }


def _require_one_base(configs: Mapping[str, Config]) -> str:
    """The precision that one of the runs names for all, or else `auto`.

    Raises:
        ConfigError: when two do not share a base, naming the setting.
    """
    naming = {name: c for name, c in configs.items() if c.model.precision != "auto"} or configs
    first, common = next(iter(naming.items()))
    for name, config in configs.items():
        for key, value in config.model.model_dump(exclude={"template"}).items():
            expected = getattr(common.model, key)
            if value != expected and not (key == "precision" and value == "auto"):
                raise ConfigError(
                    f"it is {expected} in {first} and {value} in {name}, but runs that are "
                    "trained together share a base",
                    where=f"model.{key}",
                    fix="set it alike, or train them apart",
                )
    return common.model.precision
