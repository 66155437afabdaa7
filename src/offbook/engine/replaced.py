"""Which parts of a model our own layers replace; the model's own can be put back."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

from torch import nn

from offbook.engine.layers import (
    Attention,
    RMSNorm,
    decoder_layer,
    is_replaceable,
    last_layer,
    replacement,
)
from offbook.engine.ops import Backend
from offbook.models.load import backbone, head


class Swap(NamedTuple):
    """A part of a module that is replaced.

    Attributes:
        parent: the module.
        name: of the part, or `forward`.
        plain: what it was.
        ours: what replaces it.
    """

    parent: nn.Module
    name: str
    plain: Any
    ours: Any


class Replaced:
    """The parts of a model that are replaced.

    Where attention or MLPs are not all recognized, those of transformers and PEFT compute, and
    norms alone are replaced.

    Attributes:
        packed: whether all of attention and MLPs are ours, so that sequences need no padding.
        left: classes of layers that stay as they are, though others of their kind are replaced.
    """

    def __init__(self, model: nn.Module, *, fast: bool) -> None:
        """Replace the layers that are recognized; none without `fast`."""
        weight = next(head(model).parameters())
        self._swaps: list[Swap] = []
        unrecognized: dict[str, None] = {}  # in the order of the model
        for parent in list(backbone(model).modules()) if fast else []:
            for name, plain in list(parent.named_children()):
                ours = replacement(plain, weight.dtype)
                if isinstance(ours, RMSNorm):
                    self._swaps.append(Swap(plain, "forward", plain.forward, ours))
                elif ours is not None:
                    self._swaps.append(Swap(parent, name, plain, ours))
                elif is_replaceable(plain):
                    unrecognized[type(plain).__name__] = None
        self.packed = any(isinstance(swap.ours, Attention) for swap in self._swaps) and not any(
            name.endswith(("Attention", "MLP")) for name in unrecognized
        )
        if not self.packed:
            others = [swap for swap in self._swaps if not isinstance(swap.ours, RMSNorm)]
            unrecognized |= {type(swap.plain).__name__: None for swap in others}
            self._swaps = [swap for swap in self._swaps if isinstance(swap.ours, RMSNorm)]
        self.left = tuple(unrecognized)
        if self.packed:
            self._add_decoder_layers(backbone(model).layers)
        self._put(ours=True)

    @property
    def is_empty(self) -> bool:
        """Whether nothing is replaced."""
        return not self._swaps

    def projections(self) -> Iterator[nn.Module]:
        """The linear layers of attention and MLPs, in the same order for all models of a base."""
        for swap in self._swaps:
            if isinstance(swap.ours, nn.Module):
                yield from (m for name, m in swap.ours.named_children() if name.endswith("_proj"))

    def backends(self) -> list[Backend]:
        """What computes our layers; one for each of their operations."""
        values = (value for swap in self._swaps for value in vars(swap.ours).values())
        return [value for value in values if isinstance(value, Backend)]

    def compute_with(self, ops: Backend) -> None:
        """Let a backend that supports all layers compute them."""
        for swap in self._swaps:
            for name, value in vars(swap.ours).items():
                if isinstance(value, Backend):
                    setattr(swap.ours, name, ops)

    @contextmanager
    def plain(self) -> Iterator[None]:
        """Put the layers of transformers and PEFT back while the context lasts."""
        self._put(ours=False)
        try:
            yield
        finally:
            self._put(ours=True)

    def _add_decoder_layers(self, layers: Any) -> None:
        for k, layer in enumerate(layers):
            compute = last_layer if k == len(layers) - 1 else decoder_layer
            # A proxy, or a layer would hold itself, and its memory stay until Python looks.
            ours = partial(compute, weakref.proxy(layer))
            self._swaps.append(Swap(layer, "forward", layer.forward, ours))

    def _put(self, *, ours: bool) -> None:
        for swap in self._swaps:
            setattr(swap.parent, swap.name, swap.ours if ours else swap.plain)
