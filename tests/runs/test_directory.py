"""Records are written with the same keys in the same order, and read with others than expected."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from offbook.errors import CheckpointError
from offbook.monitor import (
    EvalMetrics,
    Metrics,
    RowLosses,
    SkippedStep,
    SmallerMicroBatches,
    StepMetrics,
)
from offbook.runs.directory import RunDirectory
from offbook.runs.receipt import Device, Receipt, Rows
from offbook.settings.config import Config
from offbook.training.train import train
from support.runs import curve

RECORDS: list[tuple[Metrics, str]] = [
    (EvalMetrics(0, 7.5), '{"step": 0, "eval_loss": 7.5}'),
    (SmallerMicroBatches(1, 64), '{"step": 1, "micro_batch_tokens": 64}'),
    (
        StepMetrics(1, 0.5, 7.25, 10.5, 1e-05, 166.92, 2 * 10**9),
        '{"step": 1, "epoch": 0.5, "loss": 7.25, "grad_norm": 10.5, "learning_rate": 1e-05, '
        '"examples_per_second": 166.92, "memory": 2000000000}',
    ),
    (RowLosses(1, [4, 2], [7.5, 6.25]), '{"step": 1, "rows": [4, 2], "losses": [7.5, 6.25]}'),
    (SkippedStep(2, 70.0, 7.0), '{"step": 2, "skipped_loss": 70.0, "median_loss": 7.0}'),
]
RECEIPT = Receipt(
    base={"config.json": "1", "tokenizer.json": "2", "weights": "3"},
    chat_template="4",
    data={"臣.jsonl": "5"},
    rows=Rows(training=2, validation=1, cut=["臣.jsonl:1"], dropped=[]),
    versions={"python": "3.11"},
    device=Device("x86_64", threads=2, fused_kernels=True),
    micro_batch_tokens=256,
)


def test_metrics_are_read_as_they_were_written(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    assert list(run.metrics()) == []
    for record, _ in RECORDS:
        run.log(record)
    assert run.metrics_file.read_text().splitlines() == [line for _, line in RECORDS]
    assert list(run.metrics()) == [record for record, _ in RECORDS]


def test_lines_of_a_later_version_are_read_and_kept(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    lines = [
        b'{"step": 1, "eval_loss": 7.5, "perplexity": 1808.04}\n',
        b'{"step": 2, "weather": "fog"}\n',
        b'{"step": 3, "eval_loss": 7.0}\n',
    ]
    run.metrics_file.write_bytes(b"".join(lines))
    assert list(run.metrics()) == [EvalMetrics(1, 7.5), Metrics(2), EvalMetrics(3, 7.0)]
    run.forget_after(2)
    assert run.metrics_file.read_bytes() == b"".join(lines[:2])


@pytest.mark.parametrize("line", ["7", "[]", "{}", '{"step": "one"}', '{"eval_loss": 7.5}'])
def test_a_line_without_a_step_is_damaged(tmp_path: Path, line: str) -> None:
    run = RunDirectory(tmp_path)
    run.metrics_file.write_text(f'{{"step": 0}}\n{line}\n{{"step": 1}}\n')
    with pytest.raises(CheckpointError, match=r"metrics.jsonl:2: the line is damaged"):
        list(run.metrics())


@pytest.mark.parametrize("tail", [b'{"step": 6, "los', b"\0\0\0", b"\xff\xfe"])
def test_an_incomplete_last_line_is_left_out(
    tiny_config: Callable[..., Config], tail: bytes
) -> None:
    run = RunDirectory(train(tiny_config()).run)
    before = curve(run.path)
    with run.metrics_file.open("ab") as file:
        file.write(tail)
    assert curve(run.path) == before
    train(tiny_config(), resume=True)
    assert curve(run.path) == before
    assert run.metrics_file.read_bytes().endswith(b"}\n")
    run.metrics_file.write_bytes(b"nonsense\n" + run.metrics_file.read_bytes())
    with pytest.raises(CheckpointError, match=r"metrics.jsonl:1: the line is damaged; remove it"):
        train(tiny_config(), resume=True)


def test_a_receipt_is_read_as_it_was_written(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.receipt_file.write_bytes(RECEIPT.to_json())
    assert run.receipt() == RECEIPT
    assert list(json.loads(RECEIPT.to_json())) == [
        *("base", "chat_template", "data", "rows", "versions", "device", "micro_batch_tokens")
    ]


def test_a_receipt_of_another_version_is_read(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    later = asdict(RECEIPT) | {"processes": 2}
    later["device"]["driver"] = "1.0"
    run.receipt_file.write_text(json.dumps(later))
    assert run.receipt() == RECEIPT
    earlier = asdict(RECEIPT)
    del earlier["micro_batch_tokens"], earlier["device"]["fused_kernels"]
    run.receipt_file.write_text(json.dumps(earlier))
    assert run.receipt().changes_to_last_bits(RECEIPT) == [
        "fused kernels was unknown, is True",
        "micro batch tokens was unknown, is 256",
    ]


def test_what_may_change_the_last_bits_is_named() -> None:
    device = Device("x86_64", threads=2, fused_kernels=True, processes=2)
    together = replace(RECEIPT, device=device, versions={"python": "3.12"})
    assert together.changes_to_last_bits(RECEIPT) == [
        "python was 3.12, is 3.11",
        "processes was 2, is 1",
    ]
    assert RECEIPT.changes_to_last_bits(RECEIPT) == []


@pytest.mark.parametrize("content", ["", "[]", '{"rows": 3}', "\x00"])
def test_a_damaged_receipt_is_named(tmp_path: Path, content: str) -> None:
    run = RunDirectory(tmp_path)
    run.receipt_file.write_text(content)
    with pytest.raises(CheckpointError, match=r"receipt.json: the file is damaged; restore it"):
        run.receipt()
