"""A model without its weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from offbook.models.base import read_config
from offbook.models.load import load_base
from offbook.models.skeleton import make_skeleton


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_a_skeleton_has_the_shapes_of_its_model_and_takes_no_memory(
    tiny_base: Path, dtype: torch.dtype | None
) -> None:
    skeleton = make_skeleton(read_config(tiny_base), dtype)
    model = load_base(tiny_base, dtype or torch.float32, torch.device("cpu"))
    shapes = [(name, p.shape, p.dtype) for name, p in model.named_parameters()]
    assert [(name, p.shape, p.dtype) for name, p in skeleton.named_parameters()] == shapes
    assert {p.device.type for p in skeleton.parameters()} == {"meta"}
