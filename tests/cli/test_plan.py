"""`offbook plan` for machines that are here, and for others."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from offbook.cli.plan import parse_size
from offbook.errors import ConfigError
from support.tiny import ROWS

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def arguments(tiny_base: Path, tmp_path: Path) -> list[str]:
    (tmp_path / "rows.jsonl").write_text(ROWS, encoding="utf-8")
    return ["plan", f"model.base={tiny_base}", "data.train=rows.jsonl", "data.validation=0"]


def test_it_says_in_one_line_that_a_run_fits(cli: Cli, arguments: list[str]) -> None:
    code, out, err = cli(*arguments, "--memory", "8GB", "--device", "cuda")
    assert code == 0, err
    assert out.startswith("fits in memory: ")
    assert out.splitlines()[0].endswith(" of 8.00 GB")
    code, out, _ = cli(*arguments, "--memory", "12GB", "--json")
    facts = json.loads(out)
    assert (code, facts["fits"], facts["plan"]["available"]) == (0, True, 12 * 10**9)


def test_it_says_in_one_line_that_a_run_does_not_fit(cli: Cli, arguments: list[str]) -> None:
    code, out, err = cli(*arguments, "--memory", "100MB")
    assert (code, out) == (7, "does not fit in memory\n")
    assert "GB at the least" in err
    code, out, _ = cli(*arguments, "--memory", "100MB", "--json")
    assert (code, json.loads(out)) == (7, {"fits": False})


def test_time_is_predicted_only_for_a_device_that_is_here(cli: Cli, arguments: list[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a card here")
    code, _, err = cli(*arguments, "--device", "cuda")
    assert (code, "add --memory, as in 24GB" in err) == (2, True)
    code, _, err = cli(*arguments, "--device", "cuda", "--memory", "8 gigabytes")
    assert (code, "--memory: not a size: 8 gigabytes; as in 8GB" in err) == (2, True)
    for advised in ("8GB", "24GB"):
        code, out, err = cli(*arguments, "--device", "cuda", "--memory", advised)
        assert (code, "time in total" in out) == (0, False)
        assert "there is no cuda here" in err


@pytest.mark.skipif(sys.platform != "linux", reason="there are no kernels on other systems")
def test_a_speed_without_kernels_says_so(tmp_path: Path, arguments: list[str]) -> None:
    """In a process of its own, since kernels are looked for once."""
    environment = os.environ | {"CXX": "no-such-compiler"}
    done = subprocess.run(
        [sys.executable, "-m", "offbook", *arguments, "model.device=cpu"],
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
        check=True,
    )
    assert "seconds per step" in done.stdout
    assert "CXX=no-such-compiler is no program, so no fused kernels" in done.stderr


def test_a_missing_extra_is_named(
    cli: Cli, arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("offbook.models.load.find_spec", lambda name: None)
    code, _, err = cli(*arguments, "model.quantization=nf4")
    assert code == 2
    assert "run\n    pip install 'offbook[nf4]'\n" in err


@pytest.mark.parametrize(
    ("text", "size"),
    [("8GB", 8e9), ("8 gb", 8e9), ("8", 8e9), ("7.5GB", 7.5e9), ("512MB", 512e6), ("2GiB", 2**31)],
)
def test_sizes(text: str, size: float) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-8GB", "8TB", "0GB", "8GBs", "1e3GB", "nan"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="not a size"):
        parse_size(text)
