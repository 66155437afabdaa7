"""Runs of several processes; as a program, one of them: `together.py CASES`.

A case is JSON: the settings, and what happens in which process.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from offbook.engine.engine import Engine
from offbook.errors import OffbookError
from offbook.settings.config import Config
from offbook.training.train import train

ROOT = Path(__file__).parents[2]


def environment(count: int, rank: int, port: int) -> dict[str, str]:
    """What tells a process its place, as torchrun does."""
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
    path = os.pathsep.join(map(str, (ROOT / "src", ROOT / "tests")))
    return os.environ | {k: str(v) for k, v in place.items()} | {"PYTHONPATH": path}


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def train_together(count: int, cases: Sequence[dict[str, Any]], folder: Path) -> list[list[Any]]:
    """Train each case with so many processes; what `play` returned, by process and case."""
    file, port = folder / f"cases-{count}.json", free_port()
    file.write_text(json.dumps(list(cases)), encoding="utf-8")
    workers = [
        subprocess.Popen(
            [sys.executable, __file__, str(file)],
            env=environment(count, rank, port),
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]
    outputs = [worker.communicate(timeout=300)[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0] * count
    return [[json.loads(line) for line in output.splitlines()] for output in outputs]


def play(case: dict[str, Any]) -> list[Any]:
    """Train a case in this process.

    Keys of a case: `settings`, `resume`; `stop`, `fail`, `break`, `memory` and `leave`: [process,
    call] in which it is stopped, has an error after a step, or within one, runs out of memory, or
    ends without a word; `tokens`: of a micro-batch, by process.

    Returns:
        Whether it finished and after how many steps, or its error; the hash of the weights; what
        a process wrote that is not the first; and the bytes of the base that it holds.
    """
    rank = int(os.environ.get("RANK", 0))
    calls, plain = iter(range(10**6)), Engine.accumulate

    def accumulate(engine: Engine, step: Any, *others: Any) -> float | None:
        call, loss = next(calls), plain(engine, step, *others)
        if [rank, call] == case.get("fail"):
            raise ValueError("this went wrong")
        if [rank, call] == case.get("leave"):
            os._exit(0)
        if [rank, call] == case.get("memory") and len(step.micro_batches) == 1:
            raise MemoryError
        return loss

    losses, plain_loss = iter(range(10**6)), Engine.loss

    def loss(engine: Engine, *arguments: Any) -> torch.Tensor:
        if [rank, next(losses)] == case.get("break"):
            raise ValueError("this went wrong")
        return plain_loss(engine, *arguments)

    asked, seen = iter(range(10**6)), {}

    def should_stop() -> bool:
        call = next(asked)
        return "stop" in case and rank == case["stop"][0] and call >= case["stop"][1]

    make = Engine.make_step

    def make_step(engine: Engine, examples: Any, tokens: int, *others: Any) -> Any:
        of_a_step = len(others) > 1  # the check at the start gives no share
        own = case["tokens"][rank] if "tokens" in case and of_a_step else tokens
        seen["model"] = engine.model
        return make(engine, examples, own, *others)

    Engine.accumulate, Engine.make_step, Engine.loss = accumulate, make_step, loss
    try:
        config = Config.load(None, case["settings"])
        result = train(config, resume=case.get("resume", False), should_stop=should_stop)
        ended: list[Any] = [result.finished, result.steps]
    except OffbookError as error:
        ended = [type(error).__name__, str(error)]
    except ValueError as error:
        ended = ["ValueError", str(error)]
    finally:
        Engine.accumulate, Engine.make_step, Engine.loss = plain, make, plain_loss
    parameters = list(seen["model"].parameters()) if seen else []
    weights = [p for p in parameters if p.requires_grad]
    digest = hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in weights)).hexdigest()
    base = [getattr(p, "to_local", lambda p=p: p)() for p in parameters if not p.requires_grad]
    return [*ended, digest, WRITTEN, sum(p.nbytes for p in base)]


WRITTEN: list[str] = []
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def note_writes(event: str, arguments: tuple[Any, ...]) -> None:
    """An audit hook: what is written to any file, made, renamed or removed."""
    changes = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink")
    writes = event in changes or (event == "open" and (arguments[2] or 0) & WRITES)
    if writes and str(arguments[0]) != os.devnull:
        WRITTEN.append(f"{event} {arguments[0]}")


def main() -> None:
    torch.set_num_threads(1)
    if os.environ["RANK"] != "0":
        sys.addaudithook(note_writes)
    cases = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    dist.init_process_group("gloo")
    for case in cases:
        sys.stdout.write(json.dumps(play(case)) + "\n")
        sys.stdout.flush()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
