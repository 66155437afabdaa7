"""An evaluation from beginning to end: base and tuned model, side by side, on the same rows."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from peft import PeftModel

from offbook.config import DataSettings
from offbook.data.conversations import read_conversations
from offbook.engine.engine import Engine
from offbook.engine.machine import limit_threads, refuse_forked_child
from offbook.errors import CheckpointError
from offbook.evaluation import verdict
from offbook.evaluation.figures import compare, compare_shares, figure
from offbook.evaluation.ledger import make_ledger, to_parquet, worst
from offbook.evaluation.losses import Meter, RowScores
from offbook.evaluation.persona import drill, question
from offbook.evaluation.record import (
    AtStrength,
    Compared,
    Evaluation,
    Figure,
    Forgetting,
    InRole,
    LedgerRow,
    Lines,
)
from offbook.evaluation.replies import listen
from offbook.evaluation.subject import Row, Subject, as_rows
from offbook.evaluation.voice import VoiceClassifier
from offbook.files import storage
from offbook.files.storage import sha256
from offbook.inference.pytorch import TorchEngine
from offbook.models.adapter import WEIGHTS, restore_adapter, set_strength
from offbook.runs import checkpoint
from offbook.runs.derived import EVALUATION, LEDGER
from offbook.runs.directory import RunDirectory
from offbook.runs.receipt import installed_versions
from offbook.tokens.examples import IGNORED, tokenize
from offbook.tokens.template import ChatTemplate

LEDGER_ROWS = 2000
TEXTS = 48  # replies of the base that the role's voice is told from, at least
# In the short form:
SHORT_REPLIES, SHORT_TEXTS = 16, 24
SHORT_TRAINING, SHORT_GENERAL = 48, 24
GENERAL = {"en": "general-en", "zh": "general-zh"}
GENERAL_ROWS = 24  # of each language
GENERAL_REPLIES, GENERAL_TOKENS = 16, 60
STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
STRENGTH_ROWS = 24  # of each kind

Progress = Callable[[str, int, int], None]


def evaluate(
    subject: Subject,
    progress: Progress = lambda what, done, total: None,
    *,
    strength: float = 1.0,
    short: bool = False,
) -> tuple[Evaluation, list[LedgerRow]]:
    """Compare a tuned model with its base.

    Args:
        subject: model and rows.
        progress: called with what is done, how much of it is done, and how much there is.
        strength: of the adapter.
        short: whether to leave out what takes long: the probes, other strengths and the ledger,
            and most of the replies.

    Returns:
        What was found, and the ledger of the training rows; the first has the worst of them.

    Raises:
        OffbookError: when the model cannot be loaded.
    """
    refuse_forked_child()
    limit_threads()
    started = time.perf_counter()
    progress("loading the model", 0, 1)
    model = subject.found.load()
    assert isinstance(model, PeftModel)
    set_strength(model, strength)
    engine, writer = Engine(model), TorchEngine(model, subject.found.template)

    def measure(what: str, rows: Sequence[Row]) -> tuple[Meter, RowScores]:
        examples = [row.example for row in rows]
        meter = Meter(engine, examples, lambda done: progress(what, done, len(rows)))
        return meter, meter.measure()

    held_out, scores = measure("losses of held-out rows", subject.held_out)
    general_rows = read_general(subject.found.template)
    if short:
        general_rows = spread(general_rows, SHORT_GENERAL)
    _, general_scores = measure("losses of general rows", general_rows)
    sample = spread(subject.training, SHORT_TRAINING if short else LEDGER_ROWS)
    training = measure("losses of training rows", sample)[1] if sample else None
    best = _rise_since_best(subject, model, held_out, scores)
    lines = _lines(subject, scores, sample, training, best)
    ledger: list[LedgerRow] = []
    in_role, at_strengths, chosen, general_voice = None, [], None, None
    with engine.plain():
        heard = listen(
            writer,
            subject.held_out,
            subject.training,
            *((SHORT_REPLIES, SHORT_TEXTS) if short else (len(subject.held_out), TEXTS)),
            progress,
        )
        if not short:
            language = language_of([reply.reference for reply in heard.replies])
            in_role = question(writer, subject.found.system, progress)
            if heard.classifier:
                turns = drill(writer, subject.found.system, language, heard.classifier, progress)
                in_role = InRole(in_role.leaks, in_role.probes, turns, _drift(turns))
                general_voice = _general_voice(writer, general_rows, heard.classifier, progress)
    if not short:
        at_strengths = _strengths(engine, strength, subject.held_out, general_rows, progress)
        chosen = min(at_strengths, key=lambda at: at.loss.value + at.kl.value).strength
        if training is not None:
            ledger = make_ledger(sample, training, subject.first_losses)
    forgetting = Forgetting(
        kl=figure(general_scores.kl, weights=general_scores.tokens),
        loss=compare(general_scores.base, general_scores.tuned, weights=general_scores.tokens),
        prompts_kl=figure(scores.kl, _prompts(subject.held_out), scores.tokens),
        in_voice=general_voice,
    )
    facts = verdict.Facts(
        inert=bool(np.array_equal(scores.base, scores.tuned)),
        updates=subject.updates,
        lines=lines,
        forgetting=forgetting,
        voice=heard.voice,
        stops=heard.stops,
    )
    found = Evaluation(
        findings=verdict.find(facts),
        subject=subject.name,
        step=subject.updates,
        strength=strength,
        lines=lines,
        forgetting=forgetting,
        voice=heard.voice,
        in_role=in_role,
        stops=heard.stops,
        copied=heard.copied,
        replies=heard.replies,
        strengths=at_strengths,
        best_strength=chosen,
        ledger=worst(ledger),
        seconds=round(time.perf_counter() - started, 1),
        short=short,
        versions=installed_versions(),
        adapter=hash_adapter(subject.found.adapter),
    )
    return found, ledger


def hash_adapter(folder: Path | None) -> str:
    """The SHA-256 of an adapter's weights; empty where there are none."""
    file = folder and folder / WEIGHTS
    return sha256(file) if file and file.is_file() else ""


