"""What the C++ kernels do that is not in the interface of a backend."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from offbook.engine.dropout import Masks
from offbook.engine.engine import Engine
from offbook.engine.ops import kernels
from offbook.engine.ops.cpu import Cpu
from offbook.engine.ops.kernels import NONE, Dropout, Product
from offbook.engine.ops.library import KERNELS, library
from offbook.engine.projection import Projection
from offbook.settings.sections import LoraSettings
from support.engines import CPU, FAMILIES, make_model, some_examples, with_exact_norms

FORMATS = {torch.float32: 2e-6, torch.bfloat16: 6e-3}
needs_kernels = pytest.mark.skipif(
    library().code is None, reason=f"no kernels: {library().problem}"
)
NUMBERED = Dropout(2**63 + 12345, 20000, torch.tensor([9, 4, 10**6]).repeat(8))
formats = pytest.mark.parametrize("dtype", FORMATS)


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def assert_close(got: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> None:
    """Within the format's rounding, over the whole tensor."""
    assert got.shape == expected.shape
    assert (got.double() - expected).norm() <= FORMATS[dtype] * expected.norm()


def mask_of(dropout: Dropout, rows: int, width: int) -> torch.Tensor:
    """What is kept, as ones and zeros."""
    y = torch.zeros(rows, width)
    kernels.lora_b_(y, torch.ones(rows, 8), torch.full((8, width), 1 / 8), dropout)
    return y


@needs_kernels
@formats
@pytest.mark.parametrize("rank", [8, 24])
@pytest.mark.parametrize("rows", [1, 2, 7, 24])
@pytest.mark.parametrize("dropout", [NONE, Dropout(2**63 + 12345, 20000), NUMBERED])
def test_narrow_products(dtype: torch.dtype, rank: int, rows: int, dropout: Dropout) -> None:
    if dropout is NUMBERED:
        dropout = replace(dropout, numbers=dropout.numbers[:rows])
    x, h, a = random(rows, 96, dtype=dtype), random(rows, rank, seed=1), random(rank, 96, seed=2)
    y = random(rows, 96, dtype=dtype, seed=3)
    mask = mask_of(dropout, rows, 96).double()
    wide, seen = y.double(), x.double() * mask
    assert_close(kernels.lora_a(x, a, dropout), seen @ a.double().t(), torch.float32)
    dy, b = random(rows, 64, dtype=dtype, seed=4), random(rank, 64, seed=5)
    dh, da, db = kernels.lora_backward(x, dy, b, h, dropout)
    assert_close(dh, dy.double() @ b.double().t(), torch.float32)
    assert_close(da, dh.double().t() @ seen, torch.float32)
    assert_close(db, h.double().t() @ dy.double(), torch.float32)
    kernels.lora_b_(y, h, a, dropout)
    assert_close(y, wide + mask * (h.double() @ a.double()), dtype)


