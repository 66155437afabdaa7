"""The training rows of a run: what is odd in them, and which tokens are trained on.

Nothing is downloaded: rows and tokenizers that are not on this machine are not read.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from offbook.data.sources import read_training
from offbook.doctor.doctor import Doctor, once
from offbook.doctor.findings import Finding
from offbook.doctor.inspection import Lengths, Span, measure, token_findings, token_view
from offbook.errors import OffbookError
from offbook.runs.directory import RunDirectory
from offbook.runs.places import chat_with, find_base, find_data
from offbook.settings.config import Config, local_path
from offbook.settings.sections import EMBEDDED_BASE, SAMPLES
from offbook.tokens.examples import setting_that_keeps, tokenize
from offbook.tokens.template import ChatTemplate
from offbook.tokens.tokenizer import load_tokenizer

MOST_ROWS = 20_000  # more take longer than a page is waited for
MOST_TOKENS = 600  # of the example that is shown


@dataclass(frozen=True)
class TrainingRows:
    """What is known of the rows of a run.

    Attributes:
        described: the file and its format, in a line.
        counts: over the conversations, by name.
        lengths: of the examples.
        notices: what was read in another way than the file's name says.
        findings: what is wrong or odd, the most serious first.
        source: `file:line` of the example that is shown.
        spans: its tokens.
        limited: whether there are more rows than MOST_ROWS.
    """

    described: str
    counts: dict[str, int]
    lengths: Lengths
    notices: list[str]
    findings: list[Finding]
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
    doctor = Doctor(config.doctor)
    limit = None if config.data.max_length == "auto" else config.data.max_length
    rows = once(reader)
    examples = tokenize(doctor.watch(islice(rows, MOST_ROWS)), template, limit)
    limited = next(rows, None) is not None
    notices = reader.notices()
    keep = setting_that_keeps(config.data.max_length)
    in_tokens = token_findings(examples, template.tokenizer, limit, keep)
    findings = doctor.findings(reader, in_tokens)
    example = examples[0]
    return TrainingRows(
        described=reader.describe(),
        counts=doctor.counts(findings),
        lengths=measure(examples),
        notices=notices,
        findings=findings,
        source=example.source,
        spans=_beginning(token_view(example, template.tokenizer)),
        limited=limited,
    )


def _beginning(spans: list[Span]) -> list[Span]:
    """The spans up to MOST_TOKENS tokens."""
    kept, left = [], MOST_TOKENS
    for span in spans:
        if left > 0:
            kept.append(Span(span.trained, span.tokens[:left]))
            left -= len(span.tokens)
    return kept
