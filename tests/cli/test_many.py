"""`offbook train --many`: what is printed, exit codes, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from offbook.settings.config import Config

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def files(tiny_config: Callable[..., Config], tmp_path: Path) -> list[Path]:
    """Two configurations."""
    written = []
    for name, steps in (("mara", 3), ("brack", 5)):
        config = tiny_config(f"output_dir=runs/{name}", f"train.max_steps={steps}")
        written.append(tmp_path / f"{name}.yaml")
        written[-1].write_text(config.to_yaml(), encoding="utf-8")
    return written


def test_several_runs_are_trained_and_reported(cli: Cli, files: list[Path]) -> None:
    code, out, err = cli("train", "--many", *files, "lora.r=4", "--no-eval")
    assert code == 0, err
    assert "mara: step 1/3: loss " in err
    assert "brack: step 5/5: loss " in err
    assert out.index("mara\n3 steps; ") < out.index("brack\n5 steps; ")
    for name in ("mara", "brack"):
        assert f"adapter in runs/{name}/adapter" in out
        assert Config.load(f"runs/{name}/config.yaml").lora.r == 4
    code, out, err = cli("train", "--many", *files, "lora.r=4", "--resume", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert {name: one["steps"] for name, one in found.items()} == {"mara": 3, "brack": 5}
    assert found["mara"]["run"] == "runs/mara"
    # Run directories are configurations, too.
    code, out, err = cli("train", "--many", "runs/mara", "runs/brack", "--resume", "--no-eval")
    assert code == 0, err


def test_several_configurations_are_trained_as_advised(cli: Cli, files: list[Path]) -> None:
    code, _, err = cli("train", *files)
    first, second = files
    advised = f"offbook train --many {first} {second}"
    assert (code, err) == (
        2,
        f"error: {second}: it is another configuration; train several roles:\n    {advised}\n",
    )
    assert cli(*advised.split()[1:], "--no-eval")[0] == 0


def test_the_exit_code_is_that_of_the_run_that_failed(cli: Cli, files: list[Path]) -> None:
    text = files[0].read_text(encoding="utf-8")
    files[0].write_text(text.replace("learning_rate: 0.01", "learning_rate: 1.0e+38"), "utf-8")
    code, out, err = cli("train", "--many", *files, "--no-eval")
    assert code == 6
    assert "error: mara: step 2 has loss" in err
    assert "adapter in runs/brack/adapter" in out
    assert "Traceback" not in err
    code, out, _ = cli("train", "--many", *files, "--overwrite", "--json")
    assert code == 6
    found = json.loads(out)
    assert found["brack"]["finished"]
    assert "was not taken" in found["mara"]["error"]


def test_what_is_refused_is_done_as_advised(cli: Cli, files: list[Path], tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text("lora: {rr: 8}\n", encoding="utf-8")
    for arguments, said in (
        ((), "--many: no configuration is given; name two or more, as in a.yaml b.yaml"),
        ((*files, bad), f'{bad}:1: unknown key "lora.rr"; did you mean "lora.r"?'),
        ((*files, tmp_path / "nothing.yaml"), "nothing.yaml: cannot read the configuration"),
        ((*files, files[0]), "mara: 2 configurations have this output_dir; give each its own"),
        ((*files, "output_dir=runs/x"), "x: 2 configurations have this output_dir"),
        (
            (*files, "--within", "2h"),
            "they are for one run; leave them out, or train the runs one after another",
        ),
    ):
        code, _, err = cli("train", "--many", *arguments)
        assert code == 2
        assert said in err
        assert not Path("runs").exists()
    assert cli("train", "--many", *files, "--no-eval")[0] == 0
    assert cli("train", files[0], "--overwrite", "--within", "2h", "--no-eval")[0] == 0
