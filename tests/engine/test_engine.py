"""The fast path against transformers and PEFT: the same losses and gradients, and less work."""

from __future__ import annotations

import copy
import weakref
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import GPTNeoXConfig, LlamaConfig

from offbook.engine import attention, layout
from offbook.engine import engine as engine_module
from offbook.engine.check import check_gradients
from offbook.engine.engine import Engine
from offbook.engine.ops import torch as torch_ops
from offbook.engine.ops import torch_attention
from offbook.engine.prefix import KeysAndValues, Prefix
from offbook.models.load import checkpoint_layers, load_base
from offbook.settings.sections import LoraSettings
from offbook.tokens.examples import Example
from support.engines import (
    DEVICE,
    FAMILIES,
    SIZES,
    example,
    make_model,
    some_examples,
    with_exact_norms,
)

Gradients = dict[str, torch.Tensor]
ANY = 10**6  # tokens: one micro-batch, which holds the prefix
FEW = 60  # several, and the prefix comes first


def fast_engine(model: torch.nn.Module) -> Engine:
    """One that shares any prefix."""
    return Engine(model, min_shared_tokens=1)


def gradients(engine: Engine, examples: list[Example], budget: int = ANY) -> Gradients:
    step = engine.make_step(examples, budget, DEVICE)
    assert engine.accumulate(step, [0]) is not None
    found = {n: p.grad for n, p in engine.model.named_parameters() if p.grad is not None}
    engine.model.zero_grad(set_to_none=True)
    return found


def difference(got: Gradients, expected: Gradients) -> float:
    """The largest relative difference of a matrix."""
    assert got.keys() == expected.keys()
    return max(float((got[n] - g).norm() / g.norm()) for n, g in expected.items())


def overall(got: Gradients, expected: Gradients) -> float:
    """The relative difference of all matrices together."""
    flat = [torch.cat([x[n].double().flatten() for n in expected]) for x in (got, expected)]
    return float((flat[0] - flat[1]).norm() / flat[1].norm())


# Fast equals slow.


@pytest.mark.parametrize("prefix", [0, 1, 2, 40])
@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_those_of_the_plain_path(family: str, prefix: int) -> None:
    model = make_model(FAMILIES[family], torch.float64)
    plain = Engine(with_exact_norms(model), fast=False)
    fast = fast_engine(model)
    assert fast.packed
    assert fast.plain_layers == ()
    examples = some_examples(prefix)
    step = fast.make_step(examples, ANY, DEVICE)
    # The last row's second token is supervised, so the prefix stops a token short of it.
    assert step.micro_batches[0].offset == prefix
    loss, expected_loss = (
        fast.mean_loss(step),
        plain.mean_loss(plain.make_step(examples, ANY, DEVICE)),
    )
    assert loss == pytest.approx(expected_loss, rel=1e-12)
    expected = gradients(plain, examples)
    assert len(expected) == 3 * 7 * 2
    for budget in (ANY, FEW, 1):
        assert difference(gradients(fast, examples, budget), expected) < 1e-10


@pytest.mark.parametrize(("family", "prefix"), [("llama-gqa", 0), ("qwen3", 40)])
def test_dropout_does_not_depend_on_how_a_step_is_divided(family: str, prefix: int) -> None:
    """Nor on the path: both draw the same masks."""
    lora = LoraSettings(r=4, lora_dropout=0.1)
    model = make_model(FAMILIES[family], torch.float64, lora)
    plain = Engine(with_exact_norms(model), fast=False, min_shared_tokens=1)
    fast, examples = fast_engine(model), some_examples(prefix)
    expected = gradients(plain, examples)
    for engine, budget in ((plain, FEW), (plain, 1), (fast, ANY), (fast, FEW), (fast, 1)):
        assert difference(gradients(engine, examples, budget), expected) < 1e-10
    without = fast_engine(make_model(FAMILIES[family], torch.float64))
    assert difference(gradients(without, examples), expected) > 0.1


