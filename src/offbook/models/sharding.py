"""A base that the processes of a training share (FSDP2).

Each process keeps a part of every layer. All gather a layer when they compute it, forward and
backward, and drop it afterwards. The base is frozen, so no gradients of it are exchanged; adapters
are attached later, and are whole in each process.

To gather is something that all processes do together. So all have to compute as many micro-batches,
and one that fails within a step cannot tell the others.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from transformers import PreTrainedModel

from offbook.models.pipeline import parts_of


def shard(model: PreTrainedModel, device: torch.device) -> None:
    """Keep a part of a base on the device of this process.

    Args:
        model: a base without an adapter, whole and on the processor.
        device: of this process.

    Raises:
        ConfigError: when the base has no list of decoder layers.
    """
    # Imported here, since it takes a while.
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard

    # Of an operation in place on the output of the backbone: there is none.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module")
    body, head = parts_of(model, "train.shard_base")
    embedding: Any = model.get_input_embeddings()
    tied = head.weight is embedding.weight
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for part in (*body.layers, *(() if tied else (embedding, head))):
        fully_shard(part, mesh=mesh, reshard_after_forward=True)
    # The whole, for gathering ahead; what is left is small, or a tied embedding.
    left = {*body.norm.parameters(), *((embedding.weight,) if tied else ())}
    fully_shard(body, mesh=mesh, reshard_after_forward=True, ignored_params=left)
    for part in (*body.children(), head):
        if part is not body.layers and not isinstance(part, FSDPModule):
            nn.Module.to(part, device)


@contextmanager
def gathered(module: Any) -> Iterator[None]:
    """Have the weights of a module that is computed without a call, if processes share them."""
    if not hasattr(module, "unshard"):
        yield
        return
    module.unshard()
    try:
        yield
    finally:
        module.reshard()
