"""A prefix that all micro-batches of a step share, computed once.

Its keys and values are made with a gradient, then cut off from their history: micro-batches attend
to them as leaves and add up gradients there. One backward pass through the prefix, when all
micro-batches are done, spends the sum.
"""

from __future__ import annotations

import torch

KeysAndValues = dict[int, tuple[torch.Tensor, torch.Tensor]]


class Prefix:
    """The keys and values of a prefix.

    Attributes:
        leaves: for every layer, keys and values [tokens, key heads, head width], whose `grad`
            collects what micro-batches send.
    """

    def __init__(self, computed: KeysAndValues) -> None:
        self._computed = computed
        self.leaves: KeysAndValues = {
            layer: (_leaf(keys), _leaf(values)) for layer, (keys, values) in computed.items()
        }

    def backward(self) -> None:
        """Carry the collected gradients on to the adapters."""
        outputs, gradients = [], []
        for layer, leaves in self.leaves.items():
            for output, leaf in zip(self._computed[layer], leaves, strict=True):
                if leaf.grad is not None:
                    outputs.append(output)
                    gradients.append(leaf.grad)
        torch.autograd.backward(outputs, gradients)


def _leaf(computed: torch.Tensor) -> torch.Tensor:
    return computed.detach().requires_grad_(computed.requires_grad)
