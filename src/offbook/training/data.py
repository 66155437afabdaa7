"""The examples of a run, read from its rows, and what of the rows is left out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from offbook.config import Config
from offbook.data.conversations import read_conversations
from offbook.doctor.doctor import Doctor
from offbook.doctor.findings import brief
from offbook.monitor import Monitor
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
        training, validation: the examples; those for validation may be none.
        held_out: `data.validation`, resolved.
    """

    files: tuple[Path, ...]
    training: Examples
    validation: Examples
    held_out: float | str

    @property
    def longest(self) -> int:
        """Tokens of the longest example."""
        return int(max(self.training.lengths.max(), self.validation.lengths.max(initial=0)))

    @property
    def whole(self) -> bool:
        """Whether no row was truncated or left out."""
        return self.training.complete and self.validation.complete


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
    reader = read_conversations(config.data.train, config.data, commits.get("data.train"))
    monitor.announce(reader.describe())
    doctor = Doctor(config.doctor, EXAMINED)
    examples = tokenize(doctor.watch(reader), template, limit, monitor.reading)
    for notice in (*reader.notices(), brief(doctor.findings(reader), config.data.train)):
        if notice:
            monitor.announce(notice)
    if share == "auto":
        share = fitting_share(len(examples))
    if isinstance(share, float):
        return Data(reader.paths, *examples.split(share, config.train.seed), share)
    held_out = read_conversations(share, config.data, commits.get("data.validation"))
    validation = tokenize(held_out, template, limit)
    for notice in held_out.notices():
        monitor.announce(notice)
    return Data((*reader.paths, *held_out.paths), examples, validation, share)


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
