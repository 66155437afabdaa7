"""lm-eval, which runs public benchmarks, scores a finished adapter as offbook does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("lm_eval", reason="lm-eval is not installed")

import lm_eval

from offbook.models.load import base_of
from support.exports import train_run
from support.tiny import make_base

# It and the libraries that it uses warn of their own matters.
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(600)]

QUESTIONS = [
    {"question": "who are you", "choices": ["I am the keeper.", "four five six"], "gold": 0},
    {"question": "hello", "choices": ["nine eight", "Hello, little boat."], "gold": 1},
    {"question": "what now", "choices": ["Mind the rocks.", "who are you"], "gold": 0},
]


def make_task(folder: Path) -> dict[str, Any]:
    """A task of a few questions with two answers each, in a local file."""
    file = folder / "questions.jsonl"
    file.write_text("".join(f"{json.dumps(row)}\n" for row in QUESTIONS), encoding="utf-8")
    return {
        "task": "keeper",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(file)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "User: {{question}}\n\nAssistant:",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "gold",
        "target_delimiter": " ",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 1},
    }


def test_a_task_is_scored_on_an_adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import datasets
    from lm_eval.models.huggingface import HFLM

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "base").mkdir()
    base = make_base(tmp_path / "base")
    run = train_run(tmp_path, base)
    told = {}
    for name, adapter in (("base", None), ("tuned", str(run.adapter))):
        model = HFLM(
            pretrained=str(base), peft=adapter, device="cpu", dtype="float32", batch_size=1
        )
        found = lm_eval.simple_evaluate(
            model=model, tasks=[make_task(tmp_path)], bootstrap_iters=0, log_samples=True
        )
        samples = sorted(found["samples"]["keeper"], key=lambda sample: sample["doc_id"])
        told[name] = [answer[0][0] for sample in samples for answer in sample["resps"]]
    tuned = run.load_model()
    assert told["tuned"] == pytest.approx(scores(tuned, run.template.tokenizer), abs=1e-3)
    with tuned.disable_adapter():
        assert told["base"] == pytest.approx(scores(tuned, run.template.tokenizer), abs=1e-3)
    assert told["base"] != told["tuned"]


def scores(model: torch.nn.Module, tokenizer: Any) -> list[float]:
    """The logarithm of each answer's probability, computed with our model."""
    found = []
    for row in QUESTIONS:
        prompt = f"User: {row['question']}\n\nAssistant:"
        for answer in row["choices"]:
            ids = torch.tensor([tokenizer(f"{prompt} {answer}").input_ids])
            with torch.no_grad():
                logits = base_of(model)(input_ids=ids).logits[0]
            each = logits.log_softmax(-1)[:-1].gather(1, ids[0, 1:, None])[:, 0]
            found.append(float(each[len(tokenizer(prompt).input_ids) - 1 :].sum()))
    return found
