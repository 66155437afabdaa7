"""The server on its address, from its start to its end."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import uvicorn

from offbook.data.saved import format_of
from offbook.errors import ConfigError, first_line
from offbook.inference.model import FoundModel
from offbook.serve.access import make_key
from offbook.serve.app import make_app
from offbook.serve.engine import Engine
from offbook.serve.origin import is_loopback
from offbook.serve.rows import CORRECTIONS
from offbook.signals import handling

CONNECTIONS = 512
SECONDS_TO_END = 5  # for the replies that are being written when the server is stopped


def rows_files(found: Sequence[FoundModel], given: Path | None) -> dict[str, Path]:
    """Where corrected replies of each role go: a file that was named, or one in its run.

    Raises:
        ConfigError: when no row can be added to a file.
    """
    files = {one.path.resolve().name: given or one.path / CORRECTIONS for one in found}
    for path in files.values():
        format_of(path)
    return files


@contextmanager
def listening(host: str, port: int) -> Iterator[socket.socket]:
    """A socket that listens.

    Raises:
        ConfigError: when nothing can listen there.
    """
    where = f"{host}:{port}"
    try:
        (family, _, _, _, address), *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        opened = socket.create_server(address[:2], family=family)
    except (OSError, UnicodeError) as error:
        text = str(getattr(error, "strerror", None) or first_line(error))
        reason = text.partition(" (while")[0]  # Python says at length which address it was
        fix = "choose another --host or --port"
        raise ConfigError(f"cannot listen ({reason})", where=where, fix=fix) from None
    with opened:
        yield opened


def url_of(opened: socket.socket, host: str) -> str:
    """The address of the page, as a browser takes it."""
    address, port = opened.getsockname()[:2]
    name = "localhost" if address == "127.0.0.1" else host
    return f"http://[{name}]:{port}/" if ":" in name else f"http://{name}:{port}/"


def key_for(opened: socket.socket) -> str | None:
    """A new key, where other machines reach the socket."""
    return None if is_loopback(opened.getsockname()[0]) else make_key()


def run_server(
    engine: Engine,
    opened: socket.socket,
    host: str,
    key: str | None,
    rows: Mapping[str, Path],
    ready: Callable[[], None],
    log: Callable[[str], None],
) -> None:
    """Answer until a signal ends it (SIGINT, SIGTERM); a second one ends it at once.

    Args:
        engine: that writes replies.
        opened: where it listens.
        host: the name of that address.
        key: that requests need; None where only this machine reaches it.
        rows: the file to which corrected replies of each role are added.
        ready: called when it answers, and a signal ends it in good order.
        log: receives a line for each request, without its texts.
    """
    logging.getLogger("asyncio").setLevel(logging.ERROR)  # it warns of each client that has left
    app = make_app(engine, rows, key, host if key else None, log)
    config = uvicorn.Config(
        app,
        lifespan="off",
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=CONNECTIONS,
        timeout_graceful_shutdown=SECONDS_TO_END,
    )
    asyncio.run(_Server(config, ready).serve(sockets=[opened]))


class _Server(uvicorn.Server):
    """uvicorn, which says when it is ready, and does not raise a signal again that has ended it."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        with handling(self.handle_exit):
            yield
