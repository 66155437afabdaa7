"""How fast offbook trains, against the Trainer recipe that tutorials copy and against TRL.

    python benchmarks/train_speed.py [--rows FILE] [--base smollm2-135m] [--steps 2] [--rounds 2]
        [--precision auto] [--dropout 0.1] [--persona TOKENS] [--plain] [--kernels native]
        [--other-kernels x86-64-v3 none ...] [--markdown FILE] [--plot FILE]

Every contestant trains the same adapter on the same token ids and labels, 16 rows a step, in
the same precision, in a process of its own; they take turns, so that a machine that slows down
slows all of them. TRL and Unsloth take part where they are installed; if that is elsewhere, with
versions of their own, `--peer-python` names the interpreter, which also needs offbook. Memory is
the peak of the process, or of the GPU where there is one. Model FLOP use is the arithmetic that
the rows call for, without padding, recomputation and attention scores, over what the machine's
matrix products reach in the same process. Work that is saved, such as a persona computed once,
counts as done, so it may exceed 100%.
"""

from __future__ import annotations

import importlib
import sys

if "unsloth" in sys.argv:  # it patches what is imported after it
    importlib.import_module("unsloth")

import argparse
import json
import os
import random
import shlex
import subprocess
import tempfile
from dataclasses import asdict, dataclass
from itertools import cycle, islice, product
from pathlib import Path
from statistics import mean, median

import torch
from contestants import CONTESTANTS, IGNORED, LORA, MAX_LENGTH, STEP, Job, Row
from machine import DEVICE, add_options, describe_machine, gemm_speed, peak_memory, set_kernels

PERSONA = "You are the keeper of a lighthouse, and you speak in short, salty sentences. "
# Steps that are not timed: memory is touched for the first time in them.
WARM_UP = 2
PEERS = ("trl", "unsloth")
HEADER = """\
| | examples/s | supervised tokens/s | peak memory, GB | model FLOP use | offbook is faster | loss |
|---|--:|--:|--:|--:|--:|--:|"""


@dataclass(frozen=True)
class Outcome:
    """What a contestant reports: times of the steps after the warm-up, bytes, and FLOP/s."""

    seconds: list[float]
    loss: float  # of the warm-up too; equal losses tell that all did the same work
    memory: int
    gemm: float


def run_contestant(name: str) -> None:
    """Read a job from stdin; write the outcome as the last line of stdout."""
    job = Job(**json.load(sys.stdin))
    set_kernels(job.kernels)
    before = gemm_speed(job.dtype)
    seconds, loss = CONTESTANTS[name](job)
    outcome = Outcome(seconds[WARM_UP:], loss, peak_memory(), mean([before, gemm_speed(job.dtype)]))
    print(json.dumps(asdict(outcome)))


def compete(name: str, job: Job, python: str) -> Outcome | str:
    """A contestant's outcome, or the last line of its stderr."""
    process = subprocess.run(
        [python, str(Path(__file__).resolve()), "--contestant", name],
        input=json.dumps(asdict(job)),
        capture_output=True,
        text=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )
    if process.returncode == 0:
        return Outcome(**json.loads(process.stdout.splitlines()[-1]))
    return (process.stderr.strip() or f"exit status {process.returncode}").splitlines()[-1]


def is_installed(name: str, python: str) -> bool:
    """Whether an interpreter finds a package."""
    code = f"import importlib.util, sys; sys.exit(not importlib.util.find_spec({name!r}))"
    return not subprocess.run([python, "-c", code]).returncode


