"""`--nproc N`: N processes of the same command on this machine, with the command's exit codes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence

from offbook.signals import STOPPING, handling

GRACE = 60.0  # seconds in which the others save and stop when one has failed


def leads() -> bool:
    """Whether this process prints: the first one, or the only one."""
    return os.environ.get("WORLD_SIZE", "1") == "1" or os.environ.get("RANK", "0") == "0"


def nproc_option() -> str:
    """` --nproc N` where N processes train here, and none elsewhere; else nothing."""
    count = os.environ.get("WORLD_SIZE", "1")
    alone = count == "1" or count != os.environ.get("LOCAL_WORLD_SIZE")
    return "" if alone else f" --nproc {count}"


def launch(count: int, arguments: Sequence[str]) -> int:
    """Run processes of `offbook` until all have ended.

    Each is in a session of its own, so that Ctrl-C reaches it once, from here.

    Args:
        count: of the processes.
        arguments: of the command, without `--nproc`.

    Returns:
        The exit code of the first that failed, else 0.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    place |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    received: list[int] = []
    with handling(lambda number, frame: received.append(number), STOPPING):
        workers = [
            subprocess.Popen(  # noqa: S603
                [sys.executable, "-m", "offbook", *arguments],
                env=os.environ | place | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
            for rank in range(count)
        ]
        return _wait(workers, received)


def _wait(workers: Sequence[subprocess.Popen[bytes]], received: list[int]) -> int:
    """Pass signals on to processes until all have ended; see `launch`."""
    failed, deadline = 0, float("inf")
    while None in (codes := [worker.poll() for worker in workers]):
        if not failed and (failed := next(filter(None, codes), 0)):
            deadline = time.monotonic() + GRACE  # the others notice by themselves, or are stuck
        if time.monotonic() > deadline:
            received.append(signal.SIGKILL)
        while received:
            number = received.pop(0)
            for worker in workers:
                worker.send_signal(number)  # does nothing where one has ended
        time.sleep(0.05)
    failed = failed or next(filter(None, codes), 0)
    return 128 - failed if failed < 0 else failed


def without_nproc(arguments: Sequence[str]) -> list[str]:
    """Arguments without `--nproc N` or `--nproc=N`."""
    kept: list[str] = []
    skip = False
    for argument in arguments:
        if not skip and argument != "--nproc" and not argument.startswith("--nproc="):
            kept.append(argument)
        skip = argument == "--nproc"
    return kept
