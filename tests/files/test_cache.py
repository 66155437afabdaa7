"""What is made once is kept where it can be, and nothing of a killed process stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from offbook.errors import DiskError
from offbook.files.cache import cache_folder, cache_folders, temporary_folder

HOLD = """
import sys, time
from pathlib import Path
from offbook.files.cache import temporary_folder
with temporary_folder(Path(sys.argv[1]), ".converting-") as folder:
    (folder / "half").write_text("x")
    print(folder, flush=True)
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "home").mkdir()
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    return tmp_path / "home"


def test_the_users_cache(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_folder() == home / ".cache/offbook"
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "my cache"))
    assert cache_folder() == home / "my cache/offbook"
    assert cache_folders() == [cache_folder()]


@pytest.mark.parametrize("kind", ["a file", "read-only"])
def test_a_home_that_cannot_be_written(home: Path, kind: str, tmp_path: Path) -> None:
    """Then a private folder is used; what is in the home is still found."""
    if kind == "a file":
        (home / ".cache").write_text("")
    else:
        (home / ".cache/offbook").mkdir(parents=True)
        (home / ".cache/offbook").chmod(0o500)
        if os.access(home / ".cache/offbook", os.W_OK):
            pytest.skip("the superuser may write everywhere")
    folder = cache_folder()
    assert folder.parent == tmp_path / "tmp"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert cache_folder() == folder, "the same one in the next process"
    assert cache_folders() == [home / ".cache/offbook", folder]


@pytest.mark.skipif(sys.platform == "win32", reason="needs permissions")
def test_a_temporary_folder_that_others_may_write_is_not_used(home: Path) -> None:
    (home / ".cache").write_text("")
    folder = cache_folder()
    folder.chmod(0o777)
    assert cache_folder() != folder
    assert folder not in cache_folders()
    folder.rmdir()
    folder.symlink_to(home)
    assert cache_folder() != folder
    assert folder not in cache_folders()


def test_nowhere_to_keep_anything(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / ".cache").write_text("")
    monkeypatch.setattr(tempfile, "tempdir", str(home / ".cache"))
    with pytest.raises(DiskError, match="set XDG_CACHE_HOME to a folder that can be written"):
        cache_folder()
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "other"))
    assert home / "other" in cache_folder().parents


@pytest.mark.skipif(sys.platform == "win32", reason="needs locks")
def test_what_a_killed_process_left_is_removed_and_that_of_a_living_one_is_not(
    tmp_path: Path,
) -> None:
    cache = tmp_path / "cache é"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", HOLD, str(cache)],
            **{"stdout": subprocess.PIPE, "text": True, "env": {**os.environ, "PYTHONUTF8": "1"}},
        )
        for _ in range(2)
    ]
    try:
        killed, living = (Path(p.stdout.readline().strip()) for p in processes)
        processes[0].send_signal(signal.SIGKILL)
        processes[0].wait()
        assert killed.is_dir()
        with temporary_folder(cache, ".converting-") as folder:
            assert set(cache.iterdir()) == {living, folder}
            assert (living / "half").read_text() == "x"
        assert set(cache.iterdir()) == {living}
    finally:
        for process in processes:
            process.kill()
            process.wait()
            process.stdout.close()
