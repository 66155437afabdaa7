"""An evaluation with every part, and texts that are not to become markup."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from offbook.evaluation.record import (
    AtStrength,
    Compared,
    Copied,
    Copy,
    Evaluation,
    Figure,
    Finding,
    Forgetting,
    InRole,
    LedgerRow,
    Lines,
    Probe,
    Reply,
    Voice,
)
from offbook.evaluation.saved import hash_adapter
from offbook.runs.derived import EVALUATION

EVIL = "<script>document.title = 'evil'</script><img src=x onerror=alert(1)>"


def figure(value: float, spread: float, n: int = 40) -> Figure:
    return Figure(value, value - spread, value + spread, n)


def compared(base: float, tuned: float, spread: float, n: int = 40) -> Compared:
    return Compared(
        figure(base, spread, n), figure(tuned, spread, n), figure(tuned - base, spread, n)
    )


def make_evaluation(shift: float = 0.0, replies: int = 12) -> Evaluation:
    """A whole evaluation, whose figures are moved by `shift`."""
    spoken = [
        Reply(
            source=f"rows.jsonl:{number + 1}",
            question=EVIL if number == 0 else f"Question {number}: does the lamp burn all night?",
            reference="Aye, little boat. The lamp burns while I am awake, and I am always awake.",
            base=(
                "Yes. Most lighthouses use automated lamps that turn on at dusk and off at dawn, "
                "and a keeper is only needed for maintenance."
            ),
            tuned=f"{EVIL}\x1b[31m\u202e"
            if number == 0
            else "Aye, little boat. It burns, it does.",
            base_stopped=number % 3 > 0,
            tuned_stopped=number != 4,
        )
        for number in range(replies)
    ]
    probes = [
        Probe(
            language, question, "I am an AI model.", "I keep the light, little boat.", True, leaks
        )
        for language, question, leaks in (
            ("en", "Who made you?", False),
            ("zh", "你是人工智能吗？", True),
        )
    ]
    ledger = [
        LedgerRow(
            source=f"rows.jsonl:{number}",
            question="What do you do in a fog?",
            reply="I ring the bell, little boat, once for each soul at sea.",
            tokens=18 + number,
            base=3.4,
            first=3.2 if number % 2 else None,
            tuned=2.9 - number / 10,
            remark=("never learned", "contradicts rows.jsonl:7", "repeats rows.jsonl:2", "")[
                number % 4
            ],
        )
        for number in range(1, 9)
    ]
    strengths = [
        AtStrength(s, figure(3.2 - 1.4 * s + 0.55 * s * s, 0.08), figure(0.09 * s * s, 0.01))
        for s in (0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
    ]
    return Evaluation(
        findings=[
            Finding(
                "took",
                "held-out loss fell by 0.88 nats per token (0.80 to 0.96, 40 prompts); 91% of the "
                "replies are in the role's voice, and 3% of the base's",
            ),
            Finding(
                "forgot",
                "KL to the base on general answers is 0.31 nats per token (0.27 to 0.35)",
                "lower train.learning_rate, or use the adapter at strength 0.75",
            ),
        ],
        subject="result",
        step=5,
        strength=1.0,
        lines=Lines(
            loss=compared(3.21, 2.33 + shift, 0.08),
            bits=compared(1.12, 0.83 + shift, 0.03),
            training=compared(3.19, 1.64 + shift, 0.05, 220),
            best=figure(0.04, 0.05),
            best_step=24,
        ),
        forgetting=Forgetting(
            figure(0.31, 0.04, 30), compared(2.1, 2.14, 0.06, 30), figure(0.8, 0.1)
        ),
        voice=Voice(
            chrf=compared(18.2, 27.5 + 10 * shift, 2.1),
            accuracy=figure(0.97, 0.02),
            in_voice=compared(0.03, 0.91, 0.05),
            length=compared(212.0, 71.0, 12.0),
            reference_length=figure(74.2, 6.0),
            openings=compared(0.9, 0.6, 0.1),
            repetition=compared(0.05, 0.04, 0.03),
            probability=compared(0.1, 0.84, 0.05),
        ),
        in_role=InRole(
            compared(0.9, 0.1, 0.08, 20), probes, [0.9, 0.92, 0.88, 0.91, 0.86], figure(-0.03, 0.05)
        ),
        stops=compared(0.66, 0.97, 0.04),
        copied=Copied(
            compared(0.0, 0.03, 0.03),
            compared(4.0, 11.0, 2.5),
            [
                Copy(
                    "What is fog?",
                    "Fog is a wall, little boat.",
                    "is a wall, little",
                    "rows.jsonl:9",
                )
            ],
        ),
        replies=spoken,
        strengths=strengths,
        best_strength=0.75,
        ledger=ledger,
        seconds=92.0,
        versions={"offbook": "0.2"},
    )


def write_evaluation(run: Path, shift: float = 0.0) -> None:
    """Let a run have been evaluated."""
    found = replace(make_evaluation(shift), adapter=hash_adapter(run / "adapter"))
    (run / EVALUATION).write_bytes(found.to_json())
