"""`offbook plan`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from offbook.cli.arguments import Settings, file_and_settings
from offbook.cli.console import ProgressMonitor, out, say


def plan(
    config: Annotated[Path | None, typer.Argument(help="A YAML file.")] = None,
    settings: Settings = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the numbers as JSON.")] = False,
) -> None:
    """Predict the memory and the time of a run, without loading the weights of the base.

    \b
    offbook plan recipes/smollm2-demo.yaml
    offbook plan recipes/deepseek-7b-chat.yaml data.train=rows.json
    offbook plan data.train=rows.json train.batch_size=64 --json
    """
    from rich.table import Table

    from offbook.config import Config
    from offbook.training.forecast import forecast

    config, settings = file_and_settings(config, settings)
    with ProgressMonitor() as monitor:
        prediction = forecast(Config.load(config, settings), monitor)
    if as_json:
        print(json.dumps(asdict(prediction) | {"peak": prediction.plan.peak}))
        return
    chosen = prediction.plan
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for name, value in (
        ("parameters", f"{prediction.parameters:,}, of which {prediction.trained:,} are trained"),
        ("weights", _gb(chosen.weights)),
        ("adapter, gradients, optimizer", _gb(chosen.adapter)),
        ("activations of a micro-batch", _gb(chosen.activations)),
        ("logits of a chunk", _gb(chosen.loss)),
        ("Python and its libraries", _gb(chosen.process)),
        ("in total", f"{_gb(chosen.peak)}; {_gb(chosen.available)} are free"),
        ("micro-batches", f"up to {chosen.micro_batch_tokens:,} tokens"),
        ("gradient checkpointing", "yes" if chosen.checkpointing else "no"),
        (
            "a step",
            f"{prediction.step_tokens:,.0f} tokens, {prediction.step_flops / 1e12:.2f} TFLOP",
        ),
        ("speed of a micro-step", f"{prediction.flops_per_second / 1e9:,.0f} GFLOP/s, measured"),
        ("seconds per step", f"{prediction.step_seconds:,.1f}"),
        ("steps", f"{prediction.steps:,}"),
        ("time in total", _duration(prediction.step_seconds * prediction.steps)),
    ):
        table.add_row(name, value)
    out.print(table)
    say("the time does not include validation, saving, and the unpacking of 4-bit weights")


def _gb(size: int) -> str:
    return f"{size / 1e9:.2f} GB"


def _duration(seconds: float) -> str:
    if seconds < 7200:
        return f"{seconds / 60:.0f} minutes"
    return f"{seconds / 3600:.1f} hours"
