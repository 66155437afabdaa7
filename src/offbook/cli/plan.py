"""`offbook plan`."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from offbook.cli.arguments import Settings, file_and_settings, refuse_rows
from offbook.cli.console import ProgressMonitor, out, put, say
from offbook.errors import ConfigError, MemoryPlanError, shorten

UNITS = {"mb": 10**6, "gb": 10**9, "mib": 2**20, "gib": 2**30}
SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([mg]i?b)?", re.IGNORECASE)


class Device(StrEnum):
    """What `--device` takes."""

    CPU = "cpu"
    CUDA = "cuda"


def plan(
    config: Annotated[Path | None, typer.Argument(help="A YAML file.")] = None,
    settings: Settings = None,
    memory: Annotated[
        str | None, typer.Option(help="Memory to plan for, such as 8GB; by default, what is free.")
    ] = None,
    device: Annotated[
        Device | None, typer.Option(help="Device to plan for, here or not; with --memory.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the numbers as JSON.")] = False,
) -> None:
    """Predict the memory and the time of a run, without loading the weights of the base.

    \b
    offbook plan recipes/smollm2-demo.yaml
    offbook plan recipes/deepseek-7b-chat.yaml data.train=rows.json
    offbook plan data.train=rows.json train.batch_size=64 --json
    offbook plan recipes/deepseek-7b-chat.yaml --memory 24GB --device cuda
    """
    import torch
    from rich.table import Table

    from offbook.settings.config import Config
    from offbook.training.forecast import forecast
    from offbook.training.practice import PUBLISHED, Amount

    config, settings = file_and_settings(config, settings)
    refuse_rows("plan", config, settings)
    planned = torch.device(device.value) if device else None
    available = parse_size(memory) if memory else None
    try:
        with ProgressMonitor() as monitor:
            prediction = forecast(Config.load(config, settings), monitor, planned, available)
    except MemoryPlanError:
        print(json.dumps({"fits": False}) if as_json else "does not fit in memory")
        raise
    if as_json:
        facts = {"fits": True, "peak": prediction.plan.peak}
        print(json.dumps(asdict(prediction) | facts))
        return
    chosen, seconds = prediction.plan, prediction.step_seconds
    put(f"fits in memory: {_gb(chosen.peak)} of {_gb(chosen.available)}", "bold")
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
        ("steps", f"{prediction.steps:,}"),
        ("supervised tokens", f"{prediction.supervised:,}"),
        ("learning rate", f"up to {prediction.learning_rate:g}"),
    ):
        table.add_row(name, value)
    speed = prediction.flops_per_second
    if speed and seconds:
        table.add_row("speed of a micro-step", f"{speed / 1e9:,.0f} GFLOP/s, measured")
        table.add_row("seconds per step", f"{seconds:,.1f}")
        table.add_row("time in total", _duration(seconds * prediction.steps))
    out.print(table)
    put(f"updates: {Amount(prediction.steps, prediction.supervised).describe()}")
    for practice in PUBLISHED:
        put(f"  published: {practice}")
    if seconds is None:
        name = device.value if device else "such device"
        say(f"no time is predicted: it would be measured, and there is no {name} here")
        return
    say("the time does not include validation, saving, and the unpacking of 4-bit weights")


def parse_size(text: str) -> int:
    """Bytes, from text such as `8GB`, `7.5 GB` or `8GiB`.

    Raises:
        ConfigError: when it is no size.
    """
    match = SIZE.fullmatch(text.strip())
    if not match or float(match[1]) == 0:
        raise ConfigError(f"not a size: {shorten(text)}", where="--memory", fix="as in 8GB")
    return int(float(match[1]) * UNITS[(match[2] or "gb").lower()])


def _gb(size: int) -> str:
    return f"{size / 1e9:.2f} GB"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} seconds"
    if seconds < 7200:
        return f"{seconds / 60:.0f} minutes"
    return f"{seconds / 3600:.1f} hours"
