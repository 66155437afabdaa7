"""The training rows of a run: what is odd in them, and which tokens are trained on.

Nothing is downloaded: rows and tokenizers that are not on this machine are not read.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from offbook.config import EMBEDDED_BASE, SAMPLES, Config, local_path
from offbook.data.conversations import Conversation
from offbook.data.sources import read_training
from offbook.doctor.inspection import Census, Lengths, Span, measure, token_view
from offbook.errors import OffbookError
from offbook.runs.directory import RunDirectory
from offbook.runs.places import chat_with, find_base, find_data
from offbook.tokens.examples import tokenize
from offbook.tokens.language import unknown_language
from offbook.tokens.template import ChatTemplate
from offbook.tokens.tokenizer import load_tokenizer

MOST_ROWS = 20_000  # more take longer than a page is waited for
MOST_TOKENS = 600  # of the example that is shown


@dataclass(frozen=True)
class TrainingRows:
    """What is known of the rows of a run.

    Attributes:
        described: the file and its format, in a line.
        census: counts over the conversations.
        lengths: of the examples.
        notices: what is odd, a line each.
        source: `file:line` of the example that is shown.
        spans: its tokens.
        limited: whether there are more rows than MOST_ROWS.
    """

    described: str
    census: Census
    lengths: Lengths
    notices: list[str]
    source: str
    spans: list[Span]
    limited: bool


def read_rows(run: RunDirectory) -> TrainingRows | str:
    """Look at the rows of a run; the reason where they cannot be read here."""
    try:
        config = run.config()
        base = config.model.base
        names = [source.data for source in config.data.sources.values()]
        if not all(name in SAMPLES or Path(name).is_absolute() for name in names):
            return "they are on the hub"
        folder = _tokenizer_folder(run, config)
        if folder is None:
            return f"the tokenizer is that of {base}, which is on the hub"
        config = find_data(run, config)
        template = ChatTemplate(load_tokenizer(folder, config.model.template), run.receipt().date)
        return _look_at(config, template)
    except OffbookError as error:
        return error.what
    except OSError as error:
        return str(error.strerror or error)


def _tokenizer_folder(run: RunDirectory, config: Config) -> Path | None:
    """A folder with the tokenizer of the base; None where it would have to be downloaded."""
    if (run.adapter / "tokenizer.json").is_file():
        return run.adapter
    base = config.model.base
    if base != EMBEDDED_BASE and local_path(base) is None and not Path(base).is_absolute():
        return None
    return find_base(run, config, lambda text: None, chat_with(run))[1]


def _look_at(config: Config, template: ChatTemplate) -> TrainingRows:
    reader = read_training(config.data)
    census = Census()
    limit = None if config.data.max_length == "auto" else config.data.max_length
    stream: Iterator[Conversation] = census.watch(islice(reader, MOST_ROWS))
    examples = tokenize(stream, template, limit)
    language = unknown_language(examples, template.tokenizer)
    notices = [*reader.notices(), *examples.notices(limit), *([language] if language else [])]
    example = examples[0]
    return TrainingRows(
        described=reader.describe(),
        census=census,
        lengths=measure(examples),
        notices=notices,
        source=example.source,
        spans=_beginning(token_view(example, template.tokenizer)),
        limited=census.rows == MOST_ROWS,
    )


def _beginning(spans: list[Span]) -> list[Span]:
    """The spans up to MOST_TOKENS tokens."""
    kept, left = [], MOST_TOKENS
    for span in spans:
        if left > 0:
            kept.append(Span(span.trained, span.tokens[:left]))
            left -= len(span.tokens)
    return kept
