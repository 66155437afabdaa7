"""An evaluation from beginning to end: base and tuned model, side by side, on the same rows."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from peft import PeftModel

from offbook.engine.engine import Engine
from offbook.engine.machine import limit_threads, refuse_forked_child
from offbook.errors import CheckpointError
from offbook.evaluation import verdict
from offbook.evaluation.figures import compare, figure
from offbook.evaluation.general import ROWS as GENERAL_ROWS
from offbook.evaluation.general import answers_in_voice, read_general
from offbook.evaluation.ledger import make_ledger, worst
from offbook.evaluation.losses import Measured, Meter, RowScores
from offbook.evaluation.persona import stay_in_role
from offbook.evaluation.record import Evaluation, Figure, Forgetting, LedgerRow, Lines
from offbook.evaluation.replies import Heard, listen
from offbook.evaluation.saved import hash_adapter
from offbook.evaluation.strength import best_strength, measure_strengths
from offbook.evaluation.subject import Progress, Row, Subject, prompts_of, spread
from offbook.inference.pytorch import TorchEngine
from offbook.models.adapter import has_strength, restore_adapter, set_strength
from offbook.runs import checkpoint
from offbook.runs.receipt import installed_versions
from offbook.tokens.examples import IGNORED

LEDGER_ROWS = 2000
TEXTS = 48  # replies of the base that the role's voice is told from, at least
# In the short form:
SHORT_REPLIES, SHORT_TEXTS = 16, 24
SHORT_TRAINING, SHORT_GENERAL = 48, 24


@dataclass(frozen=True)
class Bench:
    """A model that is measured.

    Attributes:
        subject: model and rows.
        model, engine, writer: the model, loaded; what computes its losses; what writes its replies.
        progress: see `evaluate`.
    """

    subject: Subject
    model: PeftModel
    engine: Engine
    writer: TorchEngine
    progress: Progress

    def measure(self, what: str, rows: Sequence[Row]) -> Measured:
        """The scores of rows."""
        examples = [row.example for row in rows]
        meter = Meter(self.engine, examples, lambda done: self.progress(what, done, len(rows)))
        return Measured(rows, meter, meter.measure())


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
    template = subject.found.template
    bench = Bench(subject, model, Engine(model), TorchEngine(model, template), progress)
    held_out = bench.measure("losses of held-out rows", subject.held_out)
    general_rows = spread(read_general(template), SHORT_GENERAL if short else 2 * GENERAL_ROWS)
    general = bench.measure("losses of general rows", general_rows)
    scores, forgot = held_out.scores, general.scores
    sample = spread(subject.training, SHORT_TRAINING if short else LEDGER_ROWS)
    training = bench.measure("losses of training rows", sample).scores if sample else None
    with bench.engine.plain():
        how_much = (SHORT_REPLIES, SHORT_TEXTS) if short else (len(subject.held_out), TEXTS)
        heard = listen(bench.writer, subject.held_out, subject.training, *how_much, progress)
    best = _rise_since_best(subject, model, held_out)
    facts = verdict.Facts(
        inert=bool(np.array_equal(scores.base, scores.tuned)),
        updates=subject.updates,
        lines=_lines(subject, scores, sample, training, best),
        forgetting=Forgetting(
            kl=figure(forgot.kl, weights=forgot.tokens),
            loss=compare(forgot.base, forgot.tuned, weights=forgot.tokens),
            prompts_kl=figure(scores.kl, prompts_of(subject.held_out), scores.tokens),
        ),
        voice=heard.voice,
        stops=heard.stops,
    )
    found = Evaluation(
        findings=verdict.find(facts),
        subject=subject.name,
        step=subject.updates,
        strength=strength,
        lines=facts.lines,
        forgetting=facts.forgetting,
        voice=heard.voice,
        stops=heard.stops,
        copied=heard.copied,
        replies=heard.replies,
        unanswered=heard.unanswered,
        short=short,
        versions=installed_versions(),
        adapter=hash_adapter(subject.found.adapter),
    )
    ledger = make_ledger(sample, training, subject.first_losses) if training and not short else []
    if not short:
        found = replace(_in_full(found, bench, heard, held_out, general), ledger=worst(ledger))
    return replace(found, seconds=round(time.perf_counter() - started, 1)), ledger


def _in_full(
    found: Evaluation, bench: Bench, heard: Heard, held_out: Measured, general: Measured
) -> Evaluation:
    """An evaluation with what its short form leaves out."""
    subject, writer, progress = bench.subject, bench.writer, bench.progress
    references = [reply.reference for reply in heard.replies]
    with bench.engine.plain():
        in_role = stay_in_role(writer, subject.found.system, references, heard.classifier, progress)
        in_voice = None
        if heard.classifier:
            in_voice = answers_in_voice(writer, general.rows, heard.classifier, progress)
    measured = []
    if has_strength(bench.model):
        measured = measure_strengths(bench.engine, found.strength, held_out, general, progress)
    return replace(
        found,
        in_role=in_role,
        forgetting=replace(found.forgetting, in_voice=in_voice),
        strengths=measured,
        best_strength=best_strength(measured),
    )


def _lines(
    subject: Subject,
    scores: RowScores,
    sample: Sequence[Row],
    training: RowScores | None,
    best: Figure | None,
) -> Lines:
    prompts = prompts_of(subject.held_out)
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
        else compare(training.base, training.tuned, prompts_of(sample), training.tokens),
        best=best,
        best_step=subject.best_step if best else None,
    )


def _rise_since_best(subject: Subject, model: PeftModel, held_out: Measured) -> Figure | None:
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
    lowest = held_out.meter.measure()
    restore_adapter(model, subject.found.adapter)
    scores = held_out.scores
    return figure(scores.tuned - lowest.tuned, prompts_of(held_out.rows), scores.tokens)


def _supervised(row: Row) -> list[int]:
    labels = row.example.labels
    ids: list[int] = labels[labels != IGNORED].tolist()
    return ids
