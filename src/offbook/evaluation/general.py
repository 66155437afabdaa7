"""General questions and answers, by which forgetting is measured."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from offbook.data.conversations import read_conversations
from offbook.evaluation.figures import compare_shares
from offbook.evaluation.record import Compared
from offbook.evaluation.subject import Progress, Row, as_rows, spread
from offbook.evaluation.voice import VoiceClassifier
from offbook.inference.pytorch import TorchEngine
from offbook.settings.sections import DataSettings
from offbook.tokens.examples import tokenize
from offbook.tokens.template import ChatTemplate

NAMES = ("general-en", "general-zh")
ROWS = 24  # of each language
REPLIES, TOKENS = 16, 60  # that are written, and how long they may be


def read_general(template: ChatTemplate) -> list[Row]:
    """General questions and answers, that have nothing to do with any role."""
    rows: list[Row] = []
    for name in NAMES:
        reader = read_conversations(name, DataSettings())
        rows += spread(as_rows(tokenize(reader, template), reader), ROWS)
    return rows


def answers_in_voice(
    writer: TorchEngine, rows: Sequence[Row], classifier: VoiceClassifier, progress: Progress
) -> Compared:
    """How many answers to general questions sound like the role."""
    chosen = spread(rows, REPLIES)
    prompts = [writer.template.build_prompt(row.conversation.messages[:-1]) for row in chosen]

    def in_voice(base: bool) -> NDArray[np.bool_]:
        progress("answers to general questions", len(chosen) * (not base), 2 * len(chosen))
        answers = [reply.text for reply in writer.replies(prompts, TOKENS, base)]
        return classifier.probability(answers) > 0.5

    return compare_shares(in_voice(base=True), in_voice(base=False))
