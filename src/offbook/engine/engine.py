"""Losses and gradients of a model with an adapter: the fast path and the plain one.

The fast path computes what transformers and PEFT compute, on packed sequences, with the layers of
`layers.py`; `check.py` compares the two. Which layers are replaced, and what happens where some are
not recognized, is in `replaced.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from offbook.engine.batching import MIN_SHARED_TOKENS, MicroBatch, Step, make_step
from offbook.engine.dropout import Masks
from offbook.engine.layout import Layout
from offbook.engine.loss import cross_entropy
from offbook.engine.ops import Backend, choose, threads_for
from offbook.engine.prefix import Prefix, Recorder
from offbook.engine.projection import number_dropouts
from offbook.engine.replaced import Replaced
from offbook.models.load import backbone, head
from offbook.models.sharding import gathered
from offbook.tokens.examples import IGNORED, Example

# Tokens of a micro-batch are padded to a multiple of this, by a dummy sequence: oneDNN's matrix
# products with some odd numbers of rows are slower by a third.
TOKEN_MULTIPLE = 16

# In float16, gradients of less than 6e-8 are lost. Those of the loss times this are not, and most
# are far below 65,504, where it ends (arXiv:1710.03740).
LOSS_SCALE = 2.0**15

Losses = list[tuple[MicroBatch, torch.Tensor]]  # micro-batches, and the losses of their tokens


class Engine:
    """Computes losses and gradients of one model.

    Attributes:
        model: a causal language model, with an adapter or without.
        dropouts: of the layers with an adapter.
        packed: whether sequences are computed without padding.
        plain_layers: classes of layers that it leaves as they are, though others of their kind
            are replaced.
    """

    def __init__(
        self, model: nn.Module, *, fast: bool = True, min_shared_tokens: int = MIN_SHARED_TOKENS
    ) -> None:
        """Prepare a model: replace the layers that are recognized.

        Args:
            model: on its devices and in its format; neither may change afterwards.
            fast: whether to replace layers.
            min_shared_tokens: see `batching.make_step`.
        """
        self.model = model
        self._min_shared_tokens = min_shared_tokens
        self.dropouts = list(number_dropouts(backbone(model)))
        self._replaced = Replaced(model, fast=fast)
        self.packed, self.plain_layers = self._replaced.packed, self._replaced.left
        if self.packed:
            weight = next(head(model).parameters())  # [V, D]
            self._head_ops = choose(weight.device, weight.dtype, weight.shape)

    @property
    def is_plain(self) -> bool:
        """Whether all layers are those of transformers and PEFT."""
        return self._replaced.is_empty

    def make_step(
        self,
        examples: Sequence[Example],
        max_tokens: int,
        device: torch.device,
        mine: Sequence[int] | None = None,
        apart: bool = False,
    ) -> Step:
        """Examples as micro-batches of at most `max_tokens` tokens for this model.

        `mine` are those that this process computes; by default, all of them. For `apart`, see
        `batching.make_step`.
        """
        return make_step(
            examples,
            max_tokens,
            device,
            packed=self.packed,
            min_shared_tokens=self._min_shared_tokens,
            mine=mine,
            apart=apart,
        )

    def accumulate(
        self,
        step: Step,
        seed: Sequence[int],
        should_stop: Callable[[], bool] = lambda: False,
        losses: Losses | None = None,
        scale: float = LOSS_SCALE,
    ) -> float | None:
        """Add up the gradients of one optimizer step over its micro-batches, in training mode.

        The gradient is that of the mean over the supervised tokens of the whole step, whatever the
        micro-batches are, also with dropout.

        Args:
            step: the micro-batches.
            seed: of dropout.
            should_stop: called before each micro-batch.
            losses: receives each micro-batch with the losses [N] of its supervised tokens.
            scale: of the loss in the backward pass, where the model is in float16.

        Returns:
            The mean loss in nats per token, of several processes the share of this one; None, and
            no gradients, if `should_stop` was true.
        """
        self.train_mode()
        return self.forward_backward(step, seed, should_stop, losses, scale)

    def train_mode(self) -> None:
        """Have dropout act."""
        if not (self.model.training and backbone(self.model).training):
            self.model.train()  # it goes through all modules

    def forward_backward(
        self,
        step: Step,
        seed: Sequence[int],
        should_stop: Callable[[], bool] = lambda: False,
        losses: Losses | None = None,
        scale: float = LOSS_SCALE,
    ) -> float | None:
        """As `accumulate`, in the modes that the modules are in."""
        means = []  # not read before the end, so that a GPU has work all the time
        masks = Masks.draw(seed, len(self.dropouts), step.prefix.device)
        if next(head(self.model).parameters()).dtype != torch.float16:
            scale = 1.0
        with self.kernel_threads():
            prefix = self._prefix(step, masks)
            for batch in step.micro_batches:
                if should_stop():
                    self.model.zero_grad(set_to_none=True)
                    return None
                with self._masks_in_peft(batch, masks):
                    loss_N = self.loss(batch, prefix, masks)
                    mean = loss_N.sum() / step.supervised
                    (mean * scale).backward()
                means.append(mean.detach())
                if losses is not None:
                    losses.append((batch, loss_N.detach()))
            if prefix:
                layers: Any = backbone(self.model).layers
                with gathered(layers[-1]):  # entered by its keys and values, not by its output
                    prefix.backward()
        if scale != 1:
            for p in self.model.parameters():
                if p.grad is not None:
                    p.grad.div_(scale)
        return sum(mean.item() for mean in means)

    def mean_loss(
        self, step: Step, should_stop: Callable[[], bool] = lambda: False
    ) -> float | None:
        """The mean loss in nats per supervised token, in evaluation mode.

        Of several processes, the share of this one. Returns None if `should_stop` was true before
        the end.
        """
        losses = []
        with self._without_gradients():
            prefix = self._prefix(step)
            for batch in step.micro_batches:
                if should_stop():
                    return None
                losses.append(self.loss(batch, prefix).sum())
        return sum(loss.item() for loss in losses) / step.supervised

    def loss(
        self, batch: MicroBatch, prefix: Prefix | None = None, masks: Masks | None = None
    ) -> torch.Tensor:
        """The cross-entropy [N] of a micro-batch's supervised tokens, in nats.

        The caller divides their sum by the supervised tokens of the whole step, so that the result
        does not depend on the micro-batches.
        """
        if not self.packed:
            return padded_loss(self.model, batch)
        hidden_ND, output = self._wanted_states(batch, prefix, masks), head(self.model)
        device = next(output.parameters()).device
        targets_N = batch.targets[batch.wanted].to(device)
        with gathered(output):
            return cross_entropy(self._head_ops, hidden_ND.to(device), output, targets_N)

    def hidden_states(self, step: Step) -> Iterator[tuple[MicroBatch, torch.Tensor]]:
        """Each micro-batch with the last hidden states [N, D] of its wanted tokens.

        In evaluation mode and without gradients; the output head makes logits of them.
        """
        with self._without_gradients():
            prefix = self._prefix(step)
        for batch in step.micro_batches:
            with self._without_gradients():  # left before the caller goes on
                if self.packed:
                    states_ND = self._wanted_states(batch, prefix)
                else:
                    states_ND = padded_states(self.model, batch)
            yield batch, states_ND

    def _wanted_states(
        self, batch: MicroBatch, prefix: Prefix | None, masks: Masks | None = None
    ) -> torch.Tensor:
        padding = -len(batch.input_ids) % TOKEN_MULTIPLE
        layout = batch.layout(padding)
        if masks is not None:
            masks = masks.of(F.pad(batch.numbers, (0, padding)))
        return self._hidden(F.pad(batch.input_ids, (0, padding)), layout, prefix, masks=masks)

    def projections(self) -> Iterator[nn.Module]:
        """The linear layers of attention and MLPs, in the same order for all models of a base."""
        return self._replaced.projections()

    def compute_with(self, ops: Backend) -> None:
        """Let a backend that supports all layers compute them."""
        self._head_ops = ops
        self._replaced.compute_with(ops)

    def plain(self) -> AbstractContextManager[None]:
        """Put the layers of transformers and PEFT back while the context lasts."""
        return self._replaced.plain()

    def kernel_threads(self) -> AbstractContextManager[None]:
        """The threads to compute on."""
        if not self.packed:
            return nullcontext()
        weight = next(head(self.model).parameters())
        return threads_for([*self._replaced.backends(), self._head_ops], weight.dtype)

    @contextmanager
    def _without_gradients(self) -> Iterator[None]:
        """Compute in evaluation mode and without gradients while the context lasts."""
        with torch.no_grad(), evaluating(self.model), self.kernel_threads():
            yield

    @contextmanager
    def _masks_in_peft(self, batch: MicroBatch, masks: Masks) -> Iterator[None]:
        """PEFT's layers draw the masks of a micro-batch, in both passes, while the context lasts.

        Nothing can be handed to them through the layers of transformers.
        """
        if not self.packed:
            masks = masks.of(batch.padded(batch.numbers, 0).flatten())
            for dropout in self.dropouts:
                dropout.masks = masks
        try:
            yield
        finally:
            for dropout in self.dropouts:
                dropout.masks = None

    def _prefix(self, step: Step, masks: Masks | None = None) -> Prefix | None:
        if not len(step.prefix):
            return None
        nothing = torch.empty(0, dtype=torch.int64, device=step.prefix.device)
        recorder, tokens = Recorder(), len(step.prefix)
        if masks is not None:
            masks = masks.of(torch.arange(tokens, device=step.prefix.device))
        layout = Layout([tokens], 0, nothing)
        self._hidden(step.prefix, layout, recorder=recorder, masks=masks)
        return Prefix(recorder.take())

    def _hidden(
        self,
        input_ids: torch.Tensor,
        layout: Layout,
        prefix: Prefix | None = None,
        recorder: Recorder | None = None,
        masks: Masks | None = None,
    ) -> torch.Tensor:
        """Last hidden states [N, D] of the wanted tokens."""
        output = backbone(self.model)(
            input_ids=input_ids[None],
            # transformers does not change a mask of four dimensions, and builds none of its own.
            # Our attention ignores it.
            attention_mask=torch.empty(1, 1, 1, 1, device=input_ids.device),
            position_ids=layout.positions[None],
            use_cache=False,
            layout=layout,
            prefix=prefix.leaves if prefix else None,
            recorder=recorder,
            masks=masks,
        )
        hidden: torch.Tensor = output.last_hidden_state[0]
        return hidden


def padded_loss(model: nn.Module, batch: MicroBatch) -> torch.Tensor:
    """The losses [N] on sequences padded on the right, as transformers computes them.

    Attention is causal, so no real token sees padding and no mask is needed. Tokens that are not
    supervised skip the output head, which is by far the widest layer of a large vocabulary.
    """
    logits_NV = head(model)(padded_states(model, batch))
    wide = torch.promote_types(logits_NV.dtype, torch.float32)
    return F.cross_entropy(logits_NV.to(wide), batch.targets[batch.wanted], reduction="none")


def padded_states(model: nn.Module, batch: MicroBatch) -> torch.Tensor:
    """Last hidden states [N, D] of the wanted tokens, of sequences padded on the right."""
    input_ids_BT = batch.padded(batch.input_ids, 0)
    targets_BT = batch.padded(batch.targets, IGNORED)
    hidden_BTD = backbone(model)(input_ids=input_ids_BT, use_cache=False).last_hidden_state
    hidden_ND: torch.Tensor = hidden_BTD[(targets_BT != IGNORED).to(hidden_BTD.device)]
    return hidden_ND


def row_losses(losses: Losses) -> dict[int, float]:
    """The loss of each example of a step, in nats per supervised token, by its number there."""
    found = {}
    for batch, loss_N in losses:
        row_N, loss = batch.row_of_wanted, loss_N.numpy(force=True)
        for row in batch.rows:
            found[row] = float(loss[row_N == row].mean(dtype=np.float64))
    return dict(sorted(found.items()))


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, without dropout, while the context lasts."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
