"""Losses of rows under the base and under the adapter, and how far apart the two models are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel

from offbook.engine.engine import Engine
from offbook.evaluation.subject import Row, spread
from offbook.models.load import head
from offbook.tokens.examples import Example

ROWS = 32  # packed at a time
MICRO_BATCH_TOKENS = 2048
CHUNK = 128  # tokens whose logits, of both models, are in memory at once


@dataclass(frozen=True)
class RowScores:
    """Sums over the supervised tokens of each row.

    Attributes:
        base, tuned: cross-entropy [rows] under each model, in nats.
        kl: KL(base ‖ tuned) [rows] of the predicted distributions, in nats.
        tokens: supervised tokens [rows].
    """

    base: NDArray[np.float64]
    tuned: NDArray[np.float64]
    kl: NDArray[np.float64]
    tokens: NDArray[np.int64]

    def some(self, rows: Sequence[int]) -> RowScores:
        """Those of some of the rows."""
        return RowScores(self.base[rows], self.tuned[rows], self.kl[rows], self.tokens[rows])


class Meter:
    """Measures the adapter of a model on rows; what the base says of them is computed once.

    Args:
        engine: of a model with an adapter.
        examples: the rows; each has a supervised token.
        progress: called with the number of rows done in a pass.
    """

    def __init__(
        self,
        engine: Engine,
        examples: Sequence[Example],
        progress: Callable[[int], None] = lambda rows: None,
    ) -> None:
        self._engine, self._examples, self._progress = engine, examples, progress
        model = engine.model
        assert isinstance(model, PeftModel)
        # The last hidden states [supervised tokens, D] of each row under the base.
        self._base = [torch.empty(0)] * len(examples)
        with model.disable_adapter():
            for rows, _, found_ND in self._pass():
                states_ND = found_ND.cpu()
                for row in np.unique(rows):
                    self._base[row] = states_ND[rows == row]

    def some(self, rows: Sequence[int]) -> Meter:
        """A meter of some of the rows."""
        part = copy(self)
        part._examples = [self._examples[row] for row in rows]
        part._base = [self._base[row] for row in rows]
        part._progress = lambda rows: None
        return part

    def measure(self) -> RowScores:
        """The scores of the adapter as it is now."""
        count = len(self._examples)
        base, tuned, kl = (np.zeros(count) for _ in range(3))
        tokens = np.zeros(count, dtype=np.int64)
        output = head(self._engine.model)
        for rows, targets_N, states_ND in self._pass():
            base_ND = torch.cat([self._base[row] for row in dict.fromkeys(rows.tolist())])
            for at in range(0, len(rows), CHUNK):
                part = slice(at, at + CHUNK)
                with torch.no_grad():
                    found = _token_scores(
                        output(base_ND[part].to(states_ND)),
                        output(states_ND[part]),
                        targets_N[part],
                    )
                for sums, values in zip((base, tuned, kl), found, strict=True):
                    sums += np.bincount(rows[part], values, count)
            tokens += np.bincount(rows, minlength=count)
        return RowScores(base, tuned, kl, tokens)

    def _pass(self) -> Iterator[tuple[NDArray[np.int64], torch.Tensor, torch.Tensor]]:
        """The rows [N], targets [N] and last hidden states [N, D] of each micro-batch."""
        device = next(self._engine.model.parameters()).device
        for first in range(0, len(self._examples), ROWS):
            chosen = [
                self._examples[k] for k in range(first, min(first + ROWS, len(self._examples)))
            ]
            step = self._engine.make_step(chosen, MICRO_BATCH_TOKENS, device)
            for batch, states_ND in self._engine.hidden_states(step):
                yield first + batch.row_of_wanted, batch.targets[batch.wanted], states_ND
            self._progress(first + len(chosen))


@dataclass(frozen=True)
class Measured:
    """Rows that were measured: their scores, and what measures them again."""

    rows: Sequence[Row]
    meter: Meter
    scores: RowScores

    def some(self, most: int) -> Measured:
        """At most so many of the rows, evenly spread."""
        rows = spread(range(len(self.rows)), most)
        return Measured([self.rows[k] for k in rows], self.meter.some(rows), self.scores.some(rows))


def _token_scores(
    base_NV: torch.Tensor, tuned_NV: torch.Tensor, targets_N: torch.Tensor
) -> list[NDArray[np.float64]]:
    """Cross-entropy of both models and KL(base ‖ tuned), for each token."""
    p, q = (logits_NV.float().log_softmax(-1) for logits_NV in (base_NV, tuned_NV))
    kl_N = (p.exp() * (p - q)).sum(-1).clamp_(min=0)
    scores = [-x.gather(-1, targets_N[:, None])[:, 0] for x in (p, q)]
    return [x.double().numpy(force=True) for x in (*scores, kl_N)]
