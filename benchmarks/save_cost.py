"""What crash safety costs: the time of a checkpoint as a share of the training between two.

    python benchmarks/save_cost.py [--base smollm2-135m] [--rows lighthouse] [--steps 4]
        [--saves 8] [--folder FOLDER]

Takes optimizer steps at the default settings, then commits checkpoints as training does: hashed,
forced to the disk of FOLDER (by default the working directory), the oldest removed.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import median

from machine import describe_machine

from offbook.files import storage
from offbook.monitor import Monitor
from offbook.runs import checkpoint
from offbook.runs.checkpoint import Progress
from offbook.runs.directory import RunDirectory
from offbook.settings.config import Config
from offbook.training.log import Log
from offbook.training.loop import training_steps
from offbook.training.resume import make_optimizer
from offbook.training.setup import prepare
from offbook.training.step import Stepper, StepResult

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--base", default="smollm2-135m")
parser.add_argument("--rows", default="lighthouse")
parser.add_argument("--steps", type=int, default=4)
parser.add_argument("--saves", type=int, default=8)
parser.add_argument("--folder", type=Path, default=Path())
arguments = parser.parse_args()


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


config = Config.load(
    None,
    [f"model.base={arguments.base}", f"data.train={arguments.rows}", "data.validation=0"],
)
monitor = Monitor()
loaded = prepare(config, monitor)
optimizer = make_optimizer(loaded)
progress = Progress(loaded.inputs.plan.micro_batch_tokens)
saves: list[float] = []
with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
    run = RunDirectory(Path(folder))
    stepper = Stepper(loaded, optimizer, progress, Log(run, monitor), print, lambda: False)
    steps = (r for r in training_steps(run, stepper, monitor) if isinstance(r, StepResult))
    next(steps)  # warms up
    step = median(result.seconds for result in islice(steps, arguments.steps))
    keep = config.train.save_total_limit
    save = partial(checkpoint.save, run, loaded.model, optimizer, progress, keep, {})
    for _ in range(arguments.saves):
        progress.step += 1
        saves.append(seconds(save))
    size = storage.size_of(run.checkpoints / f"step-{progress.step}")
    restoring = seconds(lambda: checkpoint.restore(run, loaded.model, optimizer, print))
cost, every = median(saves), config.train.save_steps
print(
    f"| | |\n|---|--:|\n"
    f"| bytes of a checkpoint | {size:,} |\n"
    f"| seconds of a checkpoint, median of {len(saves)} (most) | {cost:.3f} ({max(saves):.3f}) |\n"
    f"| seconds to verify and load one | {restoring:.3f} |\n"
    f"| seconds of a step, median of {arguments.steps} | {step:.2f} |\n"
    f"| share of training, a checkpoint every {every} steps | {cost / (every * step):.3%} |\n\n"
    f"{describe_machine(loaded.inputs.dtype)}."
)
