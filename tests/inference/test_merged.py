"""Replies from merged weights are those of base and adapter, and the base's weights come back."""

from __future__ import annotations

import pytest
import torch
from peft import PeftModel

from offbook.inference.batch import greedy_replies
from offbook.inference.merged import Merged
from offbook.models.adapter import lora_layers, set_strength
from support.engines import FAMILIES, LORA, make_model

PROMPTS = [[5, 6, 7], [8, 9, 10, 11], [12]]
EXACT = 1e-4  # of logits, in float32


def logits(model: PeftModel) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=torch.tensor([PROMPTS[1]])).logits
    return found.double()


def weights(model: PeftModel) -> list[tuple[int, torch.Tensor]]:
    return [(p.data_ptr(), p.detach().clone()) for p in model.parameters()]


@pytest.mark.parametrize("family", list(FAMILIES))
def test_replies_are_those_of_base_and_adapter(family: str) -> None:
    model = make_model(FAMILIES[family], torch.float32).eval()
    expected, before = greedy_replies(model, PROMPTS, {1}, 12), weights(model)
    apart = logits(model)
    with Merged(model).used():
        assert (logits(model) - apart).abs().max() < EXACT
        assert all("forward" in vars(layer) for layer in lora_layers(model))  # it was merged
        assert greedy_replies(model, PROMPTS, {1}, 12) == expected
    for (place, value), (old_place, old_value) in zip(weights(model), before, strict=True):
        assert place == old_place
        assert torch.equal(value, old_value)
    assert torch.equal(logits(model), apart)


def test_the_base_answers_between_replies_of_the_adapter() -> None:
    model = make_model(FAMILIES["llama-gqa"], torch.float32).eval()
    merged = Merged(model)
    with merged.used():
        tuned = logits(model)
    with model.disable_adapter():
        expected = logits(model)
    with merged.without_adapter():
        base = logits(model)
    assert torch.equal(base, expected)
    assert (tuned - base).abs().max() > 100 * EXACT
    with merged.used():
        assert torch.equal(logits(model), tuned)


def test_another_strength_is_merged_again() -> None:
    model = make_model(FAMILIES["llama-gqa"], torch.float32).eval()
    merged = Merged(model)
    for strength in (1.0, 0.5, 0.0, 1.5):
        set_strength(model, strength)
        apart = logits(model)
        with merged.used():
            assert (logits(model) - apart).abs().max() < EXACT


def test_an_error_in_a_reply_leaves_the_base() -> None:
    model = make_model(FAMILIES["llama-gqa"], torch.float32).eval()
    before = logits(model)
    with pytest.raises(KeyboardInterrupt), Merged(model).used():
        raise KeyboardInterrupt
    assert torch.equal(logits(model), before)


def test_bfloat16_is_as_near_to_the_truth_as_base_and_adapter() -> None:
    """The sum is rounded once: what it loses is what arithmetic in bfloat16 loses anyway."""
    exact = logits(make_model(FAMILIES["llama-mha"], torch.float64).eval())
    model = make_model(FAMILIES["llama-mha"], torch.bfloat16).eval()
    apart = (logits(model) - exact).norm()
    with Merged(model).used():
        assert (logits(model) - exact).norm() < 1.5 * apart


@pytest.mark.parametrize("why", ["memory", "dora"])
def test_what_cannot_be_merged_stays_apart(why: str) -> None:
    lora = LORA.model_copy(update={"use_dora": why == "dora"})
    model = make_model(FAMILIES["llama-mha"], torch.float32, lora).eval()
    size = sum(layer.get_base_layer().weight.nbytes for layer in lora_layers(model))
    apart = logits(model)
    with Merged(model, lambda device: size - (why == "memory")).used():
        assert not any("forward" in vars(layer) for layer in lora_layers(model))
        assert torch.equal(logits(model), apart)


def test_without_memory_to_merge_the_adapter_stays_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model(FAMILIES["llama-gqa"], torch.float32).eval()
    last = list(lora_layers(model))[-1]

    def no_memory(adapter: str) -> torch.Tensor:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(last, "get_delta_weight", no_memory)
    apart = logits(model)
    with Merged(model).used():
        assert torch.equal(logits(model), apart)
