"""No file of the user's is replaced or removed, and a start that fails leaves nothing behind."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from offbook.errors import ConfigError, NonFiniteError, OffbookError
from offbook.files import storage
from offbook.monitor import Monitor
from offbook.runs.directory import RunDirectory
from offbook.settings.config import Config
from offbook.training.train import train
from support.disks import Snapshots
from support.runs import hashes, stop_after

MakeConfig = Callable[..., Config]
SAVES = ("train.max_steps=3", "train.save_steps=1", "train.save_total_limit=1")
PLACES = ("", "checkpoints", "checkpoints/mine", "checkpoints/step-2", "checkpoints/step-3")
PLACES += ("checkpoints/step-99", "adapter", "adapter/notes", "tensorboard")


def put_files(run: Path) -> dict[Path, bytes]:
    """Files of the user's in every folder of a run."""
    files = {run / place / f"mine{n}.txt": b"%d" % n for n, place in enumerate(PLACES)}
    files[run / ".browser.partial"] = b"a download"
    for path, content in files.items():
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    return files


def test_files_in_a_run_stay_where_they_are(tiny_config: MakeConfig, tmp_path: Path) -> None:
    whole = train(tiny_config(*SAVES, f"output_dir={tmp_path / 'whole'}")).run
    run = train(tiny_config(*SAVES)).run
    mine = put_files(run)
    for how in ({"overwrite": True}, {"resume": True}, {"overwrite": True}):
        train(tiny_config(*SAVES), **how)
        assert {path: path.read_bytes() for path in mine} == mine
        assert hashes(run) == hashes(whole)
        assert [step for step, _ in RunDirectory(run).steps()] == [3]
    # In a run that is stopped, saved and continued, too.
    train(tiny_config(*SAVES), overwrite=True, should_stop=stop_after(4))
    mine |= put_files(run)
    assert train(tiny_config(*SAVES), resume=True).finished
    assert {path: path.read_bytes() for path in mine} == mine
    assert hashes(run) == hashes(whole)


def test_a_folder_that_is_committed_again_takes_over_what_others_put_there(tmp_path: Path) -> None:
    final, old, new = tmp_path / "run" / "adapter", [("a", b"1")], [("a", b"3"), ("c", b"4")]
    storage.commit(final, old)
    (final / "c").write_bytes(b"mine")
    (final / "deep").mkdir()
    (final / "deep" / "d").write_bytes(b"mine, too")
    disk = Snapshots(tmp_path / "run", tmp_path / "copies")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage, "disk", disk)
        storage.commit(final, new)
    disk.take()
    for moment in disk.taken:  # killed here
        storage.clean(moment)
        storage.commit(moment / "adapter", new)
        assert storage.verify(moment / "adapter") is None
        left = {
            path.relative_to(moment / "adapter").as_posix(): path.read_bytes()
            for path in (moment / "adapter").rglob("*")
            if path.is_file() and path.name != storage.MANIFEST
        }
        assert left == {"a": b"3", "c": b"4", "c.kept": b"mine", "deep/d": b"mine, too"}
        assert not list(moment.glob(".*"))


def test_a_damaged_folder_loses_only_what_is_known_to_be_ours(tmp_path: Path) -> None:
    folder = tmp_path / "step-1"
    storage.commit(folder, [("a", b"1")])
    (folder / "mine").write_bytes(b"")
    (folder / storage.MANIFEST).write_text('["a", "mine"]')
    storage.discard(folder, ("a", storage.MANIFEST))
    assert [path.name for path in folder.iterdir()] == ["mine"]
    outside = tmp_path / "outside"
    outside.write_bytes(b"")
    (folder / storage.MANIFEST).write_text('{"../outside": {}, "mine": {}}')
    storage.discard(folder)
    assert outside.exists()


def test_links_are_removed_and_not_what_they_name(tiny_config: MakeConfig, tmp_path: Path) -> None:
    run = train(tiny_config(*SAVES)).run
    for name in ("adapter", "checkpoints"):
        (run / name).rename(tmp_path / name)
        (run / name).symlink_to(tmp_path / name)
    train(tiny_config(*SAVES), overwrite=True)
    for name in ("adapter", "checkpoints"):
        assert any((tmp_path / name).iterdir())


