"""A prefix that all micro-batches of a step share, computed once.

The layers compute its keys and values with a gradient. Then they are detached: micro-batches attend
to them as leaves, where their gradients add up. After the last micro-batch, one backward pass
through the prefix carries the sums on to the adapters.
"""

from __future__ import annotations

import torch

# For every layer, keys and values [P, K, C].
KeysAndValues = dict[int, tuple[torch.Tensor, torch.Tensor]]


class Recorder:
    """Collects the keys and values of every layer while a prefix is computed.

    Checkpointed layers keep their arguments, this object among them, and run once more in the
    backward pass. So it ends with `take`: from then on it holds no tensors of the graph that holds
    it, and records nothing.
    """

    def __init__(self) -> None:
        self._computed: KeysAndValues | None = {}

    def record(self, layer: int, k_PKC: torch.Tensor, v_PKC: torch.Tensor) -> None:
        """Keep the keys and values of a layer."""
        if self._computed is not None:
            self._computed[layer] = (k_PKC, v_PKC)

    def take(self) -> KeysAndValues:
        """What was recorded; ends the recording."""
        assert self._computed is not None
        computed, self._computed = self._computed, None
        return computed


class Prefix:
    """The keys and values of a prefix.

    Attributes:
        leaves: for every layer, keys and values [P, K, C], whose `grad` collects the gradients of
            micro-batches.
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
