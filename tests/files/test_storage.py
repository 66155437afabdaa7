"""Files and folders appear whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from offbook.errors import ConfigError, DiskError, PeerLostError
from offbook.files import storage
from support.disks import Failing, error_of

MEMORY = Path("/proc/self/mem")  # its first page cannot be read
FILES = [("a.bin", bytes(range(256)) * 20), ("b.json", b'{"step": 3}')]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# Folders.


def test_a_folder_is_committed_with_a_manifest(tmp_path: Path) -> None:
    final = tmp_path / "deep" / "step-1"
    storage.commit(final, FILES)
    assert names(final.parent) == ["step-1"]
    assert names(final) == ["a.bin", "b.json", "manifest.json"]
    assert storage.verify(final) is None
    manifest = json.loads((final / "manifest.json").read_text())
    assert manifest == {
        name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in FILES
    }


def test_contents_and_names_are_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forced: list[int] = []
    plain = os.fsync

    def fsync(descriptor: int) -> None:
        forced.append(os.fstat(descriptor).st_ino)
        plain(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    storage.commit(tmp_path / "step-1", FILES)
    storage.replace_file(tmp_path / "file", b"new")
    storage.append(tmp_path / "log", b"line")
    for path in (tmp_path, *tmp_path.rglob("*")):
        assert path.stat().st_ino in forced, path


def test_a_folder_replaces_another(tmp_path: Path) -> None:
    final = tmp_path / "step-1"
    storage.commit(final, [*FILES, ("c.bin", b"")])
    storage.commit(final, FILES)
    assert storage.verify(final) is None
    assert names(final) == ["a.bin", "b.json", "manifest.json"]
    assert names(tmp_path) == ["step-1"]


def test_what_is_wrong_is_named(tmp_path: Path) -> None:
    final = tmp_path / "step-1"
    assert storage.verify(final) == "manifest.json is missing"
    storage.commit(final, FILES)
    (final / ".DS_Store").write_bytes(b"a file manager was here")
    assert storage.verify(final) is None
    (final / "b.json").write_bytes(b'{"step": 4}')
    assert storage.verify(final) == "b.json is not what was written"
    (final / "b.json").write_bytes(b"")
    assert storage.verify(final) == "b.json has 0 bytes instead of 11"
    (final / "b.json").unlink()
    assert storage.verify(final) == "b.json is missing"
    (final / "manifest.json").write_bytes(b"[]")
    assert storage.verify(final) == "manifest.json is damaged"


@pytest.mark.skipif(not MEMORY.exists(), reason="needs a file whose reading fails")
def test_a_file_that_is_opened_and_not_read_is_named_by_its_folder(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").symlink_to(MEMORY)
    assert storage.verify(tmp_path) == f"{tmp_path.name} cannot be read (Input/output error)"


def test_every_flipped_bit_and_every_truncation_is_found(tmp_path: Path) -> None:
    final = tmp_path / "step-1"
    storage.commit(final, FILES)
    chance = random.Random(0)
    for k in range(150):
        file = final / chance.choice(["a.bin", "b.json", "manifest.json"])
        whole = file.read_bytes()
        at = chance.randrange(len(whole))
        flipped = bytes([whole[at] ^ (1 << chance.randrange(8))])
        file.write_bytes(whole[:at] + flipped + whole[at + 1 :] if k < 100 else whole[:at])
        assert storage.verify(final) is not None, (file.name, at)
        file.write_bytes(whole)
    assert storage.verify(final) is None


def test_leftovers_are_cleaned_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / ".step-3.partial").mkdir()
    (tmp_path / ".step-3.partial" / "a.bin").write_bytes(b"half")
    (tmp_path / ".config.yaml.partial").write_bytes(b"half")
    (tmp_path / "mine.partial").write_bytes(b"")
    storage.clean(tmp_path)
    assert names(tmp_path) == ["mine.partial"]


# Disks that are full or fail.


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS])
def test_a_failing_disk_leaves_what_was_there(
    tmp_path: Path, error: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = tmp_path / "step-1"
    storage.commit(old, FILES)
    file = tmp_path / "config.yaml"
    storage.replace_file(file, b"old")
    for operations in range(11):
        disk = Failing(operations, error)
        with monkeypatch.context() as patch:
            patch.setattr(storage, "disk", disk)
            problem = error_of(lambda: storage.replace_file(file, b"new"))
            problem = problem or error_of(lambda: storage.commit(tmp_path / "step-2", FILES))
        assert (problem is not None) == disk.failed
        assert problem is None or os.strerror(error) in str(problem)
        assert storage.verify(old) is None
        assert file.read_bytes() in (b"old", b"new")
        assert storage.verify(tmp_path / "step-2") in (None, "manifest.json is missing")
        if error == errno.ENOSPC:
            assert not list(tmp_path.glob(".*.partial"))
        storage.clean(tmp_path)
        storage.discard(tmp_path / "step-2")
        storage.replace_file(file, b"old")
    assert not disk.failed


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("a file system can only be mounted by the administrator")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_is_really_full(small_disk: Path) -> None:
    storage.commit(small_disk / "step-1", [("a.bin", b"x" * 20_000)])
    with pytest.raises(DiskError) as caught:
        storage.commit(small_disk / "step-2", [("a.bin", b"y" * 50_000)])
    assert "No space left on device" in str(caught.value)
    assert "50,000 bytes needed" in str(caught.value)
    assert names(small_disk) == ["step-1"]
    assert storage.verify(small_disk / "step-1") is None
    with pytest.raises(DiskError, match=r"70,000 bytes needed .*, \d+,\d+ free"):
        storage.require_space(small_disk, 70_000)


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
def test_only_a_training_is_said_to_be_resumed(
    tmp_path: Path, error: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, folder = tmp_path / "report.html", tmp_path / "step-1"
    works = (
        lambda: storage.replace_file(file, b"page"),
        lambda: storage.append(file, b"page"),
        lambda: storage.commit(folder, FILES),
        lambda: storage.make_folder(folder),
    )
    with monkeypatch.context() as patch:
        patch.setattr(storage, "disk", Failing(0, error))
        page, line, checkpoint, empty = (str(error_of(work)) for work in works)
    fix = "free some space" if error == errno.ENOSPC else "check the disk and its permissions"
    what = f"cannot write ({os.strerror(error)})"
    assert re.fullmatch(rf".*: {re.escape(what)}: 4 bytes needed, [\d,]+ free; {fix}", page)
    resumed = f"; {fix}, then continue with --resume; what was committed before is intact"
    assert (line.endswith(resumed), checkpoint.endswith(resumed)) == (True, True)
    assert empty == f"{folder}: {what}; {fix}"
    file.unlink()
    for work in works[:3]:  # as advised
        assert error_of(work) is None


def test_what_fails_while_a_folder_is_filled_is_the_disk_only_where_it_says_so(
    tmp_path: Path,
) -> None:
    final = tmp_path / "export"
    for problem in (FileNotFoundError(errno.ENOENT, "No such file", "base"), PeerLostError("lost")):
        with pytest.raises(type(problem)) as caught, storage.staged(final):
            raise problem
        assert caught.value is problem
    for number, fix in (
        (errno.ENOSPC, "free some space"),
        (errno.EIO, "check the disk and its permissions"),
    ):
        said = rf"export: cannot write \(why\); {fix}$"
        with pytest.raises(DiskError, match=said), storage.staged(final):
            raise OSError(number, "why")
    assert list(tmp_path.iterdir()) == []


def test_a_failure_inside_another_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What others had put in a folder was moved to its successor when the process was killed."""
    partial = tmp_path / ".step-1.partial"
    storage.commit(tmp_path / "whole", FILES)
    shutil.move(tmp_path / "whole", partial)
    (partial / "mine").write_bytes(b"")
    monkeypatch.setattr(storage, "disk", Failing(0, errno.EIO))
    with pytest.raises(DiskError, match=r"cannot write \(Input/output error\)"):
        storage.clean(tmp_path)


# Locks.


def test_a_folder_is_locked_for_other_processes(tmp_path: Path) -> None:
    with (
        storage.lock(tmp_path),
        pytest.raises(ConfigError, match="another training run is writing here; wait until"),
        storage.lock(tmp_path),
    ):
        pass
    with storage.lock(tmp_path):
        pass
