"""A stand-in for the Hugging Face hub: the few requests that snapshot_download makes."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote

COMMIT = "c0ffee" + "0" * 34
PULL_COMMIT = "decade" + "0" * 34

Files = dict[str, bytes]


class Hub(ThreadingHTTPServer):
    """Serves repositories from memory, each of one commit on the branch `main`.

    `owner/name@refs/pr/1` are the files of a pull request by the hub's converter.

    Attributes:
        repos: the files of each repository, under `datasets/owner/name` or `models/owner/name`.
        requests_seen: `METHOD /path` of every request.
    """

    daemon_threads = True

    def __init__(self, repos: dict[str, Files]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos = repos
        self.requests_seen: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def run(self, code: str, home: Path) -> subprocess.CompletedProcess[str]:
        """Run Python with this as its hub and `home` as its cache.

        A process of its own, because huggingface_hub reads its settings when it is imported.
        """
        # Nor may a token, another cache or a proxy of the machine's owner play a part.
        strange = ("HF_", "HUGGING", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
        env = {k: v for k, v in os.environ.items() if not k.upper().startswith(strange)}
        env |= {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }
        command = [sys.executable, "-c", code]
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)


@contextmanager
def serving(repos: dict[str, Files]) -> Iterator[Hub]:
    """A running hub, shut down at the end."""
    with Hub(repos) as hub:
        thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = self.path.partition("?")[0]
        self.server.requests_seen.append(f"{self.command} {path}")
        error = "RepoNotFound"
        for key, files in self.server.repos.items():
            repo, _, pull = key.partition("@")
            commit, revision = (PULL_COMMIT, quote(pull, safe="")) if pull else (COMMIT, "main")
            if path == f"/api/{repo}/revision/{revision}":
                return self._json({"id": repo.partition("/")[2], "sha": commit, "siblings": []})
            if path == f"/api/{repo}/tree/{commit}":
                return self._json([_entry(name, files[name]) for name in files])
            if path == f"/api/{repo}/discussions":
                pulls = [_pull_request(repo)] * any(
                    k.startswith(f"{repo}@") for k in self.server.repos
                )
                return self._json({"count": len(pulls), "start": 0, "discussions": pulls})
            # Files of a model stand at the root, those of a data set under /datasets/.
            name = path.removeprefix(f"/{repo.removeprefix('models/')}/resolve/{commit}/")
            if name in files:
                return self._send(200, files[name], ETag=f'"{_oid(files[name])}"')
            if path.startswith(f"/api/{repo}/"):
                error = "RevisionNotFound"
        return self._send(404, b"{}", **{"X-Error-Code": error})

    def _json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode())

    def _send(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"X-Repo-Commit": self._commit(), **headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _commit(self) -> str:
        return PULL_COMMIT if PULL_COMMIT in self.path else COMMIT

    def log_message(self, *args: object) -> None:
        """Say nothing."""


def _entry(name: str, content: bytes) -> dict[str, object]:
    return {"type": "file", "path": name, "size": len(content), "oid": _oid(content)}


def _pull_request(repo: str) -> dict[str, object]:
    return {
        "title": "Adding `safetensors` variant of this model",
        "num": 1,
        "author": {"name": "SFconvertbot"},
        "createdAt": "2024-01-01T00:00:00.000Z",
        "status": "open",
        "repo": {"name": repo.partition("/")[2], "type": "model"},
        "isPullRequest": True,
    }


def _oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
