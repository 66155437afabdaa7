"""Servers around a scripted engine, and real ones in a process of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from offbook.inference.generate import Sampling
from offbook.serve.app import make_app
from offbook.serve.engine import BASE, Role
from offbook.tokens.template import ChatTemplate

ASK = {"model": "captain", "messages": [{"role": "user", "content": "hello"}]}


class ScriptedReply:
    """Says what it was asked to; waits for `go_on` before each piece, if it is told to."""

    def __init__(self, pieces: Sequence[str], most: int, go_on: threading.Event | None) -> None:
        self.tokens, self.stopped = 0, False
        self._pieces, self._most, self._go_on = pieces, most, go_on
        self.given_up = threading.Event()

    def __iter__(self) -> Iterator[str]:
        for piece in self._pieces[: self._most]:
            while self._go_on and not self._go_on.wait(0.01):
                if self.given_up.is_set():
                    return
            if self.given_up.is_set():
                return
            self.tokens += 1
            yield piece
        self.stopped = len(self._pieces) <= self._most

    def stop(self) -> None:
        self.given_up.set()


class ScriptedEngine:
    """In place of llama.cpp; keeps what it was asked for."""

    def __init__(self, template: ChatTemplate, system: str | None = None, slots: int = 2) -> None:
        self.roles = {
            "captain": Role("captain", template, system, 0),
            "keeper": Role("keeper", template, None, 1),
            BASE: Role(BASE, template, None, None),
        }
        self.context, self.vocabulary, self.slots = 256, 10**6, slots
        self.pieces = ["Aye, ", "小船", "🚢", "!"]
        self.go_on: threading.Event | None = None
        self.asked: list[dict[str, Any]] = []
        self.replies: list[ScriptedReply] = []

    def strengths(self, role: Role, strength: float) -> tuple[float, ...]:
        return tuple(strength * (i == role.adapter) for i in range(2))

    def reply(
        self,
        role: Role,
        prompt: Sequence[int],
        sampling: Sampling,
        strengths: Sequence[float],
        stop: Sequence[str] = (),
        slot: int = 0,
    ) -> ScriptedReply:
        self.asked.append(
            {
                "role": role.name,
                "prompt": list(prompt),
                "sampling": sampling,
                "strengths": strengths,
                "stop": list(stop),
                "slot": slot,
            }
        )
        reply = ScriptedReply(self.pieces, sampling.max_new_tokens, self.go_on)
        self.replies.append(reply)
        return reply


def client(engine: Any, rows: Path | None = None, **options: Any) -> TestClient:
    """A client of a server around an engine."""
    files = {"captain": rows} if rows else {}
    app = make_app(engine, files, **options)
    return TestClient(app, base_url="http://localhost", raise_server_exceptions=True)


@dataclass(frozen=True)
class Served:
    """A server.

    Attributes:
        url: of its page.
        process: that it is.
        folder: in which it was started; its runs are in `captain` and `keeper`.
    """

    url: str
    process: subprocess.Popen[str]
    folder: Path


@contextmanager
def serve(folder: Path, *arguments: str) -> Iterator[Served]:
    """A server, which is ended afterwards."""
    command = [sys.executable, "-m", "offbook", "serve", *arguments, "--port", "0"]
    environment = os.environ | {"XDG_CACHE_HOME": str(folder / "cache")}
    process = subprocess.Popen(
        [*command, "--threads", "1"],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    assert process.stderr
    said = list[str]()
    # A thread of another name would have each chat template rendered in a child process.
    reader = threading.Thread(
        target=said.extend, args=[process.stderr], name="offbook log", daemon=True
    )
    reader.start()
    line = process.stdout.readline()
    assert line.startswith("page: "), "".join(said)
    try:
        yield Served(line.removeprefix("page: ").strip(), process, folder)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)
        reader.join()
        process.stdout.close()
        process.stderr.close()
        assert process.returncode == 0, "".join(said[-30:])
        assert not [line for line in said if "raceback" in line or "exception" in line]
