"""The whole path with a real model: the demo's recipe and the defaults, a chat, and PEFT."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.numpy import load_file, save_file

from offbook.data.conversations import read_conversations
from offbook.models.adapter import load_adapter
from offbook.models.base import ADAPTER_WEIGHTS, resolve_base
from offbook.models.load import load_base
from offbook.tokens.template import ChatTemplate
from offbook.tokens.tokenizer import load_tokenizer
from offbook.training.schedule import STEPS_FOR_A_VOICE

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]


def offbook(folder: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "offbook", *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float]]:
    folder = tmp_path_factory.mktemp("demo")
    done = offbook(folder, "train", ROOT / "recipes" / "smollm2-demo.yaml", "--json")
    return folder, json.loads(done.stdout)


def test_validation_loss_falls_by_at_least_a_quarter(
    trained: tuple[Path, dict[str, float]],
) -> None:
    _, result = trained
    assert result["eval_loss"] <= 0.75 * result["eval_loss_before"]


def test_it_answers_in_role_and_the_untuned_model_does_not(
    trained: tuple[Path, dict[str, float]],
) -> None:
    folder, _ = trained
    ask = (
        "chat",
        "runs/demo",
        "-p",
        "Who are you?",
        "--temperature",
        "0",
        "--max-new-tokens",
        "60",
    )
    assert "little boat" in offbook(folder, *ask).stdout
    assert "little boat" not in offbook(folder, *ask, "--untuned").stdout


def test_a_finished_demo_is_shown_and_not_trained_again(
    trained: tuple[Path, dict[str, float]],
) -> None:
    folder, _ = trained
    run = folder / "runs" / "demo"
    written = (run / "metrics.jsonl").read_bytes(), (run / "adapter").stat().st_mtime_ns
    done = offbook(folder, "demo")
    assert done.stdout.count("little boat") > 2
    assert "offbook chat runs/demo" in done.stdout
    now = (run / "metrics.jsonl").read_bytes(), (run / "adapter").stat().st_mtime_ns
    assert now == written


def test_its_verdict_is_that_it_took(trained: tuple[Path, dict[str, float]]) -> None:
    folder, _ = trained
    done = offbook(folder, "eval", "runs/demo", "--short", "--require", "took", "--json")
    found = json.loads(done.stdout)
    assert [finding["kind"] for finding in found["findings"]] == ["took"]
    # The same adapter with far too large updates is told from it.
    broken = shutil.copytree(folder / "runs" / "demo", folder / "runs" / "broken") / "adapter"
    tensors = load_file(broken / ADAPTER_WEIGHTS)
    larger = {k: 10 * v if "lora_B" in k else v for k, v in tensors.items()}
    save_file(larger, broken / ADAPTER_WEIGHTS, {"format": "pt"})
    done = offbook(folder, "eval", "runs/broken", "--short", "--json")
    assert [f["kind"] for f in json.loads(done.stdout)["findings"]] == ["forgot"]


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT's own use
def test_peft_loads_the_adapter_and_gives_the_same_logits(
    trained: tuple[Path, dict[str, float]],
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    folder, _ = trained
    adapter = folder / "runs" / "demo" / "adapter"
    base = resolve_base("smollm2-135m")
    row = next(iter(read_conversations("lighthouse")))
    ids = torch.tensor([ChatTemplate(load_tokenizer(base)).build_example(row).input_ids.tolist()])
    ours = load_adapter(load_base(base, torch.float32, torch.device("cpu")), adapter)
    theirs = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), adapter
    ).eval()
    with torch.no_grad():
        torch.testing.assert_close(ours(ids).logits, theirs(ids).logits, rtol=0, atol=1e-4)
        with theirs.disable_adapter():
            untuned = theirs(ids).logits
    assert (ours(ids).logits - untuned).abs().max() > 0.1, "the adapter changes nothing"


def test_the_default_settings_give_the_voice_of_60_rows(tmp_path: Path) -> None:
    """The command is that of `offbook train --help`."""
    rows = (ROOT / "src/offbook/samples/lighthouse.jsonl").read_text(encoding="utf-8")
    (tmp_path / "rows.jsonl").write_text("\n".join(rows.splitlines()[:60]), encoding="utf-8")
    command = ("train", "data.train=rows.jsonl", "output_dir=runs/rows", "--json")
    result = json.loads(offbook(tmp_path, *command).stdout)
    assert result["steps"] == STEPS_FOR_A_VOICE
    assert result["eval_loss"] <= 0.75 * result["eval_loss_before"]
    ask = ("chat", "runs/rows", "--temperature", "0", "--max-new-tokens", "60", "-p")
    for question in ("Who are you?", "Should I buy a new phone?"):
        assert "little boat" in offbook(tmp_path, *ask, question).stdout
