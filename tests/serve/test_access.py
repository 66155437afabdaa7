"""Nobody but the user gets in: Host x Origin x key x address."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from anyio.from_thread import start_blocking_portal

pytest.importorskip("starlette", reason="the extra `serve` is not installed")

from offbook.serve.access import make_key
from offbook.tokens.template import ChatTemplate
from support.serving import ASK, ScriptedEngine, client

# Of each, which are a user's own: on this machine alone, and on a network.
HOSTS = {
    "localhost": (True, True),
    "localhost:8765": (True, True),
    "127.0.0.1:8765": (True, True),
    "[::1]:8765": (True, True),
    "LOCALHOST": (True, True),
    "127.0.0.5": (True, True),
    "192.168.1.5:8765": (False, True),
    "[fe80::1]": (False, True),
    "lamp.example": (False, True),  # as the server was told to be called
    "evil.example": (False, False),
    "localhost.evil.example": (False, False),
    "127.0.0.1.evil.example": (False, False),
    "localhost.": (False, False),
    "localhost@evil.example": (False, False),
    "localhost:8765:1": (False, False),
    "evil.example#localhost": (False, False),
    "": (False, False),
    "::1": (False, False),
}
ORIGINS = {
    None: True,
    "http://{host}": True,
    "https://{host}": True,
    "http://evil.example": False,
    "null": False,
    "": False,
    "http://{host}.evil.example": False,
    "http://{host}:1": False,
    "file://{host}": False,
    "{host}": False,
}
KEY = make_key()
KEYS = {
    None: False,
    f"Bearer {KEY}": True,
    "Bearer ": False,
    "Bearer": False,
    KEY: False,
    f"bearer {KEY}": False,
    f"Bearer {KEY}x": False,
    f"Bearer {KEY[:-1]}": False,
    f"Bearer {KEY.swapcase()}": False,
    "Basic dXNlcg==": False,
}


@pytest.mark.parametrize("network", [False, True], ids=["loopback", "network"])
def test_no_way_in(template: ChatTemplate, network: bool) -> None:
    engine = ScriptedEngine(template)
    options = {"key": KEY, "name": "lamp.example"} if network else {}
    passed = 0
    server = client(engine, **options)
    # All in one event loop, as in a server: a slot is freed in the loop that took it.
    with start_blocking_portal() as server.portal:
        for (host, allowed), (origin, same), (key, right) in itertools.product(
            HOSTS.items(), ORIGINS.items(), KEYS.items()
        ):
            headers = {"host": host}
            if origin is not None:
                headers["origin"] = origin.format(host=host.lower())
            if key is not None:
                headers["authorization"] = key
            expected = allowed[network] and same and (right or not network)
            asked = len(engine.asked)
            answer = server.post("/v1/chat/completions", json=ASK, headers=headers)
            assert (answer.status_code == 200) == expected, (headers, answer.text)
            assert len(engine.asked) - asked == expected
            if not expected:
                assert answer.status_code in (401, 403, 421)
            passed += expected
    assert passed


@pytest.mark.parametrize(
    "path", ["/v1/models", "/v1/models/base", "/metrics", "/rows", "/v1/chat/completions"]
)
def test_all_that_tells_something_needs_the_key(template: ChatTemplate, path: str) -> None:
    server = client(ScriptedEngine(template), key=KEY, name="localhost")
    for method in ("GET", "POST", "OPTIONS", "HEAD", "PUT"):
        assert server.request(method, path).status_code == 401
    assert server.get(path.upper()).status_code == 401
    for public in ("/", "/page.js", "/page.css", "/health"):
        assert server.get(public).status_code == 200


def test_no_page_may_read_an_answer(template: ChatTemplate) -> None:
    server = client(ScriptedEngine(template))
    for path in ("/", "/v1/models", "/nothing", "/health"):
        headers = server.get(path).headers
        assert "access-control-allow-origin" not in headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cross-origin-resource-policy"] == "same-origin"
    preflight = {"origin": "http://evil.example", "access-control-request-method": "POST"}
    assert server.options("/v1/chat/completions", headers=preflight).status_code == 403


def test_refusals_are_counted(template: ChatTemplate) -> None:
    server = client(ScriptedEngine(template), key=KEY, name="localhost")
    right = {"authorization": f"Bearer {KEY}"}
    server.get("/v1/models")
    server.get("/v1/models", headers=right | {"host": "evil.example"})
    server.get("/v1/models", headers=right | {"origin": "http://evil.example"})
    server.get("/v1/models/nobody", headers=right)
    metrics = server.get("/metrics", headers=right).text
    for status in (401, 403, 404, 421):
        assert f'offbook_refusals{{status="{status}"}} 1\n' in metrics


def test_two_hosts_are_refused(template: ChatTemplate) -> None:
    server = client(ScriptedEngine(template))
    twice = [("host", "localhost"), ("host", "localhost")]
    assert server.get("/v1/models", headers=twice).status_code == 421


def test_a_row_needs_a_page_of_our_own(template: ChatTemplate, tmp_path: Path) -> None:
    server = client(ScriptedEngine(template), tmp_path / "rows.jsonl")
    row = {"model": "captain", "messages": [{"role": "user", "content": "a"}]}
    for headers in ({"origin": "http://evil.example"}, {"content-type": "text/plain"}):
        assert server.post("/rows", json=row, headers=headers).status_code in (403, 415)
    assert not (tmp_path / "rows.jsonl").exists()
