"""Who may use the server: checks of Host, Origin and key before anything else happens.

Names that are not this machine's are refused, and so are requests of other pages (`origin.py`),
whether there is a key or not.
"""

from __future__ import annotations

import secrets
import socket
from collections.abc import Callable

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from offbook.errors import shorten
from offbook.serve.api import ApiError, to_json
from offbook.serve.metrics import Metrics
from offbook.serve.origin import LOCAL_NAMES, SAFE_HEADERS, wrong_host, wrong_origin

KEY_BYTES = 32
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; require-trusted-types-for 'script'",
    **SAFE_HEADERS,
}


def make_key() -> str:
    """A new key, of 32 random bytes."""
    return secrets.token_urlsafe(KEY_BYTES)


class Access:
    """Refuses requests that are not a user's own, and adds the headers of all answers.

    Args:
        app: behind it.
        public: paths that need no key: the page, which has no data in it.
        key: that the others need; None where there is none.
        name: by which the server may be found besides the local names; None where only they may.
        log: receives a line for each request that is refused.
        metrics: where they are counted.
    """

    def __init__(
        self,
        app: ASGIApp,
        public: frozenset[str],
        key: str | None,
        name: str | None,
        log: Callable[[str], None],
        metrics: Metrics,
    ) -> None:
        self._app, self._public, self._key = app, public, key
        self._log, self._metrics = log, metrics
        self._on_network = name is not None
        self._names = LOCAL_NAMES | (
            {name.lower(), socket.gethostname().lower()} if name else set()
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or let the app answer."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                extra = [(k.lower().encode(), v.encode()) for k, v in HEADERS.items()]
                message["headers"] = [*message["headers"], *extra]
            await send(message)

        if scope["type"] != "http":
            return  # there is nothing else
        if (error := self._refusal(scope)) is None:
            await self._app(scope, receive, send_with_headers)
            return
        self._metrics.add("refusals", status=str(error.status))
        self._log(f"{scope['method']} {shorten(scope['path'])} {error.status} {error.code}")
        headers = {"WWW-Authenticate": "Bearer"} if error.status == 401 else None
        answer = Response(to_json(error.body()), error.status, headers, "application/json")
        await answer(scope, receive, send_with_headers)

    def _refusal(self, scope: Scope) -> ApiError | None:
        given: dict[bytes, list[bytes]] = {}
        for name, value in scope["headers"]:
            given.setdefault(name, []).append(value)
        hosts = [value.decode("latin-1") for value in given.get(b"host", [])]
        origins = [value.decode("latin-1") for value in given.get(b"origin", [])]
        if wrong_host(hosts, self._names, any_address=self._on_network):
            return ApiError("this is not a name of this server", 421, "wrong_host")
        if wrong_origin(hosts, origins):
            return ApiError("other pages may not use this server", 403, "wrong_origin")
        if self._key is None or scope["path"] in self._public:
            return None
        expected = f"Bearer {self._key}".encode()
        keys = given.get(b"authorization", [])
        if len(keys) == 1 and secrets.compare_digest(keys[0], expected):
            return None
        return ApiError("wrong API key, or none", 401, "invalid_api_key")
