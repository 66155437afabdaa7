"""`data.mix`: general examples in each step, in turn, and the same ones when a run is resumed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from offbook.errors import ConfigError
from offbook.files.storage import sha256
from offbook.monitor import Monitor, RowLosses
from offbook.runs.directory import RunDirectory
from offbook.settings.config import Config
from offbook.training.inputs import gather
from offbook.training.schedule import Schedule, mixed_rows
from offbook.training.train import train

WEIGHTS = Path("adapter") / "adapter_model.safetensors"


def mixing(share: float, batch_size: int) -> Config:
    mix = f"data.mix={{data: general, share: {share}}}"
    return Config.load(None, [mix, f"train.batch_size={batch_size}"])


@pytest.mark.parametrize(
    ("share", "batch_size", "mixed"), [(0.2, 16, 3), (0.2, 5, 1), (0.01, 16, 1), (0.9, 4, 3)]
)
def test_a_share_of_each_step_is_general(share: float, batch_size: int, mixed: int) -> None:
    config = mixing(share, batch_size)
    assert config.mixed_per_step == mixed
    schedule = Schedule.of(50, config)
    assert len(schedule.rows(0)) == batch_size - mixed
    assert len(mixed_rows(0, 50, config)) == mixed
    assert Config().mixed_per_step == 0


def test_general_examples_are_taken_in_turn() -> None:
    config = mixing(0.3, 10)
    passes = [row for step in range(14) for row in mixed_rows(step, 21, config)]
    assert sorted(passes[:21]) == sorted(passes[21:]) == list(range(21))
    assert passes[:21] != passes[21:]


def test_a_run_with_general_rows_resumes_to_the_same_bits(
    tiny_config: Callable[..., Config], tmp_path: Path
) -> None:
    general = tmp_path / "more.jsonl"
    row = '{"instruction": "a b", "output": "c"}\n'
    general.write_text(row + row.replace("a b", "d"))
    mix = f"data.mix={{data: {general}, share: 0.34}}"
    settings = (mix, "train.batch_size=3", "train.max_steps=6")
    inputs = gather(tiny_config(*settings), Monitor())
    seen = [example for step in range(6) for example in inputs.examples(step)]
    sources = Counter(Path(example.source.rpartition(":")[0]).name for example in seen)
    assert sources["more.jsonl"] == 6  # one in each step
    assert "more.jsonl" in (path.name for path in inputs.data)

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(tiny_config(*settings, f"output_dir={whole}"))
    assert not train(tiny_config(*settings, f"output_dir={parts}"), share=0.5).finished
    assert train(Config.load(parts / "config.yaml"), resume=True).finished
    assert sha256(whole / WEIGHTS) == sha256(parts / WEIGHTS)
    rows = [r for r in RunDirectory(whole).metrics() if isinstance(r, RowLosses)]
    assert max(row for record in rows for row in record.rows) < len(inputs.training)


def test_a_step_of_one_example_is_refused_as_advised(tiny_config: Callable[..., Config]) -> None:
    config = tiny_config("data.mix={data: general, share: 0.5}", "train.batch_size=1")
    with pytest.raises(ConfigError, match=r"data\.mix: .* no room for others; set train\."):
        gather(config, Monitor())
    assert gather(config.override("train.batch_size=2"), Monitor()).mixed
