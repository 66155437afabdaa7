"""`offbook serve`."""

from __future__ import annotations

from contextlib import ExitStack
from enum import Enum
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from offbook.cli.arguments import Checkpoint
from offbook.cli.console import put, say, waiting
from offbook.errors import ConfigError


class Kind(str, Enum):
    """What `--type` takes."""

    F32 = "f32"
    F16 = "f16"
    BF16 = "bf16"
    Q8_0 = "q8_0"


def serve(
    runs: Annotated[list[Path], typer.Argument(help="Run directories of one base.")],
    host: Annotated[
        str, typer.Option(help="Address to listen on; any but this machine's own needs a key.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on.")] = 8765,
    kind: Annotated[
        Kind, typer.Option("--type", help="Number format of the base's matrices.")
    ] = Kind.F16,
    context: Annotated[
        int | None,
        typer.Option(min=64, help="Most tokens of prompt and reply; by default up to 4096."),
    ] = None,
    slots: Annotated[
        int, typer.Option(min=1, max=64, help="Replies that are written at a time.")
    ] = 4,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads; by default one fewer than there are cores.")
    ] = None,
    rows: Annotated[
        Path | None,
        typer.Option(help="JSONL file for corrected replies; by default RUN/corrections.jsonl."),
    ] = None,
    base: Annotated[
        str | None, typer.Option(help="Where the base is now, if it was moved.")
    ] = None,
    checkpoint: Checkpoint = None,
) -> None:
    """Answer OpenAI's chat API, and serve a chat page, with trained models and their base.

    Each run answers under the name of its folder, and the base as `base`. Ctrl-C ends it.

    \b
    offbook serve runs/myrole
    offbook serve runs/myrole --rows corrections.jsonl
    offbook serve runs/captain runs/keeper --port 9000
    offbook serve runs/myrole --type q8_0 --context 2048 --slots 2
    offbook serve runs/myrole --host 0.0.0.0
    """
    require_serve()
    with ExitStack() as stack:
        with waiting("loading " + ", ".join(map(str, runs))):
            from offbook.inference.model import find_model
            from offbook.runs.directory import RunDirectory
            from offbook.serve.engine import start
            from offbook.serve.server import key_for, listening, rows_files, run_server, url_of

            opened = stack.enter_context(listening(host, port))
            for run in runs:
                RunDirectory.open(run)
            found = [find_model(run, say, base=base, checkpoint=checkpoint) for run in runs]
            files = rows_files(found, rows)
            engine = stack.enter_context(start(found, kind.value, context, slots, threads, say))
        key, url = key_for(opened), url_of(opened, host)

        def ready() -> None:
            put(f"page: {url}" + (f"#key={key}" if key else ""))
            put(f"API:  {url}v1, models {', '.join(engine.roles)}")
            if key:
                put(f"key:  {key}")
                say("who has the key can use the models; without TLS, others can read it", "dim")

        run_server(engine, opened, host, key, files, ready, lambda line: say(line, "dim"))
    say("stopped", "dim")


def require_serve() -> None:
    """Check that the extra is installed.

    Raises:
        ConfigError: when it is not.
    """
    for name in ("xllamacpp", "starlette", "uvicorn"):
        if find_spec(name) is None:
            raise ConfigError(f"{name} is not installed", fix="run `pip install 'offbook[serve]'`")
