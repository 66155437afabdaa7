"""Losses and gradients of a model with an adapter: the fast path, the plain one, and their proof.

The fast path computes what transformers and PEFT compute, on rows without padding, with the layers
of `layers.py`. A model whose attention it does not recognize goes the plain path, padded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from offbook.engine.batching import MicroBatch, Step, make_step
from offbook.engine.layers import Attention, LastLayer, is_replaceable, replacement
from offbook.engine.loss import summed_cross_entropy
from offbook.engine.packing import Rows
from offbook.engine.prefix import KeysAndValues, Prefix
from offbook.errors import EngineError
from offbook.models.load import backbone, head
from offbook.tokens.examples import IGNORED, Example

# The largest relative difference between fast and plain gradients that rounding explains, over all
# adapters; in a matrix whose gradient is close to zero, it is some times as large.
# A healthy model in bfloat16 has 0.07, and up to 0.22 in a matrix.
TOLERANCE = {torch.bfloat16: 0.3, torch.float32: 1e-3, torch.float64: 1e-6}
OF_ONE_MATRIX = 4
CHECKED_TOKENS = 128
# Tokens of a micro-batch are made a multiple of this, by a row that nothing comes of: matrix
# products with some odd numbers of rows are slower by a third.
EVEN = 16


class Engine:
    """Computes losses and gradients of one model.

    Attributes:
        model: a causal language model, with an adapter or without.
        packed: whether rows go through it without padding.
        plain_layers: classes of layers that it does not recognize, and leaves as they are.
    """

    def __init__(self, model: nn.Module, *, fast: bool = True) -> None:
        self.model = model
        self._swaps: list[tuple[nn.Module, str, nn.Module, nn.Module]] = []
        unrecognized: dict[str, None] = {}
        if fast:
            for parent in list(backbone(model).modules()):
                for name, plain in list(parent.named_children()):
                    quick = replacement(plain)
                    if quick is not None:
                        self._swaps.append((parent, name, plain, quick))
                    elif is_replaceable(plain):
                        unrecognized[type(plain).__name__] = None
        self.plain_layers = tuple(unrecognized)
        self.packed = any(isinstance(quick, Attention) for *_, quick in self._swaps) and not any(
            name.endswith("Attention") for name in unrecognized
        )
        if not self.packed:
            self._swaps = [swap for swap in self._swaps if not isinstance(swap[3], Attention)]
        self._install()
        if self.packed:
            layers: Any = backbone(model).layers
            last = str(len(layers) - 1)
            self._swaps.append((layers, last, layers[-1], LastLayer(layers[-1])))
            self._install()

    def make_step(self, examples: Sequence[Example], max_tokens: int, device: torch.device) -> Step:
        """Examples as micro-batches of at most `max_tokens` tokens for this model."""
        return make_step(examples, max_tokens, device, packed=self.packed)

    def accumulate(
        self,
        step: Step,
        seed: Sequence[int],
        should_stop: Callable[[], bool] = lambda: False,
    ) -> float | None:
        """Add up the gradients of one optimizer step over its micro-batches.

        The gradient is that of the mean over the supervised tokens of the whole step, however it
        is cut. Dropout is seeded by `seed`, so that a step is the same whenever it is taken.

        Returns:
            The mean loss in nats a token; None, and no gradients, when `should_stop` said so.
        """
        torch.manual_seed(int(np.random.SeedSequence(seed).generate_state(1)[0]))
        self.model.train()
        return self._backward(step, should_stop)

    def mean_loss(
        self, step: Step, should_stop: Callable[[], bool] = lambda: False
    ) -> float | None:
        """The loss per supervised token, in evaluation mode, in nats.

        Returns None when `should_stop` says so before the end.
        """
        total = 0.0
        with torch.no_grad(), evaluating(self.model):
            prefix = self._prefix(step)
            for batch in step.micro_batches:
                if should_stop():
                    return None
                total += self.loss(batch, prefix).item()
        return total / step.supervised

    def loss(self, batch: MicroBatch, prefix: Prefix | None = None) -> torch.Tensor:
        """The summed cross-entropy of a micro-batch's supervised tokens, in nats.

        A sum, not a mean: the caller divides by the supervised tokens of the whole step, so that
        how a step is cut into micro-batches does not matter.
        """
        if not self.packed:
            return plain_loss(self.model, batch)
        spare = -len(batch.input_ids) % EVEN
        lengths = (*batch.lengths, spare) if spare else batch.lengths
        at = (batch.targets != IGNORED).nonzero()[:, 0]
        rows = Rows(lengths, batch.offset, at, holds_prefix=batch.holds_prefix)
        rows.prefix = prefix.leaves if prefix else None
        hidden_ND = self._hidden(F.pad(batch.input_ids, (0, spare)), rows)
        return summed_cross_entropy(hidden_ND, head(self.model), batch.targets[at])

    @contextmanager
    def plain(self) -> Iterator[None]:
        """The model as transformers and PEFT made it, for as long as the context lasts."""
        for parent, name, plain, _ in self._swaps:
            setattr(parent, name, plain)
        try:
            yield
        finally:
            self._install()

    def check(self, examples: Sequence[Example], device: torch.device) -> float:
        """Compare loss and gradients with the plain path's on a few short examples.

        Dropout is off, and with it checkpointing. Examples are cut to a few tokens.

        Returns:
            The relative difference of the gradients, over all adapters.

        Raises:
            EngineError: when it is more than rounding explains.
        """
        if not self._swaps:
            return 0.0
        few = _few(examples)
        with evaluating(self.model), _nonzero_adapter(self.model) as trained:
            step = make_step(few, CHECKED_TOKENS, device, packed=self.packed, min_shared_tokens=1)
            loss, fast = self._gradients(step, trained)
            with self.plain():
                plain = Engine(self.model, fast=False)
                step = plain.make_step(few, CHECKED_TOKENS, device)
                expected_loss, expected = plain._gradients(step, trained)
        off = {name: _difference(fast[name], expected[name]) for name in trained}
        worst = max(off, key=lambda name: off[name])
        flat, expected_flat = (
            torch.cat([g.flatten() for g in x.values()]) for x in (fast, expected)
        )
        overall = _difference(flat, expected_flat)
        tolerance = TOLERANCE[next(head(self.model).parameters()).dtype]
        within = overall <= tolerance and off[worst] <= OF_ONE_MATRIX * tolerance
        if not within or not math.isclose(loss, expected_loss, rel_tol=tolerance):
            raise EngineError(
                f"the fast path's gradients differ from those of transformers and PEFT by "
                f"{overall:.2g} ({tolerance:g} is rounding), most in {worst} ({off[worst]:.2g}); "
                f"its loss is {loss:.6g}, theirs {expected_loss:.6g}",
                fix="report this model, and train with train.engine=plain",
            )
        return overall

    def _backward(self, step: Step, should_stop: Callable[[], bool]) -> float | None:
        prefix, total = self._prefix(step), 0.0
        for batch in step.micro_batches:
            if should_stop():
                self.model.zero_grad(set_to_none=True)
                return None
            loss = self.loss(batch, prefix) / step.supervised
            loss.backward()
            total += loss.item()
        if prefix:
            prefix.backward()
        return total

    def _gradients(
        self, step: Step, trained: dict[str, nn.Parameter]
    ) -> tuple[float, dict[str, torch.Tensor]]:
        """The mean loss of a step and its gradients, in the mode the model is in."""
        self.model.zero_grad(set_to_none=True)
        loss = self._backward(step, lambda: False)
        gradients = {
            name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in trained.items()
        }
        self.model.zero_grad(set_to_none=True)
        return loss or 0.0, gradients

    def _prefix(self, step: Step) -> Prefix | None:
        if not len(step.prefix):
            return None
        computed: KeysAndValues = {}
        nothing = torch.empty(0, dtype=torch.int64, device=step.prefix.device)
        rows = Rows([len(step.prefix)], 0, nothing, record=computed)
        self._hidden(step.prefix, rows)
        # The graph holds `rows`; were they to hold keys and values of the graph, neither would go.
        rows.record = None
        return Prefix(computed)

    def _hidden(self, input_ids: torch.Tensor, rows: Rows) -> torch.Tensor:
        """Last hidden states [wanted, hidden] of packed rows."""
        output = backbone(self.model)(
            input_ids=input_ids[None],
            # transformers takes a mask of four dimensions as made, and makes none; ours needs none.
            attention_mask=torch.empty(1, 1, 1, 1, device=input_ids.device),
            position_ids=rows.positions[None],
            use_cache=False,
            rows=rows,
        )
        hidden: torch.Tensor = output.last_hidden_state[0]
        return hidden

    def _install(self) -> None:
        for parent, name, _, quick in self._swaps:
            setattr(parent, name, quick)


def plain_loss(model: nn.Module, batch: MicroBatch) -> torch.Tensor:
    """The loss as transformers computes it, on rows padded on the right.

    Attention is causal, so no real token sees padding and no mask is needed. Prompt positions do
    not reach the output head, which for a large vocabulary is the widest layer by far.
    """
    input_ids_BT = batch.padded(batch.input_ids, 0)
    targets_BT = batch.padded(batch.targets, IGNORED)
    hidden_BTD = backbone(model)(input_ids=input_ids_BT, use_cache=False).last_hidden_state
    at = targets_BT != IGNORED
    logits_NV = head(model)(hidden_BTD[at])
    wide = torch.promote_types(logits_NV.dtype, torch.float32)
    return F.cross_entropy(logits_NV.to(wide), targets_BT[at], reduction="sum")


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, without dropout, for as long as the context lasts."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


@contextmanager
def _nonzero_adapter(model: nn.Module) -> Iterator[dict[str, nn.Parameter]]:
    """The trained parameters; those that are zero, as a fresh B is, get noise for a while.

    With B zero the gradient of A is zero too, and nothing would be compared.
    """
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    zero = [p for p in trained.values() if not p.any()]
    generator = torch.Generator().manual_seed(0)
    try:
        for p in zero:
            noise = torch.randn(p.shape, generator=generator) / p.shape[0]
            p.data.copy_(noise)
        yield trained
    finally:
        for p in zero:
            p.data.zero_()


def _few(examples: Sequence[Example]) -> list[Example]:
    """The shortest examples, two at least, cut so that all stay below `CHECKED_TOKENS`."""
    few: list[Example] = []
    for example in sorted(examples, key=len):
        part = _part(example, CHECKED_TOKENS // 2)
        if len(few) >= 2 and sum(map(len, few)) + len(part) > CHECKED_TOKENS:
            break
        few.append(part)
    return few


def _part(example: Example, size: int) -> Example:
    """At most `size` tokens of an example, the first supervised one among them."""
    supervised = np.flatnonzero(example.labels[1:] != IGNORED) + 1
    stop = min(max(size, int(supervised[0]) + 1 if len(supervised) else 0), len(example))
    kept = slice(max(stop - size, 0), stop)
    return replace(example, input_ids=example.input_ids[kept], labels=example.labels[kept])


def _difference(got: torch.Tensor, expected: torch.Tensor) -> float:
    norm = float(expected.norm())
    return float((got - expected).norm()) / norm if norm else float(got.norm())
