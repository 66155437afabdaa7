"""The proof that an export is the model that was trained: what was compared, and what was found.

Another program reads the export and answers questions about the run's own rows (`readers`). Then
the run's model, in PyTorch, is asked the same. A reply of the other program is the likeliest one if
each of its tokens is the likeliest in PyTorch too, given those before it; so one forward pass per
reply compares greedy generation.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel

from offbook.errors import ExportError
from offbook.export.held_out import Sample
from offbook.export.readers import Answers, Float64, Scores, questions, torch_scores
from offbook.tokens.template import ChatTemplate

RESAMPLES = 2000


class Limits(NamedTuple):
    """How far an export may be from the run's model.

    Attributes:
        log_probability: largest difference of any token's; None where numbers are rounded.
        divergence: largest mean KL divergence, in nats per token.
        agreement: least share of greedy tokens that are the run's own likeliest.
        kept: least share of the gain in loss that is still there.
    """

    log_probability: float | None
    divergence: float
    agreement: float
    kept: float

    def or_looser(self, other: Limits) -> Limits:
        """The looser of two limits, for a comparison in which both sides are rounded."""
        numbers = self.log_probability, other.log_probability
        return Limits(
            None if None in numbers else max(n for n in numbers if n is not None),
            max(self.divergence, other.divergence),
            min(self.agreement, other.agreement),
            min(self.kept, other.kept),
        )


# By number format; benchmarks/exports.py prints what is found on a run.
LIMITS = {
    "f32": Limits(5e-4, 1e-7, 0.998, 0.999),
    "f16": Limits(None, 1e-4, 0.98, 0.99),
    "bf16": Limits(None, 2e-3, 0.93, 0.95),
    "q8_0": Limits(None, 3e-2, 0.85, 0.90),
    "nf4": Limits(None, 0.3, 0.60, 0.80),
}


@dataclass(frozen=True)
class Check:
    """One comparison.

    Attributes:
        name: what was compared.
        passed: None where it is told and not judged.
        found: the figures.
    """

    name: str
    passed: bool | None
    found: str


@dataclass(frozen=True)
class Gain:
    """By how much the adapter lowers the loss on rows that the run was not trained on.

    Attributes:
        rows: how many.
        base: the mean loss of a token without the adapter.
        tuned: that with it.
        low: end of the 95% interval of the difference, by resampling rows.
        high: its other end.
    """

    rows: int
    base: float
    tuned: float
    low: float
    high: float


@dataclass(frozen=True)
class Certificate:
    """`certificate.json`.

    Attributes:
        reader: the program that read the export.
        rows: what it was compared on.
        gain: the run's own, not the export's; None when no rows were held out.
        checks: all comparisons.
        versions: of the packages that made the export.
    """

    reader: str
    rows: str
    gain: Gain | None
    checks: list[Check]
    versions: dict[str, str]

    def to_json(self) -> bytes:
        """The contents of the file."""
        return f"{json.dumps(asdict(self), indent=2, ensure_ascii=False)}\n".encode()

    @property
    def failed(self) -> list[Check]:
        """The comparisons that found another model."""
        return [check for check in self.checks if check.passed is False]

    def require_passed(self, where: str) -> None:
        """Refuse an export that is another model.

        Raises:
            ExportError: naming the checks that failed.
        """
        if self.failed:
            found = "; ".join(f"{check.name}: {check.found}" for check in self.failed)
            raise ExportError(
                f"the export is not the model that was trained, by {self.reader}: {found}",
                where=where,
                fix="nothing was kept; try another --to or --type",
            )


def certify(
    answers: Answers,
    sample: Sample,
    prompts: Sequence[list[int]],
    model: PeftModel,
    template: ChatTemplate,
    limits: Limits,
    quantization: str,
    versions: dict[str, str],
) -> Certificate:
    """Compare what a reader says of an export with the run's model.

    Args:
        answers: the reader's.
        sample: what it was asked about.
        prompts: ours, of each conversation.
        model: base and adapter, on any device.
        template: the run's.
        limits: how far the export may be from it.
        quantization: of the base in which the run was trained; exports are never quantized so.
        versions: for the record.
    """
    asked = questions(sample)
    tuned = [torch_scores(model, question) for question in asked]
    with model.disable_adapter():
        base = [torch_scores(model, question) for question in asked]
    checks = [
        _prompts(answers, sample, prompts, template),
        *_distributions(answers.scores, tuned, limits),
        _learned(answers.scores, tuned, base, limits),
        *_replies(answers, prompts, model, template.stop_id, limits),
    ]
    held_out = sample.held_out
    gain = _gain(tuned[:held_out], base[:held_out]) if held_out else None
    if quantization != "none":
        few = held_out or len(asked)
        checks.append(_unquantized(answers.scores[:few], tuned[:few], quantization))
    rows = f"{held_out} rows held out from training, {len(asked) - held_out} rows of it"
    return Certificate(answers.reader, rows, gain, checks, versions)


def _prompts(
    answers: Answers, sample: Sample, prompts: Sequence[list[int]], template: ChatTemplate
) -> Check:
    equal = [ours == theirs for ours, theirs in zip(prompts, answers.prompts, strict=True)]
    found = f"{sum(equal)} of {len(equal)} conversations have the same tokens"
    if not all(equal):
        first = equal.index(False)
        source = sample.conversations[first].source
        ours, theirs = prompts[first], answers.prompts[first]
        at = next(
            (k for k, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b),
            min(len(ours), len(theirs)),
        )
        decode = template.tokenizer.decode
        found += f"; {source}: {decode(ours[at : at + 3])!r} became {decode(theirs[at : at + 3])!r}"
    return Check("prompt ids", all(equal), found)


def _distributions(theirs: Sequence[Scores], ours: Sequence[Scores], limits: Limits) -> list[Check]:
    both = zip(ours, theirs, strict=True)
    pairs = [pair for a, b in both for pair in zip(a.distributions, b.distributions, strict=True)]
    largest = max(float(np.abs(a - b).max()) for a, b in pairs)
    divergence = float(np.mean([np.sum(np.exp(a) * (a - b)) for a, b in pairs]))
    allowed = limits.log_probability
    return [
        Check(
            "log-probabilities",
            None if allowed is None else largest <= allowed,
            f"differ by at most {largest:.1e} at {len(pairs)} places"
            + ("" if allowed is None else f" (limit {allowed:.0e})"),
        ),
        Check(
            "divergence",
            divergence <= limits.divergence,
            f"{divergence:.1e} nats per token (limit {limits.divergence:.0e})",
        ),
    ]


def _learned(
    theirs: Sequence[Scores], ours: Sequence[Scores], base: Sequence[Scores], limits: Limits
) -> Check:
    """Whether what the adapter learned is still there: the gain in loss, ours and the export's."""
    gains = np.array([_sums(ours) - _sums(base), _sums(theirs) - _sums(base)])
    resampled = gains[:, _resampled(len(base))].sum(-1)
    loss = f"loss {_loss(theirs):.4f} for {_loss(ours):.4f}, base {_loss(base):.4f}"
    if np.quantile(resampled[0], 0.025) <= 0:
        return Check("learned", None, f"{loss}; too little was learned to tell")
    kept = float(gains[1].sum() / gains[0].sum())
    low, high = np.quantile(resampled[1] / resampled[0], (0.025, 0.975))
    found = f"{loss}; {kept:.1%} of the gain is kept ({low:.1%} to {high:.1%}"
    noise = kept < limits.kept <= high  # too wide an interval to tell
    passed = None if noise else kept >= limits.kept
    return Check("learned", passed, f"{found}; limit {limits.kept:.1%})")


