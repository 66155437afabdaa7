"""What this process may use of the machine: processors and memory, within a container's limits.

A container is told the machine's free memory and all its processors. What it may use stands in the
files of its control group and of the groups around it; beyond it, it is killed, or stopped.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

import psutil
import torch

from offbook.errors import EngineError

PROC = Path("/proc")
CACHE = ("inactive_file", "active_file", "slab_reclaimable")  # in memory.stat; v1 has total_ before
PERIOD = 100_000  # microseconds, where none is given


def limit_threads() -> None:
    """Let PyTorch, and our kernels with it, have no more threads than processors may be used."""
    if torch.get_num_threads() > processors():
        torch.set_num_threads(processors())


def refuse_forked_child() -> None:
    """Refuse to compute in a process that was forked from one that has computed.

    PyTorch's threads do not exist in it, and it would wait for them forever.

    Raises:
        EngineError: saying so.
    """
    if _forked:
        raise EngineError(
            "this process was forked from one that had loaded PyTorch, whose threads it does not "
            "have, so it would wait for them forever",
            fix='start it with multiprocessing.get_context("spawn"), or with subprocess',
        )


def _note_fork() -> None:
    global _forked
    _forked = True


_forked = False
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)


def processors(proc: Path = PROC) -> int:
    """How many processors may be used: those that the process may run on, and its quota of time.

    A quota of 1.5 processors counts as 2: two threads get three quarters of two processors, one
    thread would get one. Processes that train together divide them.
    """
    if hasattr(os, "sched_getaffinity"):
        count = len(os.sched_getaffinity(0))
    else:
        count = os.cpu_count() or 1
    for folder in _groups(proc, "cpu"):
        quota, period = _quota(folder)
        if quota > 0:
            count = min(count, math.ceil(quota / period))
    return max(count // together(), 1)


def together() -> int:
    """How many processes of a training are on this machine, as torchrun and --nproc say it."""
    text = os.environ.get("LOCAL_WORLD_SIZE", "")
    return max(int(text), 1) if text.isdecimal() else 1


def usable_memory(used: int, proc: Path = PROC) -> int:
    """Bytes that a process may use in all: as the machine has them free, and its groups allow.

    A group's cached files count as free, as they do for the whole machine. Processes that train
    together divide what is free.

    Args:
        used: bytes that the process uses already.
        proc: the folder with the system's files about the process.
    """
    usable = int(psutil.virtual_memory().available) + used
    for folder in _groups(proc, "memory"):
        limits = _numbers(folder, "memory.max", "memory.high", "memory.limit_in_bytes")
        taken = _numbers(folder, "memory.current", "memory.usage_in_bytes")
        if not limits or not taken:
            continue
        stat = dict(line.split(maxsplit=1) for line in _lines(folder / "memory.stat"))
        cached = sum(int(stat.get(f"total_{name}", stat.get(name, 0))) for name in CACHE)
        usable = min(usable, min(limits) - max(taken[0] - cached - used, 0))
    if usable > used:
        usable = used + (usable - used) // together()
    return max(usable, 0)


def _quota(folder: Path) -> tuple[int, int]:
    """Microseconds of processor time in each period, and the period; 0 without a quota."""
    for line in _lines(folder / "cpu.max"):  # "150000 100000", or "max 100000"
        quota, *period = line.split()
        return (0 if quota == "max" else int(quota)), int(period[0] if period else PERIOD)
    quotas = _numbers(folder, "cpu.cfs_quota_us")  # -1 without one
    periods = _numbers(folder, "cpu.cfs_period_us")
    return (quotas[0] if quotas else 0), (periods[0] if periods else PERIOD)


def _groups(proc: Path, controller: str) -> Iterator[Path]:
    """The folders of the process's control group and of those around it, as far as it sees them."""
    own: dict[str, str] = {}  # the path of the group by controller; "" is version 2's, for all
    for line in _lines(proc / "self/cgroup"):
        _, controllers, path = line.split(":", 2)
        own |= dict.fromkeys(controllers.split(","), path)
    for line in _lines(proc / "self/mountinfo"):
        before, _, after = line.partition(" - ")
        root, mount = (_unescape(field) for field in before.split()[3:5])
        kind, *_, options = after.split()
        name = "" if kind == "cgroup2" else controller
        if name not in own or not (kind == "cgroup2" or controller in options.split(",")):
            continue
        if kind not in ("cgroup", "cgroup2"):
            continue
        # Within a container, the path may be that on the host, and the mount shows a part of it.
        top, inside = Path(mount), Path(own[name])
        below = inside.relative_to(root).parts if inside.is_relative_to(root) else ()
        for depth in range(len(below), -1, -1):
            if ".." not in below[:depth]:
                yield top.joinpath(*below[:depth])


def _unescape(field: str) -> str:
    """A path as in mountinfo, where a space is `\\040`."""
    return field.encode().decode("unicode_escape").encode("latin-1").decode(errors="replace")


def _lines(file: Path) -> list[str]:
    """The lines of a file; none where it cannot be read."""
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    return [line for line in text.splitlines() if line.strip()]


def _numbers(folder: Path, *names: str) -> list[int]:
    """The numbers in files, without those that are not there or hold `max`."""
    texts = ["".join(_lines(folder / name)).strip() for name in names]
    return [int(text) for text in texts if text.lstrip("-").isdigit()]