def test_dropout_of_layers_that_are_left_to_peft() -> None:
    """DoRA, and layers that are not recognized."""
    sizes = {name: value for name, value in SIZES.items() if value is not None}
    for config, changes in (
        (FAMILIES["llama-gqa"], {"use_dora": True}),
        (GPTNeoXConfig(**sizes), {"target_modules": "all-linear"}),
    ):
        lora = LoraSettings(r=4, lora_dropout=0.1, **changes)
        engine = fast_engine(make_model(config, torch.float64, lora))
        assert not engine.packed
        examples = some_examples(5)
        expected = gradients(engine, examples)
        for budget in (FEW, 1):
            assert difference(gradients(engine, examples, budget), expected) < 1e-10
        assert all(dropout.masks is None for dropout in engine.dropouts)


@pytest.mark.parametrize("saved", [0, 10**9])
@pytest.mark.parametrize("family", ["llama-gqa", "mistral-window"])
def test_long_rows_in_blocks_of_queries(
    family: str, saved: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch_attention, "BLOCK_QUERIES", 5)
    monkeypatch.setattr(layout, "GROUP_SCORES", 200)
    monkeypatch.setattr(torch_attention, "SAVED_SCORES", saved)
    model = make_model(FAMILIES[family], torch.float64)
    plain, fast = Engine(with_exact_norms(model), fast=False), fast_engine(model)
    for prefix, budget in ((0, ANY), (9, ANY), (9, FEW)):
        examples = some_examples(prefix)
        assert difference(gradients(fast, examples, budget), gradients(plain, examples)) < 1e-10


def test_the_attention_of_gpus_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        torch_ops.AttendInBlocks, "apply", staticmethod(torch_attention.attend_by_group)
    )
    for family in ("llama-mha", "llama-gqa", "mistral-window"):
        model = make_model(FAMILIES[family], torch.float64)
        plain, fast = Engine(with_exact_norms(model), fast=False), fast_engine(model)
        for prefix, budget in ((0, ANY), (9, ANY), (9, FEW)):
            examples = some_examples(prefix)
            got, expected = gradients(fast, examples, budget), gradients(plain, examples)
            assert difference(got, expected) < 1e-10


def test_some_projections_without_an_adapter() -> None:
    for targets in (("v_proj",), ("q_proj", "down_proj"), ("gate_proj",)):
        lora = LoraSettings(r=4, lora_dropout=0.0, target_modules=targets)
        model = make_model(FAMILIES["llama-gqa"], torch.float64, lora)
        plain, fast = Engine(with_exact_norms(model), fast=False), fast_engine(model)
        examples = some_examples(5)
        assert difference(gradients(fast, examples), gradients(plain, examples)) < 1e-10