def build_rows(source: str, folder: Path, count: int, persona: int) -> list[Row]:
    """Rows in ChatML, in a fixed random order, the replies supervised."""
    from offbook.data.conversations import read_conversations
    from offbook.tokens.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(folder)

    def encode(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False))

    system: list[int] = []
    if persona:
        text = islice(cycle(encode(PERSONA)), persona)
        system = [*encode("<|im_start|>system\n"), *text, *encode("<|im_end|>\n")]
    pairs = [[m.content for m in c.messages[-2:]] for c in read_conversations(source)]
    random.Random(0).shuffle(pairs)
    rows = []
    for question, answer in islice(cycle(pairs), count):
        prompt = encode(f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n")
        reply = encode(f"{answer}<|im_end|>\n")
        labels = [IGNORED] * len(system + prompt) + reply
        end = len(system) + MAX_LENGTH
        rows.append({"input_ids": (system + prompt + reply)[:end], "labels": labels[:end]})
    return rows


def count_flops(folder: Path, tokens: int, supervised: int) -> int:
    """The arithmetic of training on so many tokens.

    A frozen weight takes one product forward and one backward, an adapter's another backward; each
    is two FLOPs a parameter. Only supervised tokens have to pass through the output head.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    head = model.get_output_embeddings()
    linear = {n: m for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    frozen = sum(m.weight.numel() for m in linear.values() if m is not head)
    adapted = [m for n, m in linear.items() if n.endswith(tuple(LORA["target_modules"]))]
    adapters = sum(LORA["r"] * (m.in_features + m.out_features) for m in adapted)
    return tokens * (4 * frozen + 6 * adapters) + supervised * 4 * head.weight.numel()


def examples_per_second(outcomes: list[Outcome]) -> float:
    return STEP / median(s for outcome in outcomes for s in outcome.seconds)


def cells(theirs: list[Outcome], ours: list[Outcome], supervised: int, flops: int) -> list[str]:
    totals = [sum(o.seconds) for o in theirs]
    # Within a round, so that what slows the machine for a while slows both.
    ratios = [total / sum(o.seconds) for total, o in zip(totals, ours, strict=False)]
    return [
        f"{examples_per_second(theirs):.2f}",
        f"{median(supervised / total for total in totals):.0f}",
        f"{median(o.memory for o in theirs) / 1e9:.2f}",
        f"{median(flops / total / o.gemm for total, o in zip(totals, theirs, strict=True)):.0%}",
        f"{median(ratios):.2f}×" if ratios else "",
        f"{mean(o.loss for o in theirs):.3f}",
    ]


def plot(speeds: dict[str, float], file: str) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 0.6 + 0.45 * len(speeds)), layout="constrained")
    axes = figure.add_subplot(xlabel="examples/s")
    colors = ["tab:blue" if name.startswith("offbook") else "silver" for name in speeds]
    axes.bar_label(axes.barh(list(speeds), list(speeds.values()), color=colors), fmt=" %.2f")
    axes.invert_yaxis()
    axes.margins(x=0.1)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", default="lighthouse", help="a file or a sample role")
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--steps", type=int, default=2, help="timed, of 16 rows each")
    parser.add_argument("--rounds", type=int, default=2)
    add_options(parser)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--persona", type=int, default=0, help="tokens of system text in each row")
    parser.add_argument("--plain", action="store_true", help="offbook's plain path, too")
    parser.add_argument(
        "--other-kernels", nargs="+", default=[], help="offbook with these kernels, too"
    )
    parser.add_argument("--peer-python", default=sys.executable, help="interpreter of the peers")
    parser.add_argument("--markdown", help="file for the table")
    parser.add_argument("--plot", help="file for a chart: .png, .svg")
    parser.add_argument("--contestant", choices=CONTESTANTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contestant:
        run_contestant(options.contestant)
        return

    from offbook.models.base import resolve_base
    from offbook.models.load import choose_precision

    set_kernels(options.kernels)
    folder = resolve_base(options.base)
    dtype = choose_precision(options.precision, DEVICE)
    precision = str(dtype).removeprefix("torch.")
    rows = build_rows(options.rows, folder, STEP * (WARM_UP + options.steps), options.persona)
    missing = [name for name in PEERS if not is_installed(name, options.peer_python)]
    left_out = dict.fromkeys(missing, True) | {"offbook-plain": not options.plain}
    kernels = {name: options.kernels for name in CONTESTANTS if not left_out.get(name)}
    kernels |= {f"offbook, {others}": others for others in options.other_kernels}
    outcomes: dict[str, list[Outcome]] = {name: [] for name in kernels}
    failures: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for k, name in product(range(options.rounds), outcomes):
            print(f"round {k + 1} of {options.rounds}: {name}", file=sys.stderr)
            job = Job(str(folder), rows, options.dropout, precision, kernels[name], scratch)
            python = options.peer_python if name in PEERS else sys.executable
            outcome = compete(name.split(",")[0], job, python)
            if isinstance(outcome, str):
                failures[name] = outcome.replace("|", "/")
            else:
                outcomes[name].append(outcome)

    timed = [row["labels"] for row in rows[STEP * WARM_UP :]]
    tokens = sum(map(len, timed))
    supervised = sum(label != IGNORED for labels in timed for label in labels[1:])
    flops = count_flops(folder, tokens, supervised)
    finished = {name: theirs for name, theirs in outcomes.items() if name not in failures}
    table = [HEADER]
    for name in outcomes:
        line = [f"failed: {failures[name]}", *[""] * 5] if name in failures else []
        line = line or cells(finished[name], finished.get("offbook", []), supervised, flops)
        table.append(f"| {' | '.join([name, *line])} |")
    command = ["python", "benchmarks/train_speed.py"]
    for key, value in vars(options).items():
        if value != parser.get_default(key) and key not in ("markdown", "plot", "peer_python"):
            texts = map(str, value if isinstance(value, list) else [value])
            shown = [Path(text).name if Path(text).exists() else text for text in texts]
            command += [f"--{key.replace('_', '-')}", *([] if value is True else shown)]
    report = [
        "\n".join(table),
        f"Rounds: {options.rounds}, each of {options.steps} timed steps of {STEP} rows; tokens a "
        f"row: {tokens / len(timed):.0f}, supervised {supervised / len(timed):.0f}.",
        *(f"{name} is not installed and took no part." for name in missing),
        f"{describe_machine(dtype)}. `{shlex.join(command)}`",
    ]
    print("\n\n".join(report))
    if options.markdown:
        Path(options.markdown).write_text("\n\n".join(report) + "\n", encoding="utf-8")
    if options.plot:
        plot({name: examples_per_second(theirs) for name, theirs in finished.items()}, options.plot)


if __name__ == "__main__":
    main()
