"""Whether the processes of a training share the base."""

from __future__ import annotations

from dataclasses import replace

import torch

from offbook.errors import ConfigError
from offbook.monitor import Monitor
from offbook.training.advice import Case
from offbook.training.plan import in_4_bits, least_memory


def resolve_shards(case: Case, processes: int, monitor: Monitor) -> Case:
    """The run with `train.shard_base` resolved: shared where a whole base does not fit.

    Args:
        case: the run.
        processes: how many train together.
        monitor: hears of it.

    Raises:
        ConfigError: when it is to be shared, and cannot be.
    """
    setting = case.config.train.shard_base
    obstacle = _obstacle(case, processes)
    if setting is True and obstacle:
        what, fix = obstacle
        raise ConfigError(what, where="train.shard_base=true", fix=fix)
    if setting is False or obstacle:
        return case
    sharded = replace(case, shards=processes)
    if setting is True:
        return sharded
    if case.memory.usable < least_memory(case) > least_memory(sharded):
        monitor.announce("the processes share the base, since it does not fit in each")
        return sharded
    return case


def _obstacle(case: Case, processes: int) -> tuple[str, str] | None:
    """Why a base cannot be shared, and what to do about it."""
    if processes == 1:
        return "one process has nobody to share the base with", "add --nproc 2, or leave it at auto"
    if in_4_bits(case):
        return "a base in 4 bits is not shared", "leave it at auto, or model.quantization at none"
    if case.config.lora.use_dora:
        return "DoRA needs a whole base in each process", "leave it at auto, or lora.use_dora=false"
    if torch.__version__ < "2.7":
        return "PyTorch shares a base from 2.7 on", "run `pip install -U torch`"
    return None