@needs_kernels
@formats
@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("rows", [1, 6, 100, 200])
@pytest.mark.parametrize("widths", [(32,), (96, 64, 32), (8256,)])
def test_wide_products(
    dtype: torch.dtype,
    native: bool,
    rows: int,
    widths: tuple[int, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also of more rows, columns and terms of a sum than are computed at a time."""
    there = replace(library(), multiplies_bf16=native)
    monkeypatch.setattr(kernels, "library", lambda: there)
    products, outputs = [], 160
    expected = torch.zeros(rows, outputs).double()
    for k, width in enumerate(widths):
        x = random(rows, width, dtype=dtype, seed=k)
        weight = random(outputs, width, dtype=dtype, seed=10 + k)
        if k % 2:
            weight = weight.t().contiguous().t()
        h, a = random(rows, 8, seed=20 + k), random(8, outputs, seed=30 + k)
        dropout = Dropout(2**63 + k, 20000 * k)
        adapted = width != 96
        products.append(Product(x, weight, *((h, a, dropout) if adapted else ())))
        expected += x.double() @ weight.double().t()
        if adapted:
            expected += mask_of(dropout, rows, outputs).double() * (h.double() @ a.double())
    bias = random(outputs, dtype=dtype, seed=40)
    # Where PyTorch adds, it rounds in between.
    assert_close(kernels.multiply(products), expected, dtype)
    assert_close(kernels.multiply(products, bias), expected + bias.double(), dtype)


@needs_kernels
@formats
@pytest.mark.parametrize("rows", [1, 500])
def test_a_product_does_not_depend_on_the_number_of_threads(dtype: torch.dtype, rows: int) -> None:
    x, w = random(rows, 64, dtype=dtype), random(192, 64, dtype=dtype, seed=1)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 7):
            torch.set_num_threads(threads)
            results += [kernels.linear(x, w) for _ in range(10)]
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(y, results[0]) for y in results)


@needs_kernels
def test_an_update_smaller_than_a_rounding_step_is_not_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of an adapter as training begins: added after the product is rounded, it would vanish."""
    there = replace(library(), multiplies_bf16=True)
    monkeypatch.setattr(kernels, "library", lambda: there)
    x, weight = (random(n, 96, dtype=torch.bfloat16, seed=n) for n in (200, 160))
    h, a = random(200, 8, seed=1) * 1e-3, random(8, 160, seed=2)
    update = h.double() @ a.double()
    without = kernels.multiply([Product(x, weight)]).double()

    def share(y: torch.Tensor) -> float:
        """How much of the update is in `y`."""
        return float(((y.double() - without) * update).sum() / update.square().sum())

    assert share(kernels.multiply([Product(x, weight, h, a)])) == pytest.approx(1, abs=0.1)
    assert share((without + update).bfloat16()) < 0.2


@needs_kernels
@pytest.mark.parametrize("p", [0.05, 0.9])
def test_masks_are_those_of_the_other_backends(p: float) -> None:
    """Of any tokens, and of rows without numbers, which are 0, 1, 2, ..."""
    projection, seed = Projection(torch.nn.Identity(), dropout=p, place=1), (3, -(2**63) + 9)
    for numbers in (torch.arange(50), torch.randint(10**6, (50,))):
        masks = Masks(seed, torch.empty(0), numbers)
        got = mask_of(Dropout.of(projection, masks), 50, 11008)
        assert torch.equal(got, masks.keep(1, 11008, p).float())
        if numbers[1] == 1:
            dropout = replace(Dropout.of(projection, masks), numbers=None)
            assert torch.equal(mask_of(dropout, 50, 11008), got)


@needs_kernels
def test_numbers_of_other_tokens_are_refused() -> None:
    dropout = Dropout(1, 20000, torch.arange(4))
    x, h, b = random(5, 64), random(5, 8), random(8, 64)
    for call in (
        lambda: kernels.lora_a(x, b, dropout),
        lambda: kernels.lora_b_(x, h, b, dropout),
        lambda: kernels.lora_backward(x, x, b, h, dropout),
        lambda: kernels.multiply([Product(x, random(64, 64), h, b, dropout)]),
    ):
        with pytest.raises(ValueError, match="4 numbers for 5 tokens"):
            call()


@needs_kernels
@formats
def test_nan_and_infinity_are_not_hidden(dtype: torch.dtype) -> None:
    """So that a step with one is noticed in its loss or gradient."""
    for bad in (torch.nan, torch.inf):
        x = random(4, 64, dtype=dtype)
        x[2, 5] = bad
        assert not kernels.cross_entropy_(x.clone(), torch.zeros(4).long())[2].isfinite()
        assert not kernels.swiglu(x, x)[2, 5].isfinite()
        assert kernels.rms_norm(x, random(64, dtype=dtype), 1e-5)[0][2].isnan().any()
        assert not kernels.lora_a(x, random(8, 64))[2].isfinite().any()
        assert kernels.lora_a(x, random(8, 64))[3].isfinite().all()
        q = x.view(4, 2, 32)
        o = kernels.attend(q, q, q, (None, None), [2, 2], 1.0, None)
        assert o[2:].isnan().any()
        assert o[:2].isfinite().all()


@needs_kernels
@pytest.mark.parametrize(("prefix", "budget"), [(0, 10**6), (1, 10**6), (40, 10**6), (40, 60)])
@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_through_the_kernels(
    family: str, prefix: int, budget: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {"hidden_size": 128, "intermediate_size": 96, "vocab_size": 128, "head_dim": 32}
    facts = FAMILIES[family].to_dict() | sizes | {"initializer_range": 0.05}
    # Small enough for rounding not to grow from layer to layer.
    lora = LoraSettings(r=4, lora_alpha=1, lora_dropout=0.1)
    model = make_model(type(FAMILIES[family])(**facts), torch.float32, lora)
    used: set[str] = set()
    call = kernels._call
    monkeypatch.setattr(
        kernels, "_call", lambda name, *rest: (used.add(name), call(name, *rest))[1]
    )
    gradients = []
    for engine in (
        Engine(with_exact_norms(model), fast=False, min_shared_tokens=1),
        Engine(copy.deepcopy(model), fast=False, min_shared_tokens=1),
        Engine(model, min_shared_tokens=1),
    ):
        assert (
            engine.accumulate(engine.make_step(some_examples(prefix), budget, CPU), [0]) is not None
        )
        trained = [p.grad for p in engine.model.parameters() if p.grad is not None]
        gradients.append(torch.cat([g.double().flatten() for g in trained]))
    exact, plain, fused = gradients
    assert used & set(KERNELS) == set(KERNELS) - {
        "lora_b"
    }  # that one is for bfloat16 in PyTorch's products
    assert (fused - exact).norm() <= 1.5 * (plain - exact).norm()
    assert (fused - exact).norm() < 1e-5 * exact.norm()


def test_other_formats_widths_and_devices_are_left_to_pytorch() -> None:
    cpu = Cpu()
    assert not cpu.supports(CPU, torch.float64, [64])
    assert not cpu.supports(CPU, torch.float32, [64, 48])
    assert not cpu.supports(torch.device("cuda"), torch.bfloat16, [64])
    assert cpu.supports(CPU, torch.bfloat16, [64]) == (library().code is not None)


@needs_kernels
def test_each_layer_of_a_model_is_decided_on_its_own() -> None:
    """Hidden size 32, MLP 48, heads of 8 channels."""
    model = make_model(FAMILIES["llama-mha"], torch.float32)
    Engine(model)
    layer = model.get_base_model().model.layers[0]
    chosen = {
        "norm": layer.input_layernorm.forward.ops,
        "q, k, v": layer.self_attn.ops_in,
        "heads": layer.self_attn.ops,
        "o": layer.self_attn.ops_out,
        "gate, up": layer.mlp.ops_in,
        "down": layer.mlp.ops_out,
    }
    fused = {name for name, ops in chosen.items() if isinstance(ops, Cpu)}
    assert fused == {"norm", "q, k, v", "o"}
