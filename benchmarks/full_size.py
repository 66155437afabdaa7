"""Take optimizer steps of 16 rows with any base, and compare memory and time with the plan.

    python benchmarks/full_size.py --base FOLDER [--rows FILE] [--tokens 512] [--steps 2]
        [--precision auto] [--kernels native] [--memory-only] [--json]

Prints seconds a step, peak resident memory against the prediction, FLOP use against a matrix
product measured before and after, and the hours that three epochs of the rows would take.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import torch
from machine import add_options, describe_machine, gemm_speed, peak_memory, set_kernels

from offbook.engine.batching import make_step
from offbook.engine.engine import Engine
from offbook.engine.memory import prepare_allocator
from offbook.models.adapter import attach_adapter
from offbook.models.load import load_base
from offbook.monitor import Monitor
from offbook.settings.config import Config
from offbook.training.advice import Case
from offbook.training.inputs import gather
from offbook.training.memory import Memory
from offbook.training.plan import plan_for

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--base", default="smollm2-135m")
parser.add_argument("--rows", default="lighthouse")
parser.add_argument("--tokens", type=int, default=512, help="of a micro-batch")
parser.add_argument("--steps", type=int, default=2)
parser.add_argument("--set", nargs="*", default=[], help="more settings, key=value")
add_options(parser)
parser.add_argument("--memory-only", action="store_true", help="do not measure products")
parser.add_argument("--json", action="store_true")
arguments = parser.parse_args()
set_kernels(arguments.kernels)

config = Config.load(
    None,
    [
        f"model.base={arguments.base}",
        f"data.train={arguments.rows}",
        "data.validation=0",
        f"model.precision={arguments.precision}",
        *arguments.set,
    ],
)
run = gather(config, Monitor(), weights=False)
schedule = run.schedule
steps = [
    make_step([run.training[r] for r in schedule.rows(k)], arguments.tokens, run.device)
    for k in range(arguments.steps)
]
longest = int(run.training.lengths.max())
plan = plan_for(
    Case(run.config, run.shape, longest, run.dtype, run.device, Memory.of(run.device)),
    max(len(step.prefix) + len(batch.input_ids) for step in steps for batch in step.micro_batches),
    checkpointing=run.config.train.gradient_checkpointing is True,
)
prepare_allocator(run.device)
start = time.perf_counter()
model = attach_adapter(load_base(run.base, run.dtype, run.device), config.lora, 0, "base")
loading = time.perf_counter() - start
if plan.checkpointing:
    model.get_base_model().gradient_checkpointing_enable({"use_reentrant": False})
engine = Engine(model)
trained = [p for p in model.parameters() if p.requires_grad]
optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)
seconds, uses = [], []
before = 0.0 if arguments.memory_only else gemm_speed(run.dtype)
for k, step in enumerate(steps):
    start = time.perf_counter()
    engine.accumulate(step, [0, k])
    torch.nn.utils.clip_grad_norm_(trained, 1.0)
    optimizer.step()
    optimizer.zero_grad()
    seconds.append(time.perf_counter() - start)
    if not arguments.memory_only:
        after = gemm_speed(run.dtype)
        flops = run.shape.flops(step.tokens, step.supervised)
        uses.append(flops / seconds[-1] / ((before + after) / 2))
        before = after
tokens = [step.tokens for step in steps]
peak = peak_memory()
per_token = statistics.median(s / n for s, n in zip(seconds, tokens, strict=True))
hours = per_token * int(run.training.lengths.sum()) * 3 / 3600
facts = {
    "machine": describe_machine(run.dtype),
    "parameters": run.shape.parameters,
    "loading_seconds": round(loading, 1),
    "step_tokens": tokens,
    "step_seconds": [round(s, 2) for s in seconds],
    "tokens_per_second": round(1 / per_token, 2),
    "flop_use": round(statistics.median(uses), 3) if uses else None,
    "predicted_gb": round(plan.peak / 1e9, 2),
    "peak_gb": round(peak / 1e9, 2),
    "three_epochs_hours": round(hours, 2),
}
if arguments.json:
    print(json.dumps(facts))
else:
    for name, value in facts.items():
        print(f"{name:20} {value}")
