"""Every backend against a plain reference in float64: each operation, forward and backward.

A new backend is tested once it is listed in `BACKENDS`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from offbook.engine.dropout import Masks
from offbook.engine.layout import Layout
from offbook.engine.loss import cross_entropy
from offbook.engine.ops import BACKENDS, Backend, cuda_attention
from offbook.engine.ops.cuda import Cuda
from offbook.engine.ops.torch import Torch
from offbook.engine.projection import Part, Projection
from support.engines import DEVICE
from support.flash import Flash

# The relative error of a tensor that rounding its result explains.
TOLERANCES = {torch.float32: 2e-6, torch.bfloat16: 6e-3}
# What is allowed to a backend that rounds intermediate results too.
FACTORS = {Torch: 2, Cuda: 2}

backends = pytest.mark.parametrize("ops", BACKENDS, ids=lambda ops: type(ops).__name__)
formats = pytest.mark.parametrize("dtype", TOLERANCES)


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return x.to(DEVICE, dtype)


def close(ops: Backend, dtype: torch.dtype, got: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether a result computed from inputs of a format is that of float64, to rounding."""
    tolerance = TOLERANCES[dtype] * FACTORS.get(type(ops), 1)
    error = ((got.double() - expected).norm() / expected.norm()).item()
    return got.shape == expected.shape and error <= tolerance


def compare(
    ops: Backend,
    compute: Callable[..., torch.Tensor],
    reference: Callable[..., torch.Tensor],
    inputs: Sequence[torch.Tensor],
) -> None:
    """Outputs and gradients of a function of `inputs` are those of the reference in float64."""
    inputs = [x.detach().requires_grad_() for x in inputs]
    wide = [x.detach().double().requires_grad_() for x in inputs]
    y, expected = compute(*inputs), reference(*wide)
    dy = random(*y.shape, dtype=y.dtype, seed=99)
    gradients = torch.autograd.grad(y, inputs, dy)
    expected_gradients = torch.autograd.grad(expected, wide, dy.double())
    for got, wanted in zip((y, *gradients), (expected, *expected_gradients), strict=True):
        assert close(ops, inputs[0].dtype, got, wanted)


