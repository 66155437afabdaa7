"""Advice about a run that is there already, or is damaged: it is followed, and the run goes on."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from offbook.errors import CheckpointError, ConfigError, DiskError, OffbookError
from offbook.files import storage
from offbook.runs.directory import RunDirectory
from offbook.runs.trained import open_run
from offbook.settings.config import Config
from offbook.settings.sections import SAMPLES
from offbook.training.train import train
from support.runs import StopAfter, stop_after

MakeConfig = Callable[..., Config]
RESUME, OVERWRITE = {"resume": True}, {"overwrite": True}
CUT = ("train.max_steps=6", "train.save_steps=2")
EPOCHS = "train.num_train_epochs=9"
OTHER = "output_dir=other"

Way = tuple[tuple[str, ...], dict[str, bool]]  # settings, and how the run is started
# How a run that was stopped in step 4 of 6 is started, what is said, and what is advised.
STARTS: list[tuple[Way, str, list[Way]]] = [
    (
        ((), {}),
        "replace it with --overwrite, set another output_dir, or continue it with "
        "`offbook train {run} --resume`",
        [((), RESUME), ((), OVERWRITE), ((OTHER,), {})],
    ),
    (((), {**RESUME, **OVERWRITE}), "give one of them", [((), RESUME), ((), OVERWRITE)]),
    (
        (("lora.r=4",), RESUME),
        "resume with the same settings, or start again with --overwrite",
        [((), RESUME), (("lora.r=4",), OVERWRITE)],
    ),
    (
        ((EPOCHS,), RESUME),
        "set train.max_steps instead, or add train.max_steps=null",
        [(("train.max_steps=8",), RESUME), ((EPOCHS, "train.max_steps=null"), RESUME)],
    ),
    (
        (("train.max_steps=3",), RESUME),
        "leave it out to continue, or train a new run with another output_dir",
        [((), RESUME), (("train.max_steps=3", OTHER), {})],
    ),
]


@pytest.mark.parametrize(("start", "said", "ways"), STARTS, ids=[s[1][:20] for s in STARTS])
def test_a_run_that_is_there_is_trained_as_advised(
    tiny_config: MakeConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    start: Way,
    said: str,
    ways: list[Way],
) -> None:
    monkeypatch.chdir(tmp_path)
    stop = StopAfter(4)
    stopped = train(tiny_config(*CUT), monitor=stop, should_stop=stop.should_stop)
    assert (stopped.finished, stopped.steps) == (False, 4)
    run = stopped.run
    kept = shutil.copytree(run, tmp_path / "kept")

    def begin(settings: tuple[str, ...], how: dict[str, bool]) -> bool:
        # What a run is resumed with is read from its own settings, as `offbook train RUN` does.
        own = Config.load(run / "config.yaml", list(settings))
        return train(own if how == RESUME else tiny_config(*CUT, *settings), **how).finished

    with pytest.raises(ConfigError) as caught:
        begin(*start)
    assert caught.value.fix == said.format(run=run)
    for settings, how in ways:
        assert begin(settings, how)
        shutil.rmtree(run)
        shutil.copytree(kept, run)
        shutil.rmtree("other", ignore_errors=True)


def test_a_finished_run_that_is_there_is_trained_as_advised(tiny_config: MakeConfig) -> None:
    config = tiny_config("train.max_steps=2")
    run = train(config).run
    with pytest.raises(ConfigError) as caught:
        train(config)
    assert caught.value.fix == "replace it with --overwrite, or set another output_dir"
    for settings, how in (((), OVERWRITE), ((f"output_dir={run.with_name('other')}",), {})):
        assert train(config.override(*settings), **how).steps == 2
    heard: list[str] = []
    assert train(config, resume=True, monitor=heard.append).steps == 2
    (found,) = re.findall(r"; add a higher (.*) to go on", "".join(heard))
    assert train(config.override(f"{found}=3"), resume=True).steps == 3


def spoil_checkpoints(run: RunDirectory) -> None:
    for _, folder in run.steps():
        os.truncate(folder / "adapter_model.safetensors", 100)


def spoil_counts(run: RunDirectory) -> None:
    receipt = json.loads(run.receipt_file.read_bytes())
    receipt["rows"]["training"] += 1  # as a version that cuts conversations in another way
    run.receipt_file.write_text(json.dumps(receipt))


def spoil_metrics(run: RunDirectory) -> None:
    run.metrics_file.write_text("nonsense\n" + run.metrics_file.read_text())


def spoil_receipt(run: RunDirectory) -> None:
    run.receipt_file.write_text("nonsense")


def remove_newest(run: RunDirectory) -> None:
    shutil.rmtree(run.steps()[-1][1])


DAMAGES: dict[str, tuple[Callable[[RunDirectory], None], bool]] = {
    "restore one from a copy, or start again with --overwrite": (spoil_checkpoints, True),
    "restore it from a copy, or start again with --overwrite": (remove_newest, True),
    "resume with that version, or start again with --overwrite": (spoil_counts, True),
    "remove it; training does not depend on it": (spoil_metrics, False),
    "restore it from a copy": (spoil_receipt, False),
}


@pytest.mark.parametrize("said", DAMAGES)
def test_a_damaged_run_goes_on_as_advised(
    tiny_config: MakeConfig, tmp_path: Path, said: str
) -> None:
    config = tiny_config("train.max_steps=4", "train.save_steps=2")
    longer = config.override("train.max_steps=6")
    run = RunDirectory(train(config).run)
    kept = shutil.copytree(run.path, tmp_path / "kept")
    spoil, overwrites = DAMAGES[said]

    def use() -> bool:
        open_run(run.path)
        return train(longer, resume=True).finished

    spoil(run)
    with pytest.raises(OffbookError) as caught:
        use()
    assert caught.value.fix == said
    if overwrites:
        damaged = shutil.copytree(run.path, tmp_path / "damaged")
        assert train(longer, overwrite=True).finished
        shutil.rmtree(run.path)
        damaged.rename(run.path)
    if said.startswith("remove it"):
        lines = run.metrics_file.read_text().splitlines(keepends=True)
        run.metrics_file.write_text("".join(lines[1:]))
    else:
        shutil.rmtree(run.path)
        shutil.copytree(kept, run.path)
    assert use()


def test_a_run_whose_sample_role_has_changed_goes_on_as_advised(
    tiny_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config("data.train=teahouse-zh")
    assert not train(config, should_stop=stop_after(2)).finished
    with monkeypatch.context() as patch:  # as in another version of offbook
        patch.setitem(SAMPLES, "teahouse-zh", SAMPLES["lighthouse"])
        with pytest.raises(CheckpointError) as caught:
            train(config, resume=True)
        assert caught.value.fix == "restore it, or start again with --overwrite"
    assert train(config, resume=True).finished
    with monkeypatch.context() as patch:
        patch.setitem(SAMPLES, "teahouse-zh", SAMPLES["lighthouse"])
        assert train(config, overwrite=True).finished


@pytest.mark.parametrize("name", ["my role", "runs/role"])
def test_beside_files_of_the_users_a_run_begins_as_advised(
    tiny_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).mkdir(parents=True)
    Path(name, "config.yaml").write_text("mine")
    with pytest.raises(ConfigError) as caught:
        train(tiny_config(f"output_dir={name}"))
    found = re.fullmatch(r"set another output_dir, such as (.*)", str(caught.value.fix))
    assert found
    assert train(tiny_config(*shlex.split(found[1]))).finished
    assert Path(name, "config.yaml").read_text() == "mine"


def test_a_folder_that_cannot_be_made_is_replaced_as_advised(
    tiny_config: MakeConfig, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"cannot be made .*; set output_dir"):
        train(tiny_config(f"output_dir={tmp_path / 'file' / 'run'}"))
    assert train(tiny_config()).finished


def test_a_run_fits_on_the_disk_as_advised(
    tiny_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Small(storage.Disk):
        def free(self, folder: Path) -> int:
            return 10**9 if "other disk" in str(folder) else 350_000

    with monkeypatch.context() as patch:
        patch.setattr(storage, "disk", Small())
        with pytest.raises(DiskError) as caught:
            train(tiny_config())
        assert caught.value.fix == (
            "free some space, set another output_dir, or lower train.save_total_limit"
        )
        for better in (f"output_dir={tmp_path / 'other disk'}", "train.save_total_limit=1"):
            assert train(tiny_config(better)).finished
    assert train(tiny_config(), overwrite=True).finished
