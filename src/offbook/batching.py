"""Which examples an optimizer step sees, and how they are cut into micro-batches.

The order is a pure function of the seed and the step, so there is no position to save: a resumed
run asks for the next step and gets the rows it would have got.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from offbook.config import TrainSettings
from offbook.template import IGNORED, Example


@dataclass(frozen=True)
class Schedule:
    """The rows of every optimizer step.

    Attributes:
        examples: how many there are.
        batch_size: examples per step; the last step of an epoch takes what is left.
        seed: of the order, which is new in each epoch.
    """

    examples: int
    batch_size: int
    seed: int

    @classmethod
    def of(cls, examples: Sequence[Example], settings: TrainSettings) -> Schedule:
        """The schedule for a data set."""
        return cls(len(examples), settings.batch_size, settings.seed)

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(self.examples / self.batch_size)

    def total_steps(self, settings: TrainSettings) -> int:
        """Optimizer steps in all."""
        if settings.max_steps is not None:
            return settings.max_steps
        return max(math.ceil(settings.num_train_epochs * self.steps_per_epoch), 1)

    def rows(self, step: int) -> NDArray[np.int64]:
        """Indices of the examples of the step after `step` completed ones."""
        epoch, index = divmod(step, self.steps_per_epoch)
        start = index * self.batch_size
        return _order(self.examples, self.seed, epoch)[start : start + self.batch_size]


@lru_cache(maxsize=2)
def _order(examples: int, seed: int, epoch: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, epoch]).permutation(examples)


@dataclass(frozen=True)
class Batch:
    """Rows padded on the right to one length.

    Attributes:
        input_ids: int64 [rows, tokens].
        labels: int64 [rows, tokens]; -100 where not supervised, padding included. Not shifted.
    """

    input_ids: torch.Tensor
    labels: torch.Tensor

    @property
    def supervised(self) -> int:
        """Tokens that are predicted and trained on; the first of a row is predicted by nothing."""
        return int((self.labels[:, 1:] != IGNORED).sum())


def micro_batches(
    examples: Sequence[Example], max_tokens: int, device: torch.device
) -> list[Batch]:
    """Cut the examples of a step into batches of like length.

    Args:
        examples: of one step.
        max_tokens: most tokens of a batch, padding counted; a longer row stands alone.
        device: where the tensors go.
    """
    groups: list[list[Example]] = []
    for example in sorted(examples, key=len, reverse=True):
        # The first of a group is its longest, so it sets the width.
        if groups and (len(groups[-1]) + 1) * len(groups[-1][0]) <= max_tokens:
            groups[-1].append(example)
        else:
            groups.append([example])
    return [collate(group, device) for group in groups]


def collate(examples: Sequence[Example], device: torch.device) -> Batch:
    """Pad rows on the right to the longest."""
    shape = (len(examples), max(map(len, examples)))
    # Any id will do for padding: what is supervised is known by position, never by id.
    input_ids, labels = np.zeros(shape, dtype=np.int64), np.full(shape, IGNORED, dtype=np.int64)
    for row, example in enumerate(examples):
        input_ids[row, : len(example)] = example.input_ids
        labels[row, : len(example)] = example.labels
    return Batch(torch.from_numpy(input_ids).to(device), torch.from_numpy(labels).to(device))