@pytest.fixture(autouse=True)
def without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a processor, Triton interprets kernels, and FlashAttention is written out."""
    if DEVICE.type == "cpu":
        monkeypatch.setattr(cuda_attention, "aten", Flash)


def needs(ops: Backend, dtype: torch.dtype, *widths: int) -> None:
    interpreted = isinstance(ops, Cuda) and DEVICE.type == "cpu" and dtype == torch.float32
    if not interpreted and not ops.supports(DEVICE, dtype, widths):
        pytest.skip("not supported here")


@backends
@formats
@pytest.mark.parametrize("shape", [(5, 64), (1, 7, 3, 32)])
def test_norm(ops: Backend, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    width = shape[-1]
    needs(ops, dtype, width)
    weight = random(width, dtype=dtype, seed=1)
    compare(
        ops,
        lambda x: ops.norm(x, weight, 1e-5),
        lambda x: F.rms_norm(x, (width,), weight.double(), 1e-5),
        [random(*shape, dtype=dtype)],
    )


@backends
@formats
def test_rotation(ops: Backend, dtype: torch.dtype) -> None:
    needs(ops, dtype, 64)
    angles = random(5, 32, seed=1).repeat(1, 2)  # both halves of a head have the same
    cos_TC, sin_TC = angles.cos().to(dtype), angles.sin().to(dtype)

    def reference(x_THC: torch.Tensor) -> torch.Tensor:
        rotated = torch.cat([-x_THC[..., 32:], x_THC[..., :32]], -1)
        return x_THC * cos_TC.double()[:, None] + rotated * sin_TC.double()[:, None]

    x_THC = random(5, 3, 64, dtype=dtype)
    compare(ops, lambda x: ops.rotate(x, cos_TC, sin_TC), reference, [x_THC])
    strided = random(3, 5, 64, dtype=dtype).transpose(0, 1)  # not contiguous
    compare(ops, lambda x: ops.rotate(x, cos_TC, sin_TC), reference, [strided])


def linear_layer(outputs: int, inputs: int, bias: bool, dtype: torch.dtype) -> nn.Linear:
    return nn.Linear(inputs, outputs, bias=bias).to(DEVICE, dtype).requires_grad_(False)


@backends
@formats
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("rank", [4, 24])
@pytest.mark.parametrize("tokens", [1, 50])
@pytest.mark.parametrize("scales", [(1.5, 1.5), (1.5, 0.5)])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_projection(
    ops: Backend,
    dtype: torch.dtype,
    gated: bool,
    rank: int,
    tokens: int,
    scales: tuple[float, float],
    dropout: float,
) -> None:
    """Two layers with LoRA on one input, and one without."""
    outputs = (96, 32, 160)
    needs(ops, dtype, 64, *outputs)
    torch.manual_seed(0)
    bases = [linear_layer(n, 64, bias, dtype) for n, bias in zip(outputs, (1, 0, 1), strict=True)]
    inputs = [random(tokens, 64, dtype=dtype, seed=k) for k in range(1 + gated)]
    shapes = [shape for n in outputs[:2] for shape in ((rank, 64), (n, rank))]
    adapters = [random(*shape, seed=10 + k) * 0.3 for k, shape in enumerate(shapes)]

    parameters = [nn.Parameter(t) for t in adapters]
    projections = [
        Projection(bases[0], *parameters[:2], scaling=scales[0], dropout=dropout, place=3),
        Projection(bases[1], *parameters[2:], scaling=scales[1], dropout=dropout, place=4),
        Projection(bases[2]),
    ]
    masks = Masks.draw([0], 5, DEVICE).of(torch.randperm(10**4, device=DEVICE)[:tokens])
    x_TI = [t.clone().requires_grad_() for t in inputs]
    y = torch.cat(ops.project(x_TI[0], x_TI[1] if gated else None, projections, masks), -1)
    wide = [t.detach().double().requires_grad_() for t in (*inputs, *adapters)]
    x = F.silu(wide[1]) * wide[0] if gated else wide[0]
    parts = []
    for k, base in enumerate(bases):
        part = F.linear(x, base.weight.double(), None if base.bias is None else base.bias.double())
        if k < 2:
            a, b = wide[1 + gated + 2 * k : 3 + gated + 2 * k]
            seen = torch.where(masks.keep(3 + k, 64, dropout), x, 0)
            part = part + projections[k].scale * seen @ a.t() @ b.t()
        parts.append(part)
    expected = torch.cat(parts, -1)
    dy = random(*y.shape, dtype=dtype, seed=99)
    got = torch.autograd.grad(y, [*x_TI, *parameters], dy)
    wanted = torch.autograd.grad(expected, wide, dy.double())
    for one, other in zip((y, *got), (expected, *wanted), strict=True):
        assert close(ops, dtype, one, other)


@backends
@formats
@pytest.mark.parametrize("gated", [False, True])
def test_projections_of_several_adapters(ops: Backend, dtype: torch.dtype, gated: bool) -> None:
    """Each has tokens, a rank and dropout of its own, and one has no adapter in the first layer."""
    outputs, sizes, ranks = (96, 32), (5, 48, 30), (4, 8, 4)
    needs(ops, dtype, 64, *outputs)
    torch.manual_seed(0)
    bases = [linear_layer(n, 64, bias, dtype) for n, bias in zip(outputs, (1, 0), strict=True)]
    inputs = [random(sum(sizes), 64, dtype=dtype, seed=k) for k in range(1 + gated)]
    adapters = {
        (k, n): [random(*shape, seed=9 * k + n) * 0.3 for shape in ((rank, 64), (width, rank))]
        for k, rank in enumerate(ranks)
        for n, width in enumerate(outputs)
        if (k, n) != (1, 0)
    }
    masks = [
        Masks.draw([k], 2, DEVICE).of(torch.randperm(1000, device=DEVICE)[:size])
        for k, size in enumerate(sizes)
    ]
    rows = [slice(end - size, end) for size, end in zip(sizes, accumulate(sizes), strict=True)]

    def made(flat: Sequence[torch.Tensor]) -> list[list[Projection]]:
        given = iter(flat)
        return [
            [
                Projection(base, next(given), next(given), 2.0, 0.1 * k, n)
                if (k, n) in adapters
                else Projection(base)
                for n, base in enumerate(bases)
            ]
            for k in range(3)
        ]

    def compute(*given: torch.Tensor) -> torch.Tensor:
        x_TI, *others = given
        gate_TI = others.pop(0) if gated else None
        parts = [Part(*one) for one in zip(rows, made(others), masks, strict=True)]
        return torch.cat(ops.project_parts(x_TI, gate_TI, parts), -1)

    def reference(*given: torch.Tensor) -> torch.Tensor:
        x_TI, *others = given
        x_TI = F.silu(others.pop(0)) * x_TI if gated else x_TI
        found = []
        for own, projections, drawn in zip(rows, made(others), masks, strict=True):
            ys = []
            for p in projections:
                bias = None if p.bias is None else p.bias.double()
                ys.append(F.linear(x_TI[own], p.base.weight.double(), bias))
                if p.lora_A is not None:
                    seen = torch.where(drawn.keep(p.place, 64, p.dropout), x_TI[own], 0)
                    ys[-1] = ys[-1] + p.scale * seen @ p.lora_A.t() @ p.lora_B.t()
            found.append(torch.cat(ys, -1))
        return torch.cat(found)

    flat = [matrix for pair in adapters.values() for matrix in pair]
    compare(ops, compute, reference, [*inputs, *flat])


def attention_reference(
    lengths: Sequence[int], scaling: float, window: int | None, *tensors: torch.Tensor
) -> torch.Tensor:
    """Softmax over an explicit mask, sequence by sequence."""
    q_THC, k_TKC, v_TKC, *past = tensors
    group, outputs = q_THC.shape[1] // k_TKC.shape[1], []
    for start, stop in pairwise(accumulate(lengths, initial=0)):
        k, v = (x[start:stop] for x in (k_TKC, v_TKC))
        if past:
            k, v = torch.cat([past[0], k]), torch.cat([past[1], v])
        k, v = (x.repeat_interleave(group, 1) for x in (k, v))
        scores = torch.einsum("thc,shc->hts", q_THC[start:stop], k) * scaling
        key = torch.arange(len(k), device=k.device)
        query = key[start - stop :, None]
        hidden = (key > query) | (key <= query - (window or len(k)))
        p = scores.masked_fill(hidden, -torch.inf).softmax(-1)
        outputs.append(torch.einsum("hts,shc->thc", p, v))
    return torch.cat(outputs)


@backends
@formats
@pytest.mark.parametrize(("heads", "keys", "channels"), [(4, 4, 32), (9, 3, 64), (2, 1, 96)])
@pytest.mark.parametrize("prefix", [0, 1, 37])
@pytest.mark.parametrize("window", [None, 9])
def test_attention(
    ops: Backend,
    dtype: torch.dtype,
    heads: int,
    keys: int,
    channels: int,
    prefix: int,
    window: int | None,
) -> None:
    needs(ops, dtype, channels)
    lengths = [61, 49, 48, 25, 24, 5, 1]
    shapes = [(sum(lengths), n, channels) for n in (heads, keys, keys)]
    shapes += [(prefix, keys, channels)] * 2 if prefix else []
    inputs = [random(*shape, dtype=dtype, seed=k) for k, shape in enumerate(shapes)]
    layout = Layout(lengths, prefix, torch.arange(sum(lengths), device=DEVICE))
    scaling = channels**-0.5

    def compute(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *past: torch.Tensor
    ) -> torch.Tensor:
        both = (past[0], past[1]) if past else None
        return ops.attend(q, k, v, both, layout, scaling, window)

    compare(
        ops,
        compute,
        lambda *x: attention_reference(lengths, scaling, window, *x),
        inputs,
    )


@backends
@formats
def test_cross_entropy(ops: Backend, dtype: torch.dtype) -> None:
    needs(ops, dtype, 96)
    logits, targets = (
        random(6, 96, dtype=dtype) * 5,
        torch.tensor([0, 95, 17, 31, 32, 50], device=DEVICE),
    )
    logits[0, 40] = -torch.inf
    logits[1] += 300  # exp alone would overflow
    wide = logits.double().requires_grad_()
    expected = F.cross_entropy(wide, targets, reduction="none")
    (gradient,) = torch.autograd.grad(expected.sum(), wide)
    loss, got = ops.cross_entropy(logits, targets)
    assert loss.dtype == torch.float32
    assert close(ops, torch.float32, loss, expected)
    assert close(ops, dtype, got, gradient)


@backends
@formats
@pytest.mark.parametrize("bias", [False, True])
def test_the_loss_of_an_output_head(ops: Backend, dtype: torch.dtype, bias: bool) -> None:
    needs(ops, dtype, 64, 128)
    torch.manual_seed(0)
    head, targets = linear_layer(128, 64, bias, dtype), torch.arange(30, device=DEVICE) % 128
    compare(
        ops,
        lambda x: cross_entropy(ops, x, head, targets),
        lambda x: F.cross_entropy(
            F.linear(x, head.weight.double(), head.bias.double() if bias else None),
            targets,
            reduction="none",
        ),
        [random(30, 64, dtype=dtype)],
    )
