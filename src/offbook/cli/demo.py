"""`offbook demo`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.resources import as_file, files
from typing import TYPE_CHECKING

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from offbook.cli.console import NARROW, out, printable, say, waiting
from offbook.cli.train import report, run_training

if TYPE_CHECKING:
    from offbook.inference.chat import Chat

QUESTIONS = 6


def demo() -> None:
    """Train the embedded model on the sample role, and compare it with the untuned model.

    \b
    offbook demo      about 3 minutes of training on 2 cores, in runs/demo
    """
    from offbook.config import Config
    from offbook.inference.chat import Chat
    from offbook.inference.generate import Sampling

    samples = files("offbook") / "samples"
    with as_file(samples / "smollm2-demo.yaml") as recipe:
        config = Config.load(recipe)
    say("Captain Ottilie Brack keeps a lighthouse, and calls everyone little boat.")
    say("A model of 135M parameters now learns to answer like her, from 260 lines.")
    result, code = run_training(config, resume=False, overwrite=True)
    if not result.finished:
        report(result, "")
        raise typer.Exit(code)
    with waiting("loading the trained model"):
        session = Chat.open(result.run, Sampling(temperature=0, max_new_tokens=60), say)
    questions = json.loads((samples / "lighthouse-questions.json").read_text(encoding="utf-8"))
    out.print(compare(session, questions[:QUESTIONS]))
    report(result, "")


def compare(session: Chat, questions: Sequence[str]) -> Table:
    """A table of questions with the replies of the untuned and of the tuned model."""
    table = Table(title="Questions it was not trained on", box=box.HORIZONTALS, show_lines=True)
    narrow = out.width < NARROW
    for heading in () if narrow else ("question", "before", "after"):
        table.add_column(heading, ratio=2 if heading == "question" else 4)
    for number, question in enumerate(questions, 1):
        say(f"question {number} of {len(questions)}: {question}", "dim")
        session.reset()
        before = session.ask(question, base=True)
        after = session.ask(question)
        cells = [Text(printable(text.strip())) for text in (question, before, after)]
        if narrow:
            cells = [
                Text("\n").join([cells[0], Text("before: ") + cells[1], Text("after: ") + cells[2]])
            ]
        table.add_row(*cells)
    return table