@pytest.mark.parametrize(("prefix", "budget"), [(0, ANY), (40, ANY), (40, FEW)])
def test_checkpointing_changes_nothing(
    prefix: int, budget: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    lora = LoraSettings(r=4, lora_dropout=0.3)
    fast = fast_engine(make_model(FAMILIES["llama-gqa"], torch.float64, lora))
    examples = some_examples(prefix)
    expected = gradients(fast, examples, budget)
    checkpoint_layers(fast.model)
    fast.model.get_base_model().eval()  # as it is loaded; layers are checkpointed in training alone
    calls: list[int] = []
    monkeypatch.setattr(
        "offbook.engine.layers.attend", lambda *facts: calls.append(1) or attention.attend(*facts)
    )
    assert difference(gradients(fast, examples, budget), expected) < 1e-12
    step = fast.make_step(examples, budget, DEVICE)
    passes = len(step.micro_batches) + bool(len(step.prefix))
    assert len(calls) == (2 + 2 + 1) * passes, "all layers but the last twice"


@pytest.mark.parametrize("stop", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_prefix_is_forgotten_after_its_step(
    checkpointing: bool, stop: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = fast_engine(make_model(FAMILIES["llama-gqa"], torch.float64))
    if checkpointing:
        checkpoint_layers(engine.model)
    seen: list[weakref.ref[torch.Tensor]] = []
    make = engine_module.Prefix

    def watched(computed: KeysAndValues) -> Prefix:
        seen.extend(weakref.ref(keys) for keys, _ in computed.values())
        return make(computed)

    monkeypatch.setattr(engine_module, "Prefix", watched)
    engine.accumulate(engine.make_step(some_examples(40), FEW, DEVICE), [0], lambda: stop)
    assert len(seen) == 3
    assert all(reference() is None for reference in seen)


@pytest.mark.parametrize("prefix", [0, 40])
def test_bfloat16_rounds_no_worse_than_the_plain_path(prefix: int) -> None:
    config = LlamaConfig(
        **{**SIZES, "hidden_size": 128, "intermediate_size": 256, "initializer_range": 0.08},
        num_key_value_heads=2,
    )
    errors = {True: 0.0, False: 0.0}
    for seed in range(3):
        examples = [
            example(prefix + n, [range(prefix + n // 3, prefix + n)], 100 * seed + n, range(prefix))
            for n in (40, 38, 60, 21)
        ]
        model = make_model(config, torch.bfloat16)
        exact = gradients(Engine(with_exact_norms(model), fast=False), examples)
        for fast in (True, False):
            rounded = gradients(
                Engine(copy.deepcopy(model), fast=fast, min_shared_tokens=1), examples
            )
            errors[fast] += overall(rounded, exact)
    assert 0 < errors[True] <= 1.5 * errors[False]


def test_fifty_clipped_steps_end_in_the_same_adapter() -> None:
    ends = []
    for fast in (True, False):
        engine = Engine(
            make_model(FAMILIES["llama-gqa"], torch.float32), fast=fast, min_shared_tokens=1
        )
        for name, p in engine.model.named_parameters():
            if "lora_B" in name:  # as training begins; from a large B, rounding alone diverges
                p.data.zero_()
        trained = [p for p in engine.model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-3, fused=True)
        for k in range(50):
            examples = [
                # Where a gradient is close to zero, rounding alone decides which way Adam goes:
                # in these rows that is so nowhere.
                example(9 + n, [range(9 + n // 2, 9 + n)], 1000 + 100 * k + n, range(9))
                for n in range(2, 8)
            ]
            engine.accumulate(engine.make_step(examples, 40, DEVICE), [k])
            assert torch.nn.utils.clip_grad_norm_(trained, 0.1) > 0.1
            optimizer.step()
            optimizer.zero_grad()
        ends.append(torch.cat([p.detach().flatten() for p in trained]))
    assert (ends[0] - ends[1]).abs().max() < 1e-5


# Sequences do not see each other.


def test_an_example_does_not_touch_the_others() -> None:
    engine = fast_engine(make_model(FAMILIES["llama-gqa"], torch.float64))
    rows = [example(n, [range(3, n)], n) for n in (12, 11, 10)]

    def summed(examples: list[Example]) -> float:
        step = engine.make_step(examples, ANY, DEVICE)
        with torch.no_grad():
            return sum(engine.loss(batch).sum().item() for batch in step.micro_batches)

    alone = [summed([row]) for row in rows]
    assert summed(rows) == pytest.approx(sum(alone), rel=1e-12)
    other = example(11, [range(3, 11)], 77)
    changed = alone[0] + summed([other]) + alone[2]
    assert summed([rows[0], other, rows[2]]) == pytest.approx(changed, rel=1e-12)


def test_the_mean_is_over_tokens_not_batches() -> None:
    engine = fast_engine(make_model(FAMILIES["llama-mha"], torch.float64))
    means = [engine.mean_loss(engine.make_step(some_examples(), b, DEVICE)) for b in (1, 30, ANY)]
    assert means[0] == pytest.approx(means[1], rel=1e-12)
    assert means[0] == pytest.approx(means[2], rel=1e-12)
    assert engine.mean_loss(engine.make_step(some_examples(), 1, DEVICE), lambda: True) is None


def test_the_mean_is_taken_without_dropout() -> None:
    lora = LoraSettings(r=4, lora_dropout=0.5)
    engine = fast_engine(make_model(FAMILIES["llama-mha"], torch.float64, lora))
    engine.model.train()
    step = engine.make_step(some_examples(), ANY, DEVICE)
    assert engine.mean_loss(step) == engine.mean_loss(step)
    assert engine.model.training


# Less work.


@pytest.mark.parametrize("prefix", [0, 40])
def test_the_work_is_what_the_formula_says(prefix: int) -> None:
    config = LlamaConfig(
        **{**SIZES, "num_hidden_layers": 16, "hidden_size": 64, "intermediate_size": 160},
        num_key_value_heads=4,
    )
    engine = fast_engine(make_model(config, torch.float64))  # the kernels' work is not counted
    examples = [
        example(prefix + n, [range(prefix + n // 2, prefix + n)], n, range(prefix))
        for n in range(20, 36)
    ]
    step = engine.make_step(examples, 200, DEVICE)
    assert len(step.prefix) == prefix
    mapping = {torch.ops.aten.addmm_: _addmm_flop}
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        engine.accumulate(step, [0])
    counts = counter.get_flop_counts()["Global"]
    done = sum(flops for op, flops in counts.items() if "bmm" not in str(op))
    model = engine.model.get_base_model()
    last = model.model.layers[-1]
    below, above = linear_flops(model), linear_flops(last.mlp, last.self_attn.o_proj)
    computed = prefix + sum(-(-len(batch.input_ids) // 16) * 16 for batch in step.micro_batches)
    formula = computed * (below - above) + step.supervised * (
        above + 4 * model.lm_head.weight.numel()
    )
    assert step.tokens == prefix + sum(len(e) - 1 - prefix for e in examples)
    assert done == pytest.approx(formula, rel=0.03)


def linear_flops(*modules: torch.nn.Module) -> int:
    """Of a token: 4 for a frozen weight, 6 for an adapter's."""
    parts = [part for module in modules for part in module.modules()]
    frozen = sum(part.base_layer.weight.numel() for part in parts if hasattr(part, "base_layer"))
    trained = {p for part in parts for p in part.parameters() if p.requires_grad}
    return 4 * frozen + 6 * sum(p.numel() for p in trained)


def _addmm_flop(out: tuple[int, int], a: tuple[int, int], b: object, **unused: object) -> int:
    return 2 * out[0] * out[1] * a[1]


# What is not recognized.


def test_a_model_that_is_not_recognized_goes_the_plain_path() -> None:
    sizes = {name: value for name, value in SIZES.items() if value is not None}
    lora = LoraSettings(r=4, lora_dropout=0.0, target_modules="all-linear")
    model = make_model(GPTNeoXConfig(**sizes), torch.float64, lora)
    engine = fast_engine(model)
    assert not engine.packed
    assert engine.plain_layers == ("GPTNeoXAttention", "GPTNeoXMLP")
    plain = Engine(copy.deepcopy(model), fast=False)
    expected = gradients(plain, some_examples(5))
    assert difference(gradients(engine, some_examples(5)), expected) < 1e-10


def test_dora_is_left_to_peft() -> None:
    lora = LoraSettings(r=4, lora_dropout=0.0, use_dora=True)
    engine = fast_engine(make_model(FAMILIES["llama-gqa"], torch.float32, lora))
    assert not engine.packed
    assert engine.plain_layers == ("LlamaAttention", "LlamaMLP")
    assert check_gradients(engine, some_examples(), DEVICE) < 1e-3


def test_the_plain_loss_is_the_models_own(tiny_base: Path) -> None:
    base = load_base(tiny_base, torch.float32, DEVICE)
    row = example(12, [range(4, 12)], 0)
    step = Engine(base, fast=False).make_step([row], ANY, DEVICE)
    own = base(
        input_ids=torch.tensor(row.input_ids[None], dtype=torch.int64, device=DEVICE),
        labels=torch.tensor(row.labels[None], dtype=torch.int64, device=DEVICE),
    ).loss
    assert Engine(base, fast=False).mean_loss(step) == pytest.approx(own.item(), rel=1e-6)