def read_evaluation(run: RunDirectory) -> Evaluation | None:
    """The evaluation in a run directory; None where there is none of its present weights.

    Raises:
        CheckpointError: when the file is damaged.
    """
    file = run.path / EVALUATION
    if not file.is_file():
        return None
    found = Evaluation.read(file)
    folder = run.adapter if found.subject == "result" else dict(run.steps()).get(found.step or 0)
    return found if found.adapter == hash_adapter(folder) else None


def write_evaluation(run: RunDirectory, found: Evaluation, ledger: Sequence[LedgerRow]) -> Path:
    """Write an evaluation, and the ledger where there is one, into the directory of its run."""
    if ledger:
        storage.replace_file(run.path / LEDGER, to_parquet(ledger))
    storage.replace_file(run.path / EVALUATION, found.to_json())
    return run.path / EVALUATION


def read_general(template: ChatTemplate) -> list[Row]:
    """General questions and answers, that have nothing to do with any role."""
    rows: list[Row] = []
    for name in GENERAL.values():
        reader = read_conversations(name, DataSettings())
        rows += spread(as_rows(tokenize(reader, template), reader), GENERAL_ROWS)
    return rows


def spread(rows: Sequence[Row], most: int) -> list[Row]:
    """At most so many rows, evenly spread."""
    places = np.linspace(0, len(rows) - 1, min(most, len(rows)))
    return [rows[int(place)] for place in places]


def language_of(texts: Sequence[str]) -> str:
    """`zh` where most of the letters are Chinese characters, else `en`."""
    letters = [char for text in texts for char in text if char.isalpha()]
    chinese = sum("\u2e80" <= char <= "\u9fff" for char in letters)
    return "zh" if 2 * chinese > len(letters) else "en"


def _lines(
    subject: Subject,
    scores: RowScores,
    sample: Sequence[Row],
    training: RowScores | None,
    best: Figure | None,
) -> Lines:
    prompts = _prompts(subject.held_out)
    tokenizer = subject.found.template.tokenizer
    sizes = [
        # At least 1: a reply may be a stop token alone.
        max(len(str(tokenizer.decode(_supervised(row), skip_special_tokens=True)).encode()), 1)
        for row in subject.held_out
    ]
    bits = np.log(2)
    return Lines(
        loss=compare(scores.base, scores.tuned, prompts, scores.tokens),
        bits=compare(scores.base / bits, scores.tuned / bits, prompts, sizes),
        training=None
        if training is None
        else compare(training.base, training.tuned, _prompts(sample), training.tokens),
        best=best,
        best_step=subject.best_step if best else None,
    )


def _rise_since_best(
    subject: Subject, model: PeftModel, held_out: Meter, scores: RowScores
) -> Figure | None:
    """What the held-out loss has risen by since it was lowest; None where that was the last step,
    or its checkpoint is gone.
    """
    if subject.run is None or subject.best_step is None or subject.best_step == subject.updates:
        return None
    assert subject.found.adapter is not None
    try:
        folder = checkpoint.find(subject.run, subject.best_step, lambda text: None)
    except CheckpointError:
        return None  # it is damaged
    restore_adapter(model, folder)
    lowest = held_out.measure()
    restore_adapter(model, subject.found.adapter)
    return figure(scores.tuned - lowest.tuned, _prompts(subject.held_out), scores.tokens)


def _general_voice(
    writer: TorchEngine, rows: Sequence[Row], classifier: VoiceClassifier, progress: Progress
) -> Compared:
    """How many answers to general questions sound like the role."""
    chosen = spread(rows, GENERAL_REPLIES)
    prompts = [writer.template.build_prompt(row.conversation.messages[:-1]) for row in chosen]

    def in_voice(base: bool) -> NDArray[np.bool_]:
        progress("answers to general questions", len(chosen) * (not base), 2 * len(chosen))
        answers = [reply.text for reply in writer.replies(prompts, GENERAL_TOKENS, base)]
        return classifier.probability(answers) > 0.5

    return compare_shares(in_voice(base=True), in_voice(base=False))


def _strengths(
    engine: Engine,
    trained: float,
    held_out: Sequence[Row],
    general: Sequence[Row],
    progress: Progress,
) -> list[AtStrength]:
    """The adapter at several strengths, on some of the rows."""
    parts = [spread(rows, STRENGTH_ROWS) for rows in (held_out, general)]
    own, other = (Meter(engine, [row.example for row in rows]) for rows in parts)
    assert isinstance(engine.model, PeftModel)
    found = []
    for number, strength in enumerate(STRENGTHS):
        progress("adapter strengths", number, len(STRENGTHS))
        set_strength(engine.model, strength)
        scores, forgot = own.measure(), other.measure()
        found.append(
            AtStrength(
                strength,
                figure(scores.tuned, _prompts(parts[0]), scores.tokens),
                figure(forgot.kl, weights=forgot.tokens),
            )
        )
    set_strength(engine.model, trained)
    return found


def _drift(turns: Sequence[float]) -> Figure | None:
    """The mean of the later half of the turns minus that of the first, with its interval."""
    half = len(turns) // 2
    if half < 2:
        return None
    return figure([late - early for early, late in zip(turns[:half], turns[half:], strict=False)])


def _supervised(row: Row) -> list[int]:
    labels = row.example.labels
    ids: list[int] = labels[labels != IGNORED].tolist()
    return ids


def _prompts(rows: Sequence[Row]) -> list[int]:
    return [row.prompt for row in rows]
