"""What a run had from the hub is found again, by its commit, and without a connection."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from support.hub_server import COMMIT, PULL_COMMIT, Hub, serving
from support.tiny import ROWS

TRAIN = """
import json
from offbook.settings.config import Config
from offbook.training.train import train
settings = {settings!r}
stops = iter([False] * {calls})
result = train(Config.load(None, settings), should_stop=lambda: next(stops, True))
print(json.dumps(result.finished))
"""
AGAIN = """
import json
from offbook.settings.config import Config
from offbook.runs.trained import open_run
from offbook.training.train import train
opened = open_run({run!r})
result = train(Config.load({run!r} + "/config.yaml"), resume=True)
print(json.dumps([str(opened.base), result.finished]))
"""


@pytest.mark.parametrize("converted", [False, True])
def test_a_run_goes_on_without_the_hub(tiny_base: Path, tmp_path: Path, converted: bool) -> None:
    files = {path.name: path.read_bytes() for path in tiny_base.iterdir()}
    pickled = {name: text for name, text in files.items() if name != "model.safetensors"}
    repos = {"models/someone/tiny": pickled if converted else files}
    if converted:
        repos["models/someone/tiny@refs/pr/1"] = files
    repos["datasets/someone/lines"] = {"train.jsonl": ROWS.encode()}
    run, home = tmp_path / "run", tmp_path / "home"
    settings = ["model.base=someone/tiny", "data.train=someone/lines", "data.validation=0"]
    settings += ["model.precision=float32", "train.max_steps=2", f"output_dir={run}"]

    def said(hub: Hub, code: str) -> object:
        done = hub.run(code, home)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    with serving(repos) as hub:
        assert said(hub, TRAIN.format(settings=settings, calls=1)) is False
    commit = PULL_COMMIT if converted else COMMIT
    receipt = json.loads((run / "receipt.json").read_bytes())
    assert receipt["commits"] == {"model.base": commit, "data.train": COMMIT}
    assert "places" not in receipt
    # The server is closed now, and the run is somewhere else.
    moved = str(run.rename(tmp_path / "moved"))
    base, finished = said(hub, AGAIN.format(run=moved))
    assert (Path(base).name, finished) == (commit, True)
