"""`data.max_length: auto` truncates no row that the base and the memory can hold."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from offbook.errors import MemoryPlanError
from offbook.monitor import Monitor
from offbook.runs.directory import RunDirectory
from offbook.settings.config import Config
from offbook.training.advice import Case
from offbook.training.inputs import gather
from offbook.training.memory import Memory
from offbook.training.plan import longest_that_fits, make_plan
from offbook.training.train import train
from support.runs import Listener, StopAfter, hashes

MakeConfig = Callable[..., Config]
KEEP = "to keep all of them whole, "


@pytest.fixture
def long_rows(tmp_path: Path) -> Path:
    """Rows with prompts of up to some thousand tokens."""
    path = tmp_path / "long.jsonl"
    rows = [{"instruction": f"{k} " * 2 ** (k % 12), "output": "Aye."} for k in range(12)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def with_context(tiny_base: Path, folder: Path, context: int | None) -> Path:
    """A copy of the base that was made for so many tokens."""
    base = Path(shutil.copytree(tiny_base, folder / f"context-{context}"))
    values = json.loads((base / "config.json").read_text())
    values["max_position_embeddings"] = context
    if context is None:
        del values["max_position_embeddings"]
    (base / "config.json").write_text(json.dumps(values))
    return base


def told(config: Config, available: int | None = None) -> tuple[Config, list[str], list[int]]:
    """The resolved settings, what was said of long rows, and the lengths of the examples."""
    monitor = Listener()
    # A card that is not here: what the process uses itself does not count there.
    device = torch.device("cuda") if available else None
    inputs = gather(config, monitor, device=device, available=available)
    said = [text for text in monitor.heard if "longer than" in text or text.startswith(KEEP)]
    lengths = [*inputs.training.lengths.tolist(), *inputs.validation.lengths.tolist()]
    return inputs.config, said, lengths


def test_it_is_the_longest_example(tiny_config: MakeConfig) -> None:
    config, said, lengths = told(tiny_config())
    assert (config.data.max_length, said) == (max(lengths), [])


def test_it_is_written_to_the_run_and_kept_on_resume(
    tiny_config: MakeConfig, tmp_path: Path
) -> None:
    straight, stopped = (tiny_config(f"output_dir={tmp_path / name}") for name in "ab")
    train(straight)
    stop = StopAfter(2)
    train(stopped, monitor=stop, should_stop=stop.should_stop)
    length = RunDirectory(tmp_path / "b").config().data.max_length
    assert isinstance(length, int)
    train(stopped, resume=True)
    assert hashes(tmp_path / "a") == hashes(tmp_path / "b")
    assert train(Config.load(tmp_path / "b" / "config.yaml"), resume=True).finished


def test_rows_beyond_the_context_are_truncated_and_can_be_kept(
    tiny_config: MakeConfig, tiny_base: Path, long_rows: Path, tmp_path: Path
) -> None:
    base = with_context(tiny_base, tmp_path, 500)
    settings = [f"model.base={base}", f"data.train={long_rows}"]
    config, said, lengths = told(tiny_config(*settings))
    assert config.data.max_length == 500
    assert max(lengths) <= 500
    assert "longer than 500 tokens" in said[0]
    assert said[-1].startswith(f"{KEEP}set data.max_length to a larger number, ")
    _, said, lengths = told(tiny_config(*settings, "data.max_length=10000"))
    assert not said
    assert max(lengths) > 4000


def test_a_number_beyond_the_context_is_announced(
    tiny_config: MakeConfig, tiny_base: Path, long_rows: Path, tmp_path: Path
) -> None:
    base = with_context(tiny_base, tmp_path, 500)
    monitor = Listener()
    settings = [f"model.base={base}", f"data.train={long_rows}"]
    inputs = gather(tiny_config(*settings, "data.max_length=10000"), monitor)
    lengths = [*inputs.training.lengths, *inputs.validation.lengths]
    count = sum(length > 500 for length in lengths)
    start = "data.max_length is 10,000, and the base was made for 500 tokens"
    advice = "data.max_length=500"
    assert f"{start}: {count} examples have more; {advice} truncates" in monitor.heard
    again = Listener()
    gather(tiny_config(*settings, advice), again)
    assert not any("was made for" in text for text in again.heard)
    short = Listener()
    gather(tiny_config(f"model.base={base}", "data.max_length=10000"), short)
    assert f"{start}; no example has more" in short.heard


def test_the_same_rows_are_truncated_on_resume(
    tiny_config: MakeConfig, tiny_base: Path, long_rows: Path, tmp_path: Path
) -> None:
    base = with_context(tiny_base, tmp_path, 300)
    settings = [f"model.base={base}", f"data.train={long_rows}"]
    first = gather(tiny_config(*settings), Monitor())
    again = gather(first.config, Monitor())
    assert [e.input_ids.tolist() for e in first.training] == [
        e.input_ids.tolist() for e in again.training
    ]


def test_a_base_that_names_no_context_has_no_limit(
    tiny_config: MakeConfig, tiny_base: Path, long_rows: Path, tmp_path: Path
) -> None:
    base = with_context(tiny_base, tmp_path, None)
    config, said, lengths = told(tiny_config(f"model.base={base}", f"data.train={long_rows}"))
    assert (config.data.max_length, said) == (max(lengths), [])


def test_a_number_truncates_and_the_advice_keeps_all(tiny_config: MakeConfig) -> None:
    config, said, _ = told(tiny_config("data.max_length=20"))
    assert config.data.max_length == 20
    assert said[-1].startswith(f"{KEEP}set data.max_length=auto, ")
    assert not told(tiny_config("data.max_length=auto"))[1]


def test_it_is_what_fits_in_memory(
    tiny_config: MakeConfig, tiny_base: Path, long_rows: Path, tmp_path: Path
) -> None:
    base = with_context(tiny_base, tmp_path, 100_000)
    settings = tiny_config(f"model.base={base}", f"data.train={long_rows}", "train.batch_size=1")
    run = gather(settings, Monitor())
    device = torch.device("cuda")
    case = Case(run.config, run.shape, 4096, run.dtype, device, Memory(10**10, 0))
    for tokens in (300, 1111, 2500, 3800):
        plan = make_plan(replace(case, longest=tokens))
        config = run.config.override("train.gradient_checkpointing=true")
        checkpointed = make_plan(replace(case, longest=tokens, config=config))
        memory = Memory(int(min(plan.peak, checkpointed.peak) / 0.95) + 1, 0)
        fitting = longest_that_fits(replace(case, memory=memory))
        assert tokens <= fitting < 4096
        assert make_plan(replace(case, longest=fitting, memory=memory))
        with pytest.raises(MemoryPlanError):
            make_plan(replace(case, longest=fitting + 1, memory=memory))
        config, said, lengths = told(settings, memory.available)
        assert config.data.max_length == fitting
        assert max(lengths) <= fitting
        assert f"longer than {fitting} tokens" in said[0]
        assert said[-1].startswith(f"{KEEP}make room in memory: model.precision=bfloat16 needs ")
        advised = said[-1].partition("it fits with ")[2].partition(" (")[0].split()
        if advised:
            _, said, lengths = told(settings.override(*advised), memory.available)
            assert not said
            assert max(lengths) > 4000
        else:
            assert said[-1].endswith("choose a smaller base")


def test_truncated_rows_of_a_validation_file_are_named(
    tiny_config: MakeConfig, long_rows: Path
) -> None:
    _, said, _ = told(tiny_config(f"data.validation={long_rows}", "data.max_length=30"))
    assert any(str(long_rows) in text for text in said)
    _, said, _ = told(tiny_config(f"data.validation={long_rows}", "data.max_length=10000"))
    assert not said
