"""How long it takes to reach the validation loss that the tutorial's recipe ends with.

    python benchmarks/time_to_quality.py [--rows FILE] [--base smollm2-135m] [--epochs 3]
        [--steps N] [--seeds 3] [--every 5] [--precision auto] [--kernels native] [--markdown FILE]

For each seed, on the same rows, base and machine, by turns and each in a process of its own: the
recipe as written (Trainer, PEFT, gradient checkpointing); the recipe at its best setting (without
checkpointing), which does the same arithmetic; and offbook with what it recommends (the rate of
`train.learning_rate: auto`, a short warm-up, no dropout). The recipe's loss on the held-out rows is
the goal; offbook stops when it has reached it, by a validation every few steps. Only optimizer
steps are timed, not loading and validation. A small version takes minutes:

    python benchmarks/time_to_quality.py --rows lighthouse --steps 6 --seeds 1 --every 1
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from contestants import LORA, STEP, Job, Row, load, run_trainer, trainer_settings
from machine import DEVICE, add_options, describe_machine, now, set_kernels
from train_speed import build_rows

HELD_OUT = 40  # rows, at the most a tenth
NAMES = ("recipe", "recipe-no-checkpointing", "offbook")
HEADER = """\
| | seconds to the recipe's loss | steps | seconds a step | offbook is faster | loss |
|---|--:|--:|--:|--:|--:|"""


@dataclass(frozen=True)
class Race:
    """What every contestant is given.

    Attributes:
        job: base, rows in the order in which they are trained on, and formats.
        held_out: rows to validate on.
        seed: of adapters and dropout.
        every: steps between offbook's validations.
        goal: the loss to reach; None for those that set it.
    """

    job: dict[str, Any]
    held_out: list[Row]
    seed: int
    every: int
    goal: float | None


@dataclass(frozen=True)
class Outcome:
    """Seconds in optimizer steps, how many there were, and the validation loss after them."""

    seconds: float
    steps: int
    loss: float


def validation_loss(model: torch.nn.Module, rows: list[Row], fast: bool) -> float:
    from offbook.engine.engine import Engine

    engine = Engine(model, fast=fast)
    step = engine.make_step(examples(rows), 2048, DEVICE)
    loss = engine.mean_loss(step)
    assert loss is not None
    return loss


def examples(rows: list[Row]) -> list[Any]:
    from offbook.tokens.examples import Example

    return [
        Example(np.array(row["input_ids"], np.int32), np.array(row["labels"], np.int32))
        for row in rows
    ]


def recipe(race: Race, checkpointing: bool) -> Outcome:
    """Trainer and PEFT as the tutorial has them, all steps."""
    from peft import get_peft_model
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments, set_seed

    job = Job(**race.job)
    set_seed(race.seed)
    model, tokenizer, lora = load(job)
    if checkpointing:
        model.enable_input_require_grads()
    tuned = get_peft_model(model, lora)
    settings = trainer_settings(job) | {"lr_scheduler_type": "linear", "seed": race.seed}
    trainer = Trainer(
        model=tuned,
        args=TrainingArguments(**settings, gradient_checkpointing=checkpointing),
        train_dataset=[row | {"attention_mask": [1] * len(row["labels"])} for row in job.rows],
        data_collator=DataCollatorForSeq2Seq(tokenizer=tokenizer, padding=True),
    )
    seconds, _ = run_trainer(trainer)
    tuned.gradient_checkpointing_disable()
    return Outcome(sum(seconds), len(seconds), validation_loss(tuned, race.held_out, fast=False))


def offbook(race: Race) -> Outcome:
    """Offbook's steps with what it recommends, until the goal is reached."""
    from offbook.engine.engine import Engine
    from offbook.engine.memory import prepare_allocator
    from offbook.models.adapter import attach_adapter
    from offbook.models.load import load_base
    from offbook.settings.sections import LoraSettings, TrainSettings
    from offbook.training.plan import MOST_TOKENS
    from offbook.training.schedule import fitting_rate, learning_rate_at

    job, total = Job(**race.job), len(race.job["rows"]) // STEP
    assert race.goal is not None
    prepare_allocator(DEVICE)
    base = load_base(Path(job.folder), job.dtype, DEVICE)
    lora = LoraSettings(lora_dropout=0, **LORA)
    rate = fitting_rate(base.config.hidden_size, base.config.model_type, lora)
    settings = TrainSettings(learning_rate=rate, max_steps=total)
    model = attach_adapter(base, lora, race.seed, "base")
    engine = Engine(model)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, weight_decay=0.0, fused=True)
    rows, seconds, loss = examples(job.rows), 0.0, float("inf")
    held_out = engine.make_step(examples(race.held_out), MOST_TOKENS.on(DEVICE), DEVICE)
    for k in range(total):
        start = now()
        step = engine.make_step(rows[k * STEP : (k + 1) * STEP], MOST_TOKENS.on(DEVICE), DEVICE)
        engine.accumulate(step, [race.seed, k])
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(k, total, settings)
        optimizer.step()
        optimizer.zero_grad()
        seconds += now() - start
        if (k + 1) % race.every == 0 or k + 1 == total:
            loss = engine.mean_loss(held_out) or loss
            if loss <= race.goal:
                return Outcome(seconds, k + 1, loss)
    return Outcome(float("inf"), total, loss)


