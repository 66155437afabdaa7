"""Draw the README's pictures from a finished demo: `python docs/pictures.py runs/demo`."""

from __future__ import annotations

import json
import re
import sys
from importlib.resources import files
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import MONOKAI

from offbook.cli.check import draw
from offbook.cli.demo import compare
from offbook.data.conversations import read_conversations
from offbook.doctor.inspection import token_view
from offbook.inference.chat import Chat
from offbook.inference.generate import Sampling

IMAGES = Path(__file__).parent / "images"


def save(console: Console, name: str, title: str) -> None:
    svg = console.export_svg(title=title, theme=MONOKAI)
    svg = re.sub(r"@font-face \{.*?\}", "", svg, flags=re.DOTALL)  # no fonts from the network
    svg = svg.replace("Fira Code", "Menlo, Consolas, DejaVu Sans Mono")
    (IMAGES / name).write_text(svg, encoding="utf-8")


def recorder(width: int) -> Console:
    return Console(record=True, width=width, file=Path("/dev/null").open("w"), force_terminal=True)


chat = Chat.open(sys.argv[1], Sampling(temperature=0))
template = chat.template
row = next(iter(read_conversations("lighthouse")))
console = recorder(90)
for line in draw(token_view(template.build_example(row), template.tokenizer)):
    console.print(line)
save(console, "token-view.svg", "offbook check lighthouse")

questions = json.loads((files("offbook") / "samples" / "lighthouse-questions.json").read_text())
console = recorder(110)
console.print(compare(chat, questions[:6]))
save(console, "before-after.svg", "offbook demo")