def test_what_is_made_from_a_run_goes_with_it(tiny_config: MakeConfig) -> None:
    run = train(tiny_config(*SAVES)).run
    made = {
        "report.html": '<head>\n<meta name="generator" content="offbook report 0.1">',
        "evaluation.json": '{\n "findings": [],\n "subject": "result"}',
    }
    for name, text in made.items():
        (run / name).write_text(text)
    train(tiny_config(*SAVES), resume=True)
    assert all((run / name).exists() for name in made)
    train(tiny_config(*SAVES), overwrite=True)
    assert not any((run / name).exists() for name in made)
    for name in made:
        (run / name).write_text("mine")
    train(tiny_config(*SAVES), overwrite=True)
    assert all((run / name).read_text() == "mine" for name in made)


NAMES = ["config.yaml", "metrics.jsonl", "receipt.json", "adapter", ".lock"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("how", [{}, {"overwrite": True}, {"resume": True}])
def test_a_name_that_is_taken_is_refused(
    tiny_config: MakeConfig, name: str, how: dict[str, bool]
) -> None:
    folder = Path(tiny_config().output_dir)
    folder.mkdir()
    taken = folder / name
    if name == "adapter":
        taken.mkdir()
        taken = taken / "adapter_config.json"
    taken.write_text('{"shop": "a receipt"}')
    with pytest.raises(ConfigError, match=f"run: {name} is here, and is not that of a run; set"):
        train(tiny_config(), **how)
    assert [path.name for path in folder.iterdir()] == [name]
    assert taken.read_text() == '{"shop": "a receipt"}'


def test_an_empty_lock_is_taken_and_a_link_is_not(tiny_config: MakeConfig, tmp_path: Path) -> None:
    lock = Path(tiny_config().output_dir, ".lock")
    lock.parent.mkdir()
    lock.symlink_to(tmp_path / "rows.jsonl")
    with pytest.raises(ConfigError, match=r"run: \.lock is here, and is not that of a run"):
        train(tiny_config())
    assert lock.is_symlink()
    lock.unlink()
    lock.write_text("")  # as a start that was killed leaves it
    assert train(tiny_config()).finished


FAILURES: dict[str, tuple[str, ...]] = {
    "rows": ("data.train=nothing.jsonl",),
    "base": ("model.base=nothing",),
    "layers": ("lora.target_modules=[nothing]",),
    "warm-up": ("train.max_steps=1", "train.warmup_ratio=1"),
}


@pytest.mark.parametrize("settings", FAILURES.values(), ids=FAILURES)
@pytest.mark.parametrize("how", [{}, {"overwrite": True}, {"resume": True}])
def test_a_start_that_fails_leaves_nothing_behind(
    tiny_config: MakeConfig, tmp_path: Path, settings: tuple[str, ...], how: dict[str, bool]
) -> None:
    before = sorted(tmp_path.rglob("*"))
    config = tiny_config(*settings, f"output_dir={tmp_path / 'deep' / 'run'}")
    with pytest.raises(OffbookError):
        train(config, **how)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("how", [{}, {"overwrite": True}, {"resume": True}])
def test_a_run_that_fails_before_its_first_step_leaves_nothing_behind(
    tiny_config: MakeConfig, tmp_path: Path, how: dict[str, bool]
) -> None:
    class Broken(Monitor):
        def begin(self, step: int, total: int) -> None:
            raise NonFiniteError("the loss is nan")

    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(NonFiniteError):
        train(tiny_config(), monitor=Broken(), **how)
    assert sorted(tmp_path.rglob("*")) == before
    # A run that has taken steps stays.
    train(tiny_config(), should_stop=stop_after(4))
    with pytest.raises(NonFiniteError):
        train(tiny_config(), monitor=Broken(), resume=True)
    assert train(tiny_config(), resume=True).finished


def test_in_a_folder_of_the_users_nothing_is_left_either(
    tiny_config: MakeConfig, tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    with pytest.raises(OffbookError):
        train(tiny_config("data.train=nothing.jsonl"))
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["notes.txt"]
    train(tiny_config("train.max_steps=1"))
    assert (tmp_path / "run" / "notes.txt").read_text() == "mine"


def test_a_failed_start_does_not_touch_the_run_that_is_there(tiny_config: MakeConfig) -> None:
    run = train(tiny_config("train.max_steps=2")).run
    kept = shutil.copytree(run, run.with_name("kept"))
    for how in ({"overwrite": True}, {}, {"resume": True}):
        with pytest.raises(OffbookError):
            train(tiny_config("train.max_steps=2", "lora.r=4", "model.base=nothing"), **how)
    assert {p.name: p.read_bytes() for p in run.rglob("*") if p.is_file()} == {
        p.name: p.read_bytes() for p in kept.rglob("*") if p.is_file()
    }
