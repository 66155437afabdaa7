"""`offbook check`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer
from rich.text import Text

from offbook.cli.arguments import YAML
from offbook.cli.console import ProgressMonitor, out, put, say
from offbook.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from offbook.data.conversations import ConversationReader
    from offbook.doctor.doctor import Doctor
    from offbook.doctor.findings import Finding
    from offbook.doctor.fixes import Fixed
    from offbook.doctor.inspection import Lengths, Span
    from offbook.settings.config import Config
    from offbook.tokens.examples import Examples
    from offbook.tokens.template import ChatTemplate
    from offbook.training.practice import Amount

TRAINED = "bold black on bright_green"
STYLES = {"fix": "bold red", "look": "bold yellow", "note": "bold"}


class Severity(str, Enum):
    """How serious a finding is, on the command line."""

    FIX = "fix"
    LOOK = "look"
    NOTE = "note"


def check(
    data: Annotated[
        str, typer.Argument(help="A data file, sample name or hub data set; or a YAML file.")
    ],
    settings: Annotated[
        list[str] | None,
        typer.Argument(metavar="[FILE|KEY=VALUE]...", help="More data files, and settings."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="The base whose tokenizer and chat template to use.")
    ] = None,
    show: Annotated[int, typer.Option(min=0, help="Rows to show token by token.")] = 1,
    fix: Annotated[
        Path | None,
        typer.Option(
            metavar="OUT.jsonl",
            help="Write a cleaned copy of the rows, and a log of each change beside it.",
        ),
    ] = None,
    strict: Annotated[
        Severity | None,
        typer.Option(help="Exit with 3 where there is a finding as serious as this, or more so."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the counts and findings as JSON.")
    ] = False,
) -> None:
    """Say what is wrong or odd in a data set, and show which tokens are trained on.

    \b
    offbook check rows.json
    offbook check rows.json --fix clean.jsonl
    offbook check rows.json other-rows.json
    offbook check rows.json --model deepseek-ai/deepseek-llm-7b-chat --show 3
    offbook check rows.json 'data.ignore_keys=[id]' data.max_length=512
    offbook check myrole/config.yaml --strict fix --json
    """
    from offbook.doctor.findings import at_least
    from offbook.doctor.fixes import require_place, write_fixed
    from offbook.doctor.inspection import measure
    from offbook.settings.config import Config, local_path
    from offbook.settings.sections import DataSource

    from_file = data.endswith(YAML)
    given = [] if from_file else settings or []
    more = [text for text in given if "=" not in text or local_path(text)]
    overrides = [text for text in settings or [] if text not in more]
    config = Config.load(Path(data) if from_file else None, overrides)
    if not from_file:
        sources = tuple(DataSource(data=name) for name in (data, *more))
        config = config.with_value("data.train", sources if more else data)
    if fix:  # each row once, however often it is trained on
        require_place(fix)
        once = tuple(one.model_copy(update={"repeat": 1}) for one in config.data.sources.values())
        config = config.with_value("data.train", once)
    looked = _look_at(config, model)
    doctor, examples, findings = looked.doctor, looked.examples, looked.findings
    fixed = write_fixed(looked.reader, doctor.hits, config.doctor.fix, fix) if fix else None
    lengths, (amount, held_out) = measure(examples), _amount(examples, config)
    if as_json:
        counts = {"format": looked.reader.row_format, **asdict(lengths), **doctor.counts(findings)}
        counts |= {"examples": len(examples), "replies_trained": examples.replies}
        counts |= {"updates": amount.updates if amount else 0, "held_out": held_out}
        counts |= {"cut": len(examples.truncated), "dropped": len(examples.dropped)}
        print(json.dumps({**counts, "findings": [finding.as_dict() for finding in findings]}))
    else:
        _print_counts(doctor, findings, lengths, examples.replies)
        _print_enough(amount, held_out, len(examples))
        for notice in looked.notices:
            put(notice)
        _print_findings(findings)
        _print_tokens(examples, looked.tokenizer, show)
    if fixed:
        _say_fixed(fixed)
    if strict and at_least(strict.value, findings):
        raise typer.Exit(DataError.exit_code)


class Looked(NamedTuple):
    """A data set that was looked at.

    Attributes:
        reader: of its rows.
        doctor: that has seen them.
        examples: made of them.
        tokenizer: that made them.
        findings: what is wrong or odd, the most serious first.
        notices: how it was read, and what the settings mean for it.
    """

    reader: ConversationReader
    doctor: Doctor
    examples: Examples
    tokenizer: PreTrainedTokenizerBase
    findings: list[Finding]
    notices: list[str]


def _look_at(config: Config, model: str | None) -> Looked:
    """Read the rows, and look at them and at their tokens."""
    from offbook.data.sources import read_training
    from offbook.doctor.doctor import Doctor
    from offbook.doctor.inspection import token_findings
    from offbook.models.base import context_length, resolve_base, vocabulary_size
    from offbook.tokens.examples import beyond_context, setting_that_keeps, tokenize
    from offbook.tokens.own_template import with_template_text
    from offbook.tokens.vocabulary import check_vocabulary

    reader = read_training(config.data)
    say(reader.describe())
    base = resolve_base(model or config.model.base, config.model.revision, say, weights=False)
    template = _template(base, with_template_text(config).model.template)
    doctor, setting = Doctor(config.doctor), config.data.max_length
    context = context_length(base)
    limit = context if setting == "auto" else setting
    with ProgressMonitor() as monitor:
        monitor.busy("reading the rows")
        examples = tokenize(doctor.watch(reader), template, limit, monitor.reading)
        check_vocabulary(examples, template.tokenizer, vocabulary_size(base), str(base))
        notices = reader.notices()
        monitor.busy("comparing the rows")
        keep = setting_that_keeps(setting)
        in_tokens = token_findings(examples, template.tokenizer, limit, keep)
        findings = doctor.findings(reader, in_tokens)
    beyond = beyond_context(setting, context, examples.lengths)
    return Looked(
        *(reader, doctor, examples, template.tokenizer, findings),
        notices=[*notices, *([beyond] if beyond else [])],
    )


def _template(base: Path, own: str | None) -> ChatTemplate:
    """The chat template of a base, after its weights were looked at where they are here."""
    from offbook.files.cache import cache_folders
    from offbook.models.base import has_weights
    from offbook.tokens.template import ChatTemplate
    from offbook.tokens.tokenizer import load_tokenizer

    template = ChatTemplate(load_tokenizer(base, own))
    if has_weights(base) and not set(cache_folders()) & set(base.parents):
        from offbook.models.weights import check_weights  # imports PyTorch

        check_weights(base)
    for note in template.notes:
        say(note)
    return template


def _print_counts(doctor: Doctor, findings: list[Finding], lengths: Lengths, replies: int) -> None:
    counts = doctor.counts(findings)
    names = _count(counts["rows"], "row"), _count(counts["duplicates"], "duplicate")
    out.print(", ".join(names), style="bold")
    if doctor.replies > doctor.rows:
        trained = "each trained on" if replies == doctor.replies else f"{replies:,} trained on"
        _line("turns", f"{doctor.replies:,} replies, {trained}")
    _line("tokens", f"{lengths.total:,}, of which {lengths.supervised:,} are trained on")
    _line(
        "an example",
        f"{lengths.mean:.0f} tokens on average ({lengths.prompt_mean:.0f} prompt, "
        f"{lengths.reply_mean:.0f} reply), median {lengths.median:.0f}",
    )
    _line("longest", f"{lengths.longest} tokens ({lengths.longest_source})")


def _print_enough(amount: Amount | None, held_out: int, examples: int) -> None:
    """Whether the rows are enough, beside published trainings."""
    from offbook.training.data import too_few_held_out
    from offbook.training.practice import PUBLISHED

    if amount:
        _line("updates", amount.describe())
        for practice in PUBLISHED:
            _line("  published", str(practice))
    if notice := too_few_held_out(held_out, examples):
        _line("held out", notice)


def _amount(examples: Examples, config: Config) -> tuple[Amount | None, int]:
    """What would be trained, and how many examples would be held out of it."""
    from offbook.training.data import HELD_OUT, fitting_share
    from offbook.training.practice import Amount

    share = config.data.validation
    if share == "auto":
        share = fitting_share(len(examples))
    elif isinstance(share, str):  # another file
        return Amount.of(examples, config), HELD_OUT
    try:
        training, validation = examples.split(share, config.train.seed)
    except DataError:  # all rows have the same prompt, which training refuses
        return None, 0
    return Amount.of(training, config), len(validation)


def _print_findings(findings: list[Finding]) -> None:
    """What is wrong, the most serious first, and what to do about it."""
    for finding in findings:
        put(f"{finding.severity:<6}{finding.describe()}", STYLES[finding.severity])
        put(f"      {finding.todo}", "dim")
    if not findings:
        put("nothing odd was found in the rows")


def _say_fixed(fixed: Fixed) -> None:
    """What became of the rows in the cleaned copy."""
    changed = fixed.left_out or fixed.changed
    changes = f"each change is in {fixed.log}" if changed else "nothing had to be changed"
    say(f"{_count(fixed.kept, 'row')} in {fixed.copy}; {changes}")
    for name, counts in (("left out", fixed.left_out), ("changed", fixed.changed)):
        if counts:
            say(f"{name}: " + ", ".join(f"{n:,} ({kind})" for kind, n in counts.items()))


def _print_tokens(examples: Examples, tokenizer: PreTrainedTokenizerBase, show: int) -> None:
    """The first examples, token by token."""
    from offbook.doctor.inspection import token_view

    views = [(example.source, token_view(example, tokenizer)) for example in examples[:show]]
    for source, spans in views:
        out.print()
        out.print(f"{Path(source).name}, token by token", style="bold", markup=False)
        width = out.width if out.is_terminal else None
        for line in draw(spans, width):
            out.print(line, soft_wrap=True)  # `draw` has wrapped it
    if marks := explain(span for _, spans in views for span in spans):
        out.print()
        put(marks, "dim")


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
