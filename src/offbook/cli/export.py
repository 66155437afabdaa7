"""`offbook export`."""

from __future__ import annotations

import json
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from offbook.cli.arguments import Checkpoint
from offbook.cli.console import put, say
from offbook.errors import ConfigError
from offbook.monitor import Heartbeat


class Target(str, Enum):
    """What `--to` takes."""

    ADAPTER = "adapter"
    MERGED = "merged"
    GGUF = "gguf"
    GGUF_LORA = "gguf-lora"
    OLLAMA = "ollama"


def export(
    run: Annotated[Path, typer.Argument(help="A run directory.")],
    to: Annotated[Target, typer.Option("--to", help="The format.")],
    kind: Annotated[
        str | None,
        typer.Option(
            "--type",
            metavar="[f32|f16|bf16|q8_0]",
            help="Number format of a GGUF's matrices; f16 by default.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Folder to write; by default in RUN/exports."),
    ] = None,
    checkpoint: Checkpoint = None,
    base: Annotated[
        str | None, typer.Option(help="Where the run's base is now, if it was moved.")
    ] = None,
    strength: Annotated[
        float, typer.Option(min=0, max=4, help="Multiplies what the adapter adds to the base.")
    ] = 1.0,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify/--no-verify", help="Read the export with another program, and compare."
        ),
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Write a trained model in the format of another program, and prove that it is the same.

    \b
    adapter     a PEFT folder, for PEFT, vLLM, SGLang
    merged      a whole model for transformers, vLLM, SGLang
    gguf        a whole model for llama.cpp, LM Studio, llamafile
    gguf-lora   the adapter alone, for a GGUF of the same base
    ollama      a GGUF with a Modelfile

    \b
    offbook export runs/myrole --to gguf
    offbook export runs/myrole --to ollama --type q8_0
    offbook export runs/myrole --to merged -o myrole-merged
    offbook export runs/myrole --to adapter --checkpoint 100 --strength 0.8 -o milder
    """
    from offbook.export.export import export_run
    from offbook.runs.trained import open_run

    name = to.value
    if to in (Target.GGUF, Target.OLLAMA):
        kind = kind or "f16"
        name = f"{name}-{kind}"
    elif kind:
        raise ConfigError(f"{name} has one number format", where="--type", fix="leave --type out")
    heartbeat = Heartbeat(say)

    def announce(text: str) -> None:
        say(text)
        heartbeat.begin(text)

    try:
        result = export_run(
            open_run(run, say, base=base, checkpoint=checkpoint),
            to.value,
            output or run / "exports" / name,
            kind=kind or "f32",
            strength=strength,
            verify=verify,
            announce=announce,
        )
    finally:
        heartbeat.end()
    if as_json:
        checks = asdict(result.certificate) if result.certificate else None
        print(json.dumps({"folder": str(result.folder), "certificate": checks}))
        return
    if result.certificate is None:
        put("the export was not compared with the run")
    else:
        put("the export answers as the run does", "bold green")
    put(f"in {result.folder}", "bold")
    put(result.note)
    if result.certificate:
        put(f"read by {result.certificate.reader}; {result.certificate.rows}")
        for check in result.certificate.checks:
            put(f"{'info' if check.passed is None else 'ok':<5} {check.name}: {check.found}")
