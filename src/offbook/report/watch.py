"""The report of a run as a page that follows it, on an address that only this machine reaches.

The files of the run are all that is known of it, so it does not matter which process trains it, or
whether one does. They are read again whole when one has changed: a run that is resumed writes
`metrics.jsonl` again without the lines after its checkpoint, so an offset into it means nothing.
One thread reads and renders; those of requests only pass on what is there.
"""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from markupsafe import Markup

from offbook.errors import ConfigError, OffbookError
from offbook.report.contents import Contents
from offbook.report.page import SECTIONS, parts, policy, whole_page
from offbook.report.rows import TrainingRows, read_rows
from offbook.runs.derived import EVALUATION
from offbook.runs.directory import RunDirectory
from offbook.serve.origin import SAFE_HEADERS, wrong_host, wrong_origin

LOOPBACK = "127.0.0.1"
SECONDS_PER_LOOK = 0.5  # between looks at the files
SHARE_OF_TIME = 0.03  # at most that much is spent on reading and rendering, beside a training
Stamp = tuple[object, ...]


@dataclass
class State:
    """What a live page shows; one thread writes it, others read.

    Attributes:
        parts: the parts of the page.
        changed: the number of the look in which each part changed last.
        look: the number of the last look.
        token: tells this server from an earlier one on the same port.
        title: of the page.
        language: of a reader whose own is neither.
    """

    parts: dict[str, Markup] = field(default_factory=dict)
    changed: dict[str, int] = field(default_factory=dict)
    look: int = 0
    token: str = field(default_factory=lambda: secrets.token_hex(4))
    title: str = ""
    language: str = "en"

    def __post_init__(self) -> None:
        self._lock = threading.Lock()

    def put(self, contents: Contents) -> None:
        """Show these contents from now on."""
        new = parts(contents)
        with self._lock:
            self.look += 1
            self.title, self.language = contents.name, contents.language
            for name, html in new.items():
                if self.parts.get(name) != html:
                    self.changed[name] = self.look
            self.parts = new

    def page(self) -> str:
        """The whole page."""
        with self._lock:
            shown, version, title = self.parts, self._version, self.title
        return whole_page(title, shown, list(SECTIONS), self.language, live=version)

    def since(self, version: str) -> dict[str, object]:
        """The parts that have changed since a version; all for one of another server."""
        token, _, look = version.partition("-")
        with self._lock:
            known = int(look) if token == self.token and look.isdecimal() else -1
            new = {k: str(html) for k, html in self.parts.items() if self.changed[k] > known}
            return {"version": self._version, "parts": new}

    @property
    def _version(self) -> str:
        return f"{self.token}-{self.look}"


class Watcher:
    """Reads the files of a run again when one has changed.

    Args:
        run: that is watched; it need not have begun.
    """

    def __init__(self, run: RunDirectory) -> None:
        self.state = State()
        self._run = run
        self._stamp: Stamp | None = None
        self._rows: TrainingRows | str | None = None
        self._rows_of: Stamp | None = None

    def look(self) -> bool:
        """Look at the files; whether they had changed."""
        stamp = self._stamps("config.yaml", "receipt.json", "metrics.jsonl", EVALUATION, "adapter")
        if stamp == self._stamp:
            return False
        self._stamp = stamp
        self.state.put(self._contents())
        return True

    def follow(self, ended: threading.Event) -> None:
        """Look until it has ended."""
        pause = SECONDS_PER_LOOK
        while not ended.wait(pause):
            started = time.monotonic()
            self.look()
            pause = max(SECONDS_PER_LOOK, (time.monotonic() - started) / SHARE_OF_TIME)

    def _contents(self) -> Contents:
        run = self._run
        if not run.begun:
            return Contents(run, live=True)
        try:
            if (own := self._stamps("config.yaml", "receipt.json")) != self._rows_of:
                self._rows, self._rows_of = read_rows(run), own
            return Contents.read(run, self._rows, live=True)
        except (OffbookError, OSError) as error:  # files may be written or removed meanwhile
            return Contents(run, live=True, problem=str(error))

    def _stamps(self, *names: str) -> Stamp:
        """What changes when one of these files does."""
        found = list[object]()
        for name in names:
            try:
                facts = (self._run.path / name).stat()
                found.append((facts.st_mtime_ns, facts.st_size, facts.st_ino))
            except OSError:
                found.append(None)
        return tuple(found)


class Server(ThreadingHTTPServer):
    """Shows a state, in threads of its own; a context manager.

    Args:
        state: that is shown.
        port: to listen on; 0 for a free one.

    Raises:
        ConfigError: when nothing can listen there.
    """

    def __init__(self, state: State, port: int = 0) -> None:
        self.state = state
        try:
            super().__init__((LOOPBACK, port), _Handler)
        except OSError as error:
            raise ConfigError(
                f"cannot listen ({error.strerror})",
                where=f"{LOOPBACK}:{port}",
                fix="choose another --port, or leave it out",
            ) from None

    @property
    def url(self) -> str:
        return f"http://localhost:{self.server_port}/"

    def __enter__(self) -> Server:
        self._start(self.serve_forever, SECONDS_PER_LOOK / 5)
        return self

    def __exit__(self, *error: object) -> None:
        self.shutdown()
        self.server_close()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread."""
        self._start(self.process_request_thread, request, client_address)

    @staticmethod
    def _start(work: Callable[..., None], *arguments: Any) -> None:
        # A thread of another name would have each chat template rendered in a child process.
        threading.Thread(target=work, args=arguments, name="offbook page", daemon=True).start()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing: a browser that has left is no fault."""


class _Handler(BaseHTTPRequestHandler):
    server_version, sys_version = "offbook", ""
    timeout = 30  # seconds for which a connection may be silent
    server: Server

    def do_GET(self) -> None:
        asked = urlsplit(self.path)
        hosts = self.headers.get_all("Host", [])
        if wrong_host(hosts):
            self._answer(HTTPStatus.MISDIRECTED_REQUEST, "this is not a name of this server")
        elif wrong_origin(hosts, self.headers.get_all("Origin", [])):
            self._answer(HTTPStatus.FORBIDDEN, "other pages may not use this server")
        elif asked.path == "/":
            self._answer(HTTPStatus.OK, self.server.state.page(), "text/html")
        elif asked.path == "/state":
            version = parse_qs(asked.query).get("since", [""])[0]
            state = json.dumps(self.server.state.since(version))
            self._answer(HTTPStatus.OK, state, "application/json")
        else:
            self._answer(HTTPStatus.NOT_FOUND, "there is nothing here")

    def _answer(self, status: HTTPStatus, text: str, kind: str = "text/plain") -> None:
        body = text.encode()
        self.send_response(status)
        headers = SAFE_HEADERS | {
            "Content-Security-Policy": f"{policy(True)}; frame-ancestors 'none'",
            "Content-Type": f"{kind}; charset=utf-8",
            "Content-Length": str(len(body)),
        }
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: only commands print."""
