"""The examples of a run, read from its rows, and what of the rows is left out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from offbook.data.conversations import read_conversations
from offbook.data.sources import read_training, training_files
from offbook.doctor.doctor import Doctor
from offbook.doctor.findings import brief
from offbook.errors import ConfigError
from offbook.monitor import Monitor
from offbook.settings.config import Config
from offbook.tokens.examples import Examples, tokenize
from offbook.tokens.template import ChatTemplate

SHARE, MOST_SHARE = 0.02, 0.1  # of the examples that are held out
HELD_OUT = 20  # examples, where that is not more than `MOST_SHARE`
EXAMINED = 20_000  # rows that are examined before a training: all of them would take too long


@dataclass(frozen=True)
class Data:
    """The examples of a run.

    Attributes:
        files: that they come from, those for training first.
        places: one file of each source, by the name of its setting.
        training, validation: the examples; those for validation may be none.
        mixed: general examples to mix in; None where there are none.
        held_out: `data.validation`, resolved.
    """

    files: tuple[Path, ...]
    places: dict[str, Path]
    training: Examples
    validation: Examples
    mixed: Examples | None
    held_out: float | str

    @property
    def parts(self) -> tuple[Examples, ...]:
        """The examples for training, for validation, and those to mix in, if any."""
        return (self.training, self.validation, *filter(None, [self.mixed]))

    @property
    def longest(self) -> int:
        """Tokens of the longest example."""
        return int(max(part.lengths.max(initial=0) for part in self.parts))

    @property
    def whole(self) -> bool:
        """Whether no row was truncated or left out."""
        return all(part.complete for part in self.parts)


def read_data(
    config: Config,
    template: ChatTemplate,
    limit: int | None,
    monitor: Monitor,
    commits: Mapping[str, str],
) -> Data:
    """Read the rows for training and validation.

    Args:
        config: of the run.
        template: turns conversations into tokens.
        limit: most tokens of an example; None for no limit.
        monitor: receives what is read, and what is odd about it.
        commits: of data sets on the hub, by setting, where not the newest.

    Raises:
        DataError: when the rows cannot be used.
    """
    share = config.data.validation
    reader = read_training(config.data, commits)
    monitor.announce(reader.describe())
    doctor = Doctor(config.doctor, EXAMINED)
    examples = tokenize(doctor.watch(reader), template, limit, monitor.reading)
    sources = [source.data for source in config.data.sources.values()]
    for notice in (*reader.notices(), brief(doctor.findings(reader), sources)):
        if notice:
            monitor.announce(notice)
    places = {key: paths[0] for key, paths in training_files(config.data, commits).items()}
    files, mixed = list(reader.paths), None
    if config.data.mix:
        if not config.mixed_per_step:
            raise ConfigError(
                "a step of one example has no room for others",
                where="data.mix",
                fix="set train.batch_size to 2",
            )
        general = read_conversations(config.data.mix.data, config.data, commits.get("data.mix"))
        mixed = tokenize(general, template, limit)
        files += general.paths
        places["data.mix"] = general.paths[0]
    if share == "auto":
        share = fitting_share(len(examples))
    if isinstance(share, float):
        split = examples.split(share, config.train.seed)
        return Data(tuple(files), places, *split, mixed, share)
    held_out = read_conversations(share, config.data, commits.get("data.validation"))
    validation = tokenize(held_out, template, limit)
    for notice in held_out.notices():
        monitor.announce(notice)
    places["data.validation"] = held_out.paths[0]
    return Data((*files, *held_out.paths), places, examples, validation, mixed, share)


def fitting_share(examples: int) -> float:
    """The share of so many examples that is held out: what `data.validation: auto` means."""
    return max(SHARE, min(HELD_OUT / examples, MOST_SHARE))


def too_few_held_out(held_out: int, examples: int) -> str | None:
    """What to say where too few examples are held out to judge a training by; None where not.

    Args:
        held_out: how many are.
        examples: how many there are in all, with them.
    """
    if held_out >= HELD_OUT:
        return None
    few = f"{held_out:,} examples; {HELD_OUT} or more are needed to judge by"
    if examples < 2 * HELD_OUT:
        return f"{few}: add {2 * HELD_OUT - examples} rows, and set data.validation=0.5"
    return f"{few}: set data.validation={math.ceil(100 * HELD_OUT / examples) / 100:g}"
