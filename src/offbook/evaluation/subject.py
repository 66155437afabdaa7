"""What is evaluated: a run, or someone else's adapter on its base, and the rows it is judged by."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from offbook.data.conversations import ConversationReader, read_conversations
from offbook.data.messages import Conversation
from offbook.data.sources import read_training
from offbook.errors import ConfigError
from offbook.inference.model import FoundModel, find_model
from offbook.inference.sources import Source, identify
from offbook.monitor import Monitor, RowLosses, StepMetrics
from offbook.runs.checkpoint import best_step
from offbook.runs.directory import RunDirectory, step_of
from offbook.runs.places import find_data
from offbook.settings.config import Config
from offbook.tokens.examples import Example, Examples, supervised_spans, tokenize
from offbook.tokens.template import ChatTemplate
from offbook.training.data import read_data

T = TypeVar("T")

ROWS = 200  # held-out rows, unless asked for others
SEED = 0

# Receives what is being done, how much of it is done, and how much there is.
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Row:
    """A row that is evaluated.

    Attributes:
        example: its tokens.
        conversation: the messages of its row, up to the last reply that the example trains on.
        prompt: equal for rows with the same prompt.
        number: among the examples that it is one of.
    """

    example: Example
    conversation: Conversation
    prompt: int
    number: int

    @property
    def prompt_ids(self) -> list[int]:
        """The tokens of its example before that reply."""
        begin, _ = supervised_spans(self.example.labels)[-1]
        ids: list[int] = self.example.input_ids[:begin].tolist()
        return ids

    @property
    def question(self) -> str:
        """What the user says before that reply."""
        return self.conversation.messages[-2].content

    @property
    def reply(self) -> str:
        """That reply."""
        return self.conversation.messages[-1].content


@dataclass(frozen=True)
class Subject:
    """A model with an adapter, and rows. `find_subject` makes it.

    Attributes:
        found: the model; no weights are loaded yet.
        name: `result`, `step 200`, or the folder's name.
        run: the run directory; None for someone else's adapter.
        held_out: rows that it was not trained on.
        training: rows that it was trained on; empty where they are not known.
        updates: optimizer steps; None where they are not known.
        best_step: the checkpoint of a run with the lowest validation loss.
        first_losses: of training rows, by their number, when they were first trained on.
    """

    found: FoundModel
    name: str
    run: RunDirectory | None
    held_out: list[Row]
    training: list[Row]
    updates: int | None
    best_step: int | None = None
    first_losses: dict[int, float] = field(default_factory=dict)


def find_subject(
    path: Path,
    announce: Callable[[str], None],
    *,
    base: str | None = None,
    checkpoint: str | int | None = None,
    data: str | None = None,
    rows: int = ROWS,
) -> Subject:
    """Find a model to evaluate and its rows.

    Args:
        path: a run directory, or a PEFT folder.
        announce: receives what is odd.
        base: of an adapter; or where a run's base is now.
        checkpoint: of a run: `best`, `last` or a step.
        data: rows to judge it by; by default, those that the run was validated on.
        rows: most held-out rows.

    Raises:
        ConfigError: when there are no rows to judge it by, or it has no adapter.
        OffbookError: when the model or the rows cannot be used.
    """
    source = identify(path, base, checkpoint)
    if source == Source.MODEL:
        raise ConfigError(
            "a whole model has no adapter to compare with its base",
            where=str(path),
            fix="evaluate the run or the adapter that it was made of",
        )
    found = find_model(path, announce, base=base, checkpoint=checkpoint)
    if source == Source.ADAPTER:
        if data is None:
            raise ConfigError(
                "an adapter does not say which rows it was trained on",
                where=str(path),
                fix="name rows in the role, that it was not trained on: --data rows.json",
            )
        held_out, reader = _read(data, Config(), found.template)
        chosen = as_rows(held_out, reader, rows)
        return Subject(found, path.resolve().name, None, chosen, [], None)
    return _of_run(RunDirectory.open(path), found, announce, data, rows)


def _of_run(
    run: RunDirectory,
    found: FoundModel,
    announce: Callable[[str], None],
    data: str | None,
    rows: int,
) -> Subject:
    """The model of a run, and its rows; see `find_subject`."""
    config, receipt = find_data(run, run.config()), run.receipt()
    limit = config.data.max_length if isinstance(config.data.max_length, int) else None
    known = read_data(config, found.template, limit, Monitor(), receipt.commits)
    reader = held_reader = read_training(config.data, receipt.commits)
    held_out = known.validation
    if data is not None:
        held_out, held_reader = _read(data, config, found.template)
        held_out = _without(held_out, known.training, announce)
    elif isinstance(config.data.validation, str):
        commit = receipt.commits.get("data.validation")
        held_reader = read_conversations(config.data.validation, config.data, commit)
    if not len(held_out):
        raise ConfigError(
            "there are no rows that the run was not trained on",
            where=str(run.path),
            fix="name some with --data FILE",
        )
    steps = [r.step for r in run.metrics() if isinstance(r, StepMetrics)]
    assert found.adapter is not None
    at = step_of(found.adapter)
    return Subject(
        found,
        "result" if at is None else f"step {at}",
        run,
        as_rows(held_out, held_reader, rows),
        as_rows(known.training, reader),
        at if at is not None else max(steps, default=None),
        best_step(run),
        {
            row: loss
            for record in run.metrics()
            if isinstance(record, RowLosses)
            for row, loss in zip(record.rows, record.losses, strict=True)
        },
    )


def _read(data: str, config: Config, template: ChatTemplate) -> tuple[Examples, ConversationReader]:
    """The examples of a file that the user has named."""
    reader = read_conversations(data, config.data)
    limit = config.data.max_length if isinstance(config.data.max_length, int) else None
    return tokenize(reader, template, limit), reader


def _without(held_out: Examples, training: Examples, announce: Callable[[str], None]) -> Examples:
    """The examples whose prompts were not trained on."""
    seen = np.isin(held_out.prompt_keys[held_out.rows], training.prompt_keys[training.rows])
    if seen.any():
        announce(f"{int(seen.sum()):,} rows are left out, since their prompts were trained on")
    return replace(held_out, rows=held_out.rows[~seen])


def as_rows(
    examples: Examples, reader: Iterable[Conversation], most: int | None = None
) -> list[Row]:
    """At most so many examples, chosen at random, with their conversations, in their order."""
    order = np.random.default_rng(SEED).permutation(len(examples))[:most]
    chosen = sorted(order.tolist())
    keys, numbers = (x[examples.rows] for x in (examples.prompt_keys, examples.conversations))
    wanted = {int(numbers[k]) for k in chosen}
    # Not by `file:line`: several rows may stand on one line.
    conversations = {n: c for n, c in enumerate(reader) if n in wanted}
    return [
        Row(examples[k], _until(examples[k], conversations[int(numbers[k])]), int(keys[k]), k)
        for k in chosen
    ]


def _until(example: Example, conversation: Conversation) -> Conversation:
    """A conversation up to the last reply that one of its examples trains on."""
    last = example.reply - 1 + len(supervised_spans(example.labels)) - 1
    end = conversation.replies[last] + 1
    return replace(conversation, messages=conversation.messages[:end])


def spread(rows: Sequence[T], most: int) -> list[T]:
    """At most so many rows, evenly spread."""
    places = np.linspace(0, len(rows) - 1, min(most, len(rows)))
    return [rows[int(place)] for place in places]


def prompts_of(rows: Sequence[Row]) -> list[int]:
    """The prompt of each row."""
    return [row.prompt for row in rows]
