"""`offbook check`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from offbook.cli.arguments import Settings
from offbook.cli.console import ProgressMonitor, out, put, say
from offbook.errors import DataError, first_few

if TYPE_CHECKING:
    from offbook.doctor.inspection import Census, Lengths, Span

TRAINED = "bold black on bright_green"


def check(
    data: Annotated[
        str, typer.Argument(help="A data file, sample name or hub data set; or a YAML file.")
    ],
    settings: Settings = None,
    model: Annotated[
        str | None, typer.Option(help="The base whose tokenizer and chat template to use.")
    ] = None,
    show: Annotated[int, typer.Option(min=0, help="Rows to show token by token.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print the counts as JSON.")] = False,
) -> None:
    """Count what is in a data set, and show which tokens are trained on.

    \b
    offbook check rows.json
    offbook check rows.json --model deepseek-ai/deepseek-llm-7b-chat --show 3
    offbook check rows.json 'data.ignore_keys=[id]' data.max_length=512
    offbook check myrole/config.yaml --json
    """
    from offbook.config import Config
    from offbook.data.sources import read_training
    from offbook.doctor.inspection import Census, measure, token_view
    from offbook.files.cache import cache_folders
    from offbook.models.base import context_length, has_weights, resolve_base, vocabulary_size
    from offbook.tokens.examples import beyond_context, setting_that_keeps, tokenize
    from offbook.tokens.language import unknown_language
    from offbook.tokens.own_template import with_template_text
    from offbook.tokens.template import ChatTemplate
    from offbook.tokens.tokenizer import load_tokenizer
    from offbook.tokens.vocabulary import check_vocabulary
    from offbook.training.practice import Amount

    from_file = data.endswith((".yaml", ".yml"))
    config = Config.load(Path(data) if from_file else None, settings or [])
    if not from_file:
        config = config.with_value("data.train", data)
    reader = read_training(config.data)
    say(reader.describe())
    base = resolve_base(model or config.model.base, config.model.revision, say, weights=False)
    config = with_template_text(config)
    template = ChatTemplate(load_tokenizer(base, config.model.template))
    if has_weights(base) and not set(cache_folders()) & set(base.parents):
        from offbook.models.weights import check_weights  # imports PyTorch

        check_weights(base)
    for note in template.notes:
        say(note)
    census, setting = Census(), config.data.max_length
    context = context_length(base)
    limit = context if setting == "auto" else setting
    with ProgressMonitor() as monitor:
        monitor.busy("reading the rows")
        examples = tokenize(census.watch(reader), template, limit, monitor.reading)
    check_vocabulary(examples, template.tokenizer, vocabulary_size(base), str(base))
    lengths = measure(examples)
    if as_json:
        counts = {"format": reader.row_format, **asdict(lengths), **census.counts()}
        counts |= {"examples": len(examples), "replies_trained": examples.replies}
        counts |= {"cut": len(examples.truncated), "dropped": len(examples.dropped)}
        print(json.dumps(counts))
        return
    _print_counts(census, lengths, examples.replies)
    share = config.data.validation if isinstance(config.data.validation, float) else 0.0
    with suppress(DataError):  # all rows have the same prompt, which training refuses
        training, _ = examples.split(share, config.train.seed)
        _line("updates", Amount.of(training, config).describe())
    beyond = beyond_context(setting, context, examples.lengths)
    language = unknown_language(examples, template.tokenizer)
    for notice in (
        *reader.notices(),
        *examples.notices(limit, setting_that_keeps(setting)),
        *filter(None, (beyond, language)),
    ):
        put(notice)
    views = [
        (example.source, token_view(example, template.tokenizer)) for example in examples[:show]
    ]
    for source, spans in views:
        out.print()
        out.print(f"{Path(source).name}, token by token", style="bold", markup=False)
        width = out.width if out.is_terminal else None
        for line in draw(spans, width):
            out.print(line, soft_wrap=True)  # `draw` has wrapped it
    if marks := explain(span for _, spans in views for span in spans):
        out.print()
        put(marks, "dim")


def _print_counts(census: Census, lengths: Lengths, replies: int) -> None:
    counts = _count(census.rows, "row"), _count(len(census.duplicates), "duplicate")
    out.print(", ".join(counts), style="bold")
    if census.duplicates:
        names = [Path(place).name for place in census.duplicates]
        _line("duplicates", f"of earlier rows, at {first_few(names, 3)}")
    if census.open_prompts:
        _line("several replies", f"for {_count(census.open_prompts, 'prompt')}")
    if census.replies > census.rows:
        trained = "each trained on" if replies == census.replies else f"{replies:,} trained on"
        _line("turns", f"{census.replies:,} replies, {trained}")
    _line("tokens", f"{lengths.total:,}, of which {lengths.supervised:,} are trained on")
    _line(
        "an example",
        f"{lengths.mean:.0f} tokens on average ({lengths.prompt_mean:.0f} prompt, "
        f"{lengths.reply_mean:.0f} reply), median {lengths.median:.0f}",
    )
    _line("longest", f"{lengths.longest} tokens ({lengths.longest_source})")


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"


def _line(name: str, text: str) -> None:
    put(f"{name:<16}{text}")


def draw(spans: list[Span], width: int | None = None) -> Iterator[Text]:
    """The token view: each span of tokens, trained on or not, begins a line.

    Lines end between tokens, and have at most `width` columns unless a single token is wider.
    """
    from offbook.doctor.inspection import visible

    for span in spans:
        # The words tell the two apart where there is no colour, as in a file.
        name = "trained on  " if span.trained else "not trained "
        line, empty = Text(name, style="dim"), True
        for number, token in enumerate(span.tokens):
            shown = Text().append(visible(token), style=TRAINED if span.trained else "")
            if number < len(span.tokens) - 1:
                shown.append("|", style="dim")
            if width and not empty and line.cell_len + shown.cell_len > width:
                yield line
                line = Text(" " * len(name))
            line, empty = line.append_text(shown), False
        yield line


def explain(spans: Iterable[Span]) -> str | None:
    """A line about the marks in these spans; None where there are none."""
    from offbook.doctor.inspection import MARKS

    tokens = [token for span in spans for token in span.tokens]
    said = [meaning for char, meaning in MARKS.items() if any(char in token for token in tokens)]
    if "" in tokens:
        said.append("nothing between bars a part of the next character")
    return f"marks: {', '.join(said)}" if said else None
