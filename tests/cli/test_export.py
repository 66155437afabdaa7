"""`offbook export` as a user sees it."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from offbook import monitor
from support.exports import train_run
from support.families import make_family

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    return train_run(tmp_path, make_family("llama", tmp_path / "base")).path


def test_what_is_printed(cli: Cli, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitor, "SECONDS_PER_BEAT", 0.01)
    code, out, err = cli("export", "run", "--to", "merged")
    assert code == 0
    assert out.startswith("the export answers as the run does\nin run/exports/merged\n")
    assert "\nread by transformers " in out
    assert "\nok    learned: loss" in out
    assert "of what the adapter adds" in out
    assert "\ncomparing it with the run\ncomparing it with the run: 0 s so far\n" in err
    certificate = json.loads((trained / "exports/merged/certificate.json").read_text("utf-8"))
    assert {check["name"] for check in certificate["checks"]} >= {"prompt ids", "stop"}

    code, _, err = cli("export", "run", "--to", "merged")
    assert code == 2
    assert "run/exports/merged: exists already; remove it, or name another folder" in err
    code, out, _ = cli("export", "run", "--to", "merged", "-o", "other", "--no-verify", "--json")
    assert code == 0
    assert json.loads(out) == {"folder": "other", "certificate": None}
    shutil.rmtree(trained / "exports" / "merged")
    assert cli("export", "run", "--to", "merged", "--no-verify")[0] == 0
    code, _, err = cli("export", "run", "--to", "merged", "--type", "f16", "-o", "third")
    assert code == 2
    assert "--type: merged has one number format; leave --type out" in err
    assert cli("export", "run", "--to", "merged", "-o", "third", "--no-verify")[0] == 0
    assert cli("export", "run", "--to", "adapter", "--checkpoint", "25", "-o", "fourth")[0] == 0


@pytest.mark.usefixtures("trained")
def test_number_formats_that_are_not_written_here(cli: Cli) -> None:
    for name in ("q4_k_m", "IQ3_XS"):
        code, _, err = cli("export", "run", "--to", "gguf", "--type", name)
        assert code == 2
        assert f"--type: {name} is made by llama.cpp's own quantizer" in err
        assert "use --type f16, and give the file to llama.cpp's `llama-quantize`; or use" in err
    code, _, err = cli("export", "run", "--to", "gguf", "--type", "int4")
    assert code == 2
    assert "--type: int4 is no number format; use f32, f16, bf16, q8_0" in err
    for options in (("--to", "gguf", "--type", "f16"), ("--to", "gguf-lora")):
        assert cli("export", "run", *options, "--no-verify")[0] == 0


@pytest.mark.usefixtures("trained")
def test_a_printed_folder_is_quoted(cli: Cli) -> None:
    code, out, _ = cli("export", "run", "--to", "ollama", "-o", "a b", "--no-verify")
    assert code == 0
    assert out == (
        "the export was not compared with the run\nin a b\n"
        "for Ollama:\n    ollama create NAME -f 'a b'/Modelfile\n"
    )
    assert Path("a b/Modelfile").read_text().startswith("FROM ./model.gguf\nTEMPLATE ")


def test_without_the_extra_it_is_named(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, trained: Path
) -> None:
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    code, _, err = cli("export", "run", "--to", "gguf")
    assert code == 2
    assert err.endswith("; run\n    pip install 'offbook[gguf]'\nor add --no-verify\n")
    assert not (trained / "exports").exists()
    assert cli("export", "run", "--to", "gguf", "--no-verify")[0] == 0
