"""The rows with which an export is compared: first those that the run was not trained on."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain, islice
from typing import NamedTuple

import numpy as np

from offbook.data.conversations import read_conversations
from offbook.data.messages import Conversation, Message
from offbook.data.sources import read_training
from offbook.runs.trained import TrainedRun
from offbook.tokens.examples import IGNORED, Example, tokenize
from offbook.tokens.tokenizer import PROBES

ROWS = 20
TOKENS_PER_ROW = 10


class Place(NamedTuple):
    """A supervised token: the number of its example, and its position there."""

    row: int
    at: int


@dataclass(frozen=True)
class Sample:
    """What an export is compared on.

    Attributes:
        held_out: how many of the examples the run was not trained on; they are the first.
        conversations: of the same rows, and then of texts that tokenizers split in different ways.
            Those that spell a control token are left out, since other programs take it for one.
        examples: the token ids of each example.
        places: supervised tokens of the examples, in order.
    """

    held_out: int
    conversations: list[Conversation]
    examples: list[list[int]]
    places: list[Place]


def sample_rows(run: TrainedRun) -> Sample:
    """The first rows that a run was validated on, then of those that it was trained on.

    Raises:
        DataError: when the data of the run cannot be read.
    """
    data, template = run.config.data, run.template
    limit = data.max_length if isinstance(data.max_length, int) else None
    readers = [read_training(data)]
    training = tokenize(readers[0], template, limit)
    if isinstance(data.validation, float):
        training, validation = training.split(data.validation, run.config.train.seed)
    else:
        readers.insert(0, read_conversations(data.validation, data))
        validation = tokenize(readers[0], template, limit)
    examples = list(islice(chain(validation, training), ROWS))
    sources = list(dict.fromkeys(example.source for example in examples))
    found = {
        conversation.source: conversation
        for conversation in chain.from_iterable(readers)
        if conversation.source in sources
        and not template.encoder.spells_control(conversation.messages)
    }
    conversations = [found[source] for source in sources if source in found]
    places = [Place(row, at) for row, e in enumerate(examples) for at in _supervised(e)]
    ids = [example.input_ids.tolist() for example in examples]
    reply = Message("assistant", "Yes.")
    conversations += [
        Conversation((Message("user", text), reply), f"the text {text!r}") for text in PROBES
    ]
    return Sample(min(len(validation), len(examples)), conversations, ids, places)


def _supervised(example: Example) -> list[int]:
    """Supervised positions, evenly spread, the last among them."""
    positions = np.flatnonzero(example.labels != IGNORED)
    chosen = np.linspace(0, len(positions) - 1, min(TOKENS_PER_ROW, len(positions)))
    return list(positions[chosen.astype(int)].tolist())