def compete(name: str, race: Race) -> Outcome:
    process = subprocess.run(
        [sys.executable, str(Path(__file__).resolve()), "--contestant", name],
        input=json.dumps(asdict(race)),
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        check=True,
    )
    return Outcome(**json.loads(process.stdout.splitlines()[-1]))


def run_contestant(name: str) -> None:
    """Read a race from stdin; write the outcome as the last line of stdout."""
    race = Race(**json.load(sys.stdin))
    set_kernels(race.job["kernels"])
    outcome = offbook(race) if name == "offbook" else recipe(race, name == "recipe")
    print(json.dumps(asdict(outcome)))


def table(outcomes: dict[str, list[Outcome]]) -> str:
    ours, lines = outcomes["offbook"], [HEADER]
    for name, theirs in outcomes.items():
        ratios = [t.seconds / o.seconds for t, o in zip(theirs, ours, strict=True)]
        spread = f"{median(ratios):.1f}× ({min(ratios):.1f} to {max(ratios):.1f})"
        cells = (
            f"{median(o.seconds for o in theirs):.0f}",
            f"{median(o.steps for o in theirs):.0f}",
            f"{median(o.seconds / o.steps for o in theirs):.2f}",
            spread,
            f"{median(o.loss for o in theirs):.3f}",
        )
        lines.append(f"| {' | '.join([name, *cells])} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", default="lighthouse", help="a file or a sample role")
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--steps", type=int, help="of 16 rows, instead of epochs")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--every", type=int, default=5, help="steps between offbook's validations")
    add_options(parser)
    parser.add_argument("--markdown", help="file for the table")
    parser.add_argument("--contestant", choices=NAMES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contestant:
        run_contestant(options.contestant)
        return

    from offbook.data.conversations import read_conversations
    from offbook.models.base import resolve_base
    from offbook.models.load import choose_precision

    set_kernels(options.kernels)
    folder = resolve_base(options.base)
    dtype = choose_precision(options.precision, DEVICE)
    count = sum(1 for _ in read_conversations(options.rows))
    rows = build_rows(options.rows, folder, count, 0)
    held_out, rest = np.split(np.arange(count), [min(HELD_OUT, count // 10)])
    steps = options.steps or options.epochs * len(rest) // STEP
    outcomes: dict[str, list[Outcome]] = {name: [] for name in NAMES}
    for seed in range(options.seeds):
        chance = np.random.default_rng(seed)
        passes = -(-steps * STEP // len(rest))
        order = np.concatenate([chance.permutation(rest) for _ in range(passes)])[: steps * STEP]
        goal = None
        for name in NAMES:
            print(f"seed {seed} of {options.seeds}: {name}", file=sys.stderr)
            with tempfile.TemporaryDirectory() as scratch:
                precision = str(dtype).removeprefix("torch.")
                trained = [rows[k] for k in order]
                job = Job(str(folder), trained, 0.1, precision, options.kernels, scratch)
                race = Race(asdict(job), [rows[k] for k in held_out], seed, options.every, goal)
                outcome = compete(name, race)
            outcomes[name].append(outcome)
            goal = outcome.loss if name == "recipe" else goal
    report = [
        table(outcomes),
        f"{options.seeds} seeds, medians, and the ratio's range; {steps} steps of {STEP} rows "
        f"in the recipe; {len(held_out)} rows held out; offbook validates every "
        f"{options.every} steps.",
        f"{describe_machine(dtype)}. `python benchmarks/time_to_quality.py "
        f"--rows {Path(options.rows).name} --seeds {options.seeds} --every {options.every}"
        + (f" --steps {options.steps}`" if options.steps else f" --epochs {options.epochs}`"),
    ]
    print("\n\n".join(report))
    if options.markdown:
        Path(options.markdown).write_text("\n\n".join(report) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
