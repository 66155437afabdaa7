"""A model's layers without their weights, from its configuration alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from offbook.libraries import quiet_transformers

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel


def make_skeleton(config: PreTrainedConfig, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """A model on PyTorch's meta device, where tensors have a shape but take no memory.

    Args:
        config: its configuration; its own code is never run.
        dtype: of its weights; by default that of the configuration.

    Raises:
        One of `LIBRARY_ERRORS`: when transformers cannot build a model from it.
    """
    # Imported here, because `offbook check` works without PyTorch.
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"), quiet_transformers():
        skeleton: PreTrainedModel = AutoModelForCausalLM.from_config(
            config, dtype=dtype or config.dtype, trust_remote_code=False
        )
    return skeleton
