"""The output head and its loss."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch.nn import functional as F

from offbook.engine import loss as loss_module
from offbook.engine.loss import cross_entropy
from offbook.engine.memory import ByDevice
from offbook.engine.ops import BACKENDS, Backend
from support.engines import CPU


@pytest.mark.parametrize("ops", BACKENDS, ids=lambda ops: type(ops).__name__)
def test_one_chunk_of_logits_is_in_memory_at_a_time(
    monkeypatch: pytest.MonkeyPatch, ops: Backend
) -> None:
    if not ops.supports(CPU, torch.float32, [64, 4096]):
        pytest.skip("no fused kernels here")
    plain = ops.linear
    made: list[weakref.ref[torch.Tensor]] = []

    def linear(*arguments: torch.Tensor | None) -> torch.Tensor:
        result: torch.Tensor = plain(*arguments)
        if result.shape[-1] == 4096:
            assert all(logits() is None for logits in made)
            made.append(weakref.ref(result))
        return result

    torch.manual_seed(0)
    head = torch.nn.Linear(64, 4096, bias=False).requires_grad_(False)
    hidden = torch.randn(64, 64, requires_grad=True)
    targets = torch.randint(4096, (64,))
    expected = F.cross_entropy(head(hidden), targets, reduction="none")
    monkeypatch.setattr(ops, "linear", linear)
    monkeypatch.setattr(loss_module, "CHUNK_BYTES", ByDevice(cpu=1, gpu=1))
    losses = cross_entropy(ops, hidden, head, targets)
    assert len(made) == 4
    torch.testing.assert_close(losses, expected)
    weights = torch.rand(64)
    gradients = (torch.autograd.grad(x, hidden, weights)[0] for x in (losses, expected))
    torch.testing.assert_close(*gradients)
