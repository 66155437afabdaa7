"""How the processes of a training find each other, and the one folder that they write to.

`torchrun`, `--nproc` and others start the processes, and tell each its place in the
environment, as PyTorch documents it: RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR
and MASTER_PORT.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path

import psutil
import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from offbook.errors import ConfigError, first_line
from offbook.files import storage
from offbook.runs.directory import RunDirectory
from offbook.training.distributed import Processes

# Others may be reading rows or loading a base for long.
PATIENCE = timedelta(hours=2)
SECONDS_TO_APPEAR = 10.0  # for a file on a network's file system


@contextmanager
def join(device: str) -> Iterator[Processes]:
    """The processes that this one was started with; it alone where it was started alone.

    Args:
        device: the setting `model.device`.

    Raises:
        ConfigError: when the environment does not say its place, or there are too few GPUs.
    """
    restarted = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
    if os.environ.get("WORLD_SIZE", "1") == "1":
        yield Processes(restarted=restarted)
        return
    began = not dist.is_initialized()
    if began:
        _begin(device)
    try:
        yield Processes(dist.get_rank(), dist.get_world_size(), restarted)
    finally:
        if began:
            with suppress(RuntimeError):  # another has gone
                dist.destroy_process_group()


def has_begun(run: RunDirectory) -> bool:
    """Whether the processes that torchrun has started again had begun their run."""
    if not run.begun:
        return False
    agent = psutil.Process().parent()  # it started them before, too
    return agent is None or run.receipt_file.stat().st_mtime > agent.create_time()


def require_shared(run: RunDirectory, processes: Processes) -> None:
    """Refuse a run directory that is not the same folder in all processes.

    One that torchrun has started again could not find the run on another machine.

    Raises:
        ConfigError: naming the machine.
    """
    lock = run.path / storage.LOCK
    told = processes.first(lambda: _identity(lock))
    deadline = time.monotonic() + SECONDS_TO_APPEAR

    def look() -> None:
        while (seen := _identity(lock)) != told:
            if time.monotonic() > deadline:
                what = "is another folder here" if seen else "is not there"
                raise ConfigError(
                    f"the run directory {what}, on {platform.node()}",
                    where=str(run.path),
                    fix="set output_dir to a folder on a file system that all machines share",
                )
            time.sleep(0.1)

    processes.each(look)


def _identity(file: Path) -> list[int] | None:
    """What tells a file from one of the same name on another disk."""
    try:
        found = file.stat()
    except OSError:
        return None
    return [found.st_ino, found.st_mtime_ns]


def _begin(device: str) -> None:
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise ConfigError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, but {', '.join(missing)} is not set",
            where="the environment",
            fix="start it with torchrun or --nproc, or unset WORLD_SIZE",
        )
    if device not in ("auto", "cpu", "cuda"):
        raise ConfigError(
            "several processes are for processors, and for NVIDIA GPUs, one each",
            where=f"model.device={device}",
            fix="leave it at auto, or train with one process",
        )
    backend = "gloo"
    if device != "cpu" and torch.cuda.is_available():
        place, cards = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
        if place >= cards:
            raise ConfigError(
                f"{place + 1} processes or more on a machine with {cards} GPUs",
                where="--nproc",
                fix=f"start {cards}, or set model.device=cpu",
            )
        torch.cuda.set_device(place)
        backend = "cpu:gloo,cuda:nccl"
    try:
        store, rank, size = next(rendezvous("env://", timeout=PATIENCE))
        # Processes that are started again may get the store of those before, with addresses that
        # nobody listens at any more.
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        store = PrefixStore(f"offbook-{attempt}", store)
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise ConfigError(
            f"the processes do not find each other: {first_line(error)}",
            where=f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}",
            fix="check MASTER_ADDR and MASTER_PORT, and that all are started alike",
        ) from None