def _unquantized(theirs: Sequence[Scores], ours: Sequence[Scores], quantization: str) -> Check:
    """What changes when an adapter that was trained on a quantized base is on the exact one."""
    low, high = _interval(ours, theirs)
    return Check(
        "unquantized base",
        None,
        f"loss {_loss(theirs):.4f} on {len(ours)} rows, {_loss(ours):.4f} with the base in "
        f"{quantization}, as in training (95% interval of the change {low:+.4f} to {high:+.4f})",
    )


def _gain(tuned: Sequence[Scores], base: Sequence[Scores]) -> Gain:
    return Gain(len(tuned), _loss(base), _loss(tuned), *_interval(tuned, base))


def _interval(better: Sequence[Scores], worse: Sequence[Scores]) -> tuple[float, float]:
    """The 95% interval of the difference in the mean loss of a token, by resampling rows."""
    gains, tokens = _sums(better) - _sums(worse), np.array([len(row.tokens) for row in better])
    drawn = _resampled(len(tokens))
    low, high = np.quantile(gains[drawn].sum(-1) / tokens[drawn].sum(-1), (0.025, 0.975))
    return float(low), float(high)


def _resampled(rows: int) -> NDArray[np.int64]:
    """Numbers of rows, drawn with replacement [RESAMPLES, rows]."""
    return np.random.default_rng(0).integers(rows, size=(RESAMPLES, rows))


def _sums(scores: Sequence[Scores]) -> Float64:
    """The log-probability of the tokens of each row, together."""
    return np.array([sum(row.tokens) for row in scores])


def _loss(scores: Sequence[Scores]) -> float:
    """The mean loss of a token."""
    return float(-_sums(scores).sum() / sum(len(row.tokens) for row in scores))


def _replies(
    answers: Answers, prompts: Sequence[list[int]], model: PeftModel, stop: int, limits: Limits
) -> list[Check]:
    tokens = agreeing = equal = ends = ended = ran_on = 0
    for prompt, reply in zip(prompts, answers.replies, strict=False):
        generated = [*reply.ids, *([stop] if reply.stopped else [])]
        likeliest = _likeliest(model, prompt, generated)
        same = [a == b for a, b in zip(generated, likeliest, strict=True)]
        tokens, agreeing, equal = tokens + len(same), agreeing + sum(same), equal + all(same)
        ends += reply.stopped
        ended += reply.stopped and same[-1]
        ran_on += stop in reply.ids
    share = agreeing / max(tokens, 1)
    return [
        Check(
            "greedy replies",
            share >= limits.agreement,
            f"{agreeing} of {tokens} tokens are the run's own ({share:.1%}, limit "
            f"{limits.agreement:.1%}); {equal} of {len(answers.replies)} replies are equal",
        ),
        Check(
            "stop",
            ran_on == 0 and ends - ended <= 1 + (1 - limits.agreement) * ends,
            f"{ends} of {len(answers.replies)} replies end by themselves, {ended} of them where "
            f"the run's own do; {ran_on} run on after the stop token",
        ),
    ]


def _likeliest(model: PeftModel, prompt: Sequence[int], reply: Sequence[int]) -> list[int]:
    """The likeliest token at each position of a reply, given the prompt and the reply before it."""
    ids = torch.tensor([[*prompt, *reply]], device=model.device)
    with torch.no_grad():
        logits = model(ids[:, :-1]).logits[0, len(prompt) - 1 :]
    chosen: list[int] = logits.argmax(-1).tolist()
    return chosen
