"""A container's limits count, in every form in which the system tells them."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest
import torch

from offbook.engine.machine import limit_threads, processors, usable_memory
from offbook.training.memory import Memory

MB = 2**20
V2 = "31 23 0:28 {root} {mount} rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = "32 31 0:29 {root} {mount} rw - cgroup cgroup rw,{controller}\n"
OTHERS = "22 1 8:1 / / rw - ext4 /dev/root rw\n24 22 0:22 / /proc rw - proc proc rw\n"


def write(folder: Path, **files: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        name = name.replace("__", ".")
        (folder / name).write_text(f"{content}".strip() + "\n", encoding="utf-8")


def make_proc(tmp_path: Path, cgroup: str, mountinfo: str) -> Path:
    write(tmp_path / "proc/self", cgroup=cgroup, mountinfo=OTHERS + mountinfo)
    return tmp_path / "proc"


def v2(tmp_path: Path, path: str = "/a/b", root: str = "/") -> tuple[Path, Path]:
    mount = tmp_path / "cgroup here"
    line = V2.format(root=root, mount=str(mount).replace(" ", r"\040"))
    return make_proc(tmp_path, f"0::{path}", line), mount


@pytest.mark.parametrize(("path", "root"), [("/a/b", "/"), ("/docker/7/a/b", "/docker/7")])
@pytest.mark.parametrize("level", ["", "a", "a/b"])
@pytest.mark.parametrize("limit", ["memory__max", "memory__high"])
def test_memory_of_version_2(tmp_path: Path, path: str, root: str, level: str, limit: str) -> None:
    """A limit holds wherever it is set; cached files count as free."""
    proc, mount = v2(tmp_path, path, root)
    write(mount / "a/b", memory__max="max", memory__current=3 * MB)
    stat = f"anon {30 * MB}\ninactive_file {4 * MB}\nactive_file {MB}\nslab_reclaimable 0"
    assert usable_memory(0, proc) > 100 * MB
    write(mount / level, **{limit: 100 * MB}, memory__current=40 * MB, memory__stat=stat)
    assert usable_memory(0, proc) == 65 * MB
    assert usable_memory(10 * MB, proc) == 75 * MB
    assert usable_memory(70 * MB, proc) == 100 * MB, "some of it is not counted in this group"
    write(mount / level, memory__current=300 * MB)
    assert usable_memory(0, proc) == 0


def test_memory_of_version_1(tmp_path: Path) -> None:
    mount = tmp_path / "memory"
    line = V1.format(root="/", mount=mount, controller="memory")
    proc = make_proc(tmp_path, "5:cpu,cpuacct:/x\n4:memory:/jobs/7\n0::/", line)
    files = {"memory__limit_in_bytes": 2**63 - 4096, "memory__usage_in_bytes": 40 * MB}
    write(mount / "jobs/7", **files)
    assert usable_memory(0, proc) > 100 * MB, "no limit"
    write(mount / "jobs/7", memory__stat=f"inactive_file 1\ntotal_inactive_file {5 * MB}")
    write(mount / "jobs", memory__limit_in_bytes=90 * MB, memory__usage_in_bytes=60 * MB)
    assert usable_memory(0, proc) == 30 * MB
    write(mount / "jobs/7", memory__limit_in_bytes=50 * MB)
    assert usable_memory(0, proc) == 15 * MB


@pytest.mark.parametrize("cgroup", ["", "0::/../../elsewhere", "0::/not/there", "0::/"])
def test_what_cannot_be_seen_is_no_limit(tmp_path: Path, cgroup: str) -> None:
    """Such as the group of another namespace."""
    _, mount = v2(tmp_path)
    proc = make_proc(tmp_path, cgroup, V2.format(root="/", mount=mount))
    assert 0 < usable_memory(0, proc) <= psutil.virtual_memory().total
    assert processors(proc) == processors(tmp_path / "no proc") >= 1


@pytest.mark.parametrize(
    ("quota", "count"), [("50000 100000", 1), ("100000 100000", 1), ("20000 50000", 1)]
)
def test_processors_of_a_quota(tmp_path: Path, quota: str, count: int) -> None:
    proc, mount = v2(tmp_path)
    write(mount / "a/b", cpu__max="max 100000")
    free = processors(proc)
    write(mount / "a", cpu__max=quota)
    assert processors(proc) == count
    write(mount / "a", cpu__max="150000")
    assert processors(proc) == min(2, free), "1.5 processors are two threads"
    write(mount / "a", cpu__max="9900000 100000")
    assert processors(proc) == free


def test_processors_of_version_1(tmp_path: Path) -> None:
    mount = tmp_path / "cpu"
    line = V1.format(root="/docker/1", mount=mount, controller="cpu,cpuacct")
    proc = make_proc(tmp_path, "5:cpuacct,cpu:/docker/1\n4:memory:/docker/1", line)
    write(mount, cpu__cfs_quota_us=-1, cpu__cfs_period_us=100000)
    free = processors(proc)
    write(mount, cpu__cfs_quota_us=90000)
    assert processors(proc) == 1 <= free


def test_threads_are_no_more_than_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(processors() + 5)
        limit_threads()
        assert torch.get_num_threads() == processors()
        torch.set_num_threads(1)
        limit_threads()
        assert torch.get_num_threads() == 1, "fewer stay fewer"
    finally:
        torch.set_num_threads(before)


def test_the_plan_is_made_for_what_is_free() -> None:
    memory = Memory.of(torch.device("cpu"))
    assert 0 < memory.used < memory.available <= memory.used + psutil.virtual_memory().total
    assert memory.available == pytest.approx(usable_memory(memory.used), rel=0.2)
