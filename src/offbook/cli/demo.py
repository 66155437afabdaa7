"""`offbook demo`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from offbook.cli.console import NARROW, out, printable, say, waiting
from offbook.cli.train import report, run_training
from offbook.data.messages import Message
from offbook.errors import ConfigError

if TYPE_CHECKING:
    from offbook.inference.pytorch import TorchEngine

QUESTIONS = 6
BASE_TOKENS = 60  # of a reply of the base, which are long
TUNED_TOKENS = 256


def demo() -> None:
    """Train the embedded model on the sample role, and compare it with the untuned model.

    \b
    offbook demo      about 3 minutes on 2 cores, in runs/demo; less than one when it is there
    """
    from offbook.inference.model import find_model
    from offbook.inference.pytorch import TorchEngine
    from offbook.runs.directory import RunDirectory
    from offbook.settings.config import Config

    samples = files("offbook") / "samples"
    with as_file(samples / "smollm2-demo.yaml") as recipe:
        config = Config.load(recipe)
    run = RunDirectory(Path(config.output_dir))
    if run.begun and run.config().data.train != config.data.train:
        raise ConfigError(
            "there is a run on other rows here",
            where=str(run.path),
            fix="run the demo in another folder, or move the run",
        )
    say("Captain Ottilie Brack keeps a lighthouse, and calls everyone little boat.")
    if not run.finished:
        say("A model of 135M parameters now learns to answer like her, from 260 lines.")
    result, code = run_training(config, resume=run.begun, overwrite=False)
    if not result.finished:
        report(result)
        raise typer.Exit(code)
    with waiting("loading the trained model"):
        found = find_model(result.run, say)
        engine = TorchEngine(found.load(), found.template)
    questions = json.loads((samples / "lighthouse-questions.json").read_text(encoding="utf-8"))
    with waiting(f"asking {QUESTIONS} questions, before and after"):
        table = compare(engine, questions[:QUESTIONS])
    out.print(table)
    report(result)


def compare(engine: TorchEngine, questions: Sequence[str]) -> Table:
    """A table of questions with the replies of the untuned and of the tuned model."""
    table = Table(title="Questions it was not trained on", box=box.HORIZONTALS, show_lines=True)
    narrow = out.width < NARROW
    headings = ("question", f"before (first {BASE_TOKENS} tokens)", "after")
    for heading in () if narrow else headings:
        table.add_column(heading, ratio=2 if heading == "question" else 4)
    prompts = [engine.template.build_prompt([Message("user", text)]) for text in questions]
    before = engine.replies(prompts, BASE_TOKENS, base=True)
    after = engine.replies(prompts, TUNED_TOKENS)
    for question, *replies in zip(questions, before, after, strict=True):
        texts = [question, *(reply.text for reply in replies)]
        cells = [Text(printable(text.strip())) for text in texts]
        if narrow:
            cells = [
                Text("\n").join([cells[0], Text("before: ") + cells[1], Text("after: ") + cells[2]])
            ]
        table.add_row(*cells)
    return table
