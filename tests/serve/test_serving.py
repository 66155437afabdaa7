"""A server in a process of its own: clients, strengths, and clients that leave."""

from __future__ import annotations

import http.client
import json
import socket
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest

from offbook.inference.chat import Chat
from offbook.inference.generate import Sampling
from support.serving import Served

STRENGTHS = [("captain", s) for s in (0.25, 0.5, 1.0, 1.5)] + [
    ("keeper", 0.5),
    ("keeper", 1.0),
    ("keeper", 2.0),
    ("base", 0.0),
]


def question(text: str, model: str = "captain", **changes: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": text}]
    return {"model": model, "messages": messages, "temperature": 0, "max_tokens": 24} | changes


def connect(served: Served, body: dict[str, Any]) -> http.client.HTTPConnection:
    connection = http.client.HTTPConnection(urlsplit(served.url).netloc, timeout=60)
    headers = {"Content-Type": "application/json"}
    connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
    return connection


def ask(served: Served, body: dict[str, Any]) -> str:
    with closing(connect(served, body)) as connection:
        answer = json.load(connection.getresponse())
    return str(answer["choices"][0]["message"]["content"])


def metric(served: Served, name: str) -> float:
    with urllib.request.urlopen(f"{served.url}metrics") as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(f"offbook_{name}"))


def idle(served: Served, seconds: float) -> bool:
    """Whether nothing is written or waits, at the latest after so many seconds."""
    end = time.monotonic() + seconds
    while metric(served, "running") or metric(served, "waiting"):
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def test_replies_are_those_of_pytorch(served: Served) -> None:
    for name in ("captain", "keeper"):
        chat = Chat.open(served.folder / name, Sampling(temperature=0))
        for text in ("who are you", "hello", "one two", "你好 🙂", "</s>"):
            for base, most in ((False, 4), (True, 24)):  # as many as are not nearly random
                chat.reset()
                chat.sampling = Sampling(temperature=0, max_new_tokens=most)
                expected = chat.ask(text, base)
                model = "base" if base else name
                reply = ask(served, question(text, model, max_tokens=most))
                # At the limit, llama.cpp leaves out a token that ends inside a character.
                assert expected.startswith(reply.rstrip("\N{REPLACEMENT CHARACTER}"))
                assert len(reply) >= len(expected) - 2


def test_clients_of_different_strengths_are_all_right(served: Served) -> None:
    """llama.cpp's cache of prompts, and a slot's, would hold what another adapter computed."""
    texts = ("who are you", "hello")
    bodies = [
        question(text, name, **({"strength": strength} if strength else {}))
        for _ in range(3)
        for text in texts
        for name, strength in STRENGTHS
    ]
    alone = [ask(served, body) for body in bodies]
    assert len(set(alone)) == len(texts) * len(STRENGTHS)
    assert alone == alone[: len(set(alone))] * 3
    with ThreadPoolExecutor(8) as clients:
        together = list(clients.map(lambda body: ask(served, body), bodies))
    assert together == alone


def test_a_base_does_not_go_on_with_the_prompt_of_a_role(served: Served) -> None:
    long = "one two three four five six seven eight nine ten " * 8
    fresh = {name: ask(served, question(f"{long} {name}", name)) for name in ("base", "captain")}
    for name in ("captain", "base", "captain", "base"):
        for text in fresh:
            reply = ask(served, question(f"{long} {text}", name))
            if text == name:
                assert reply == fresh[name]


def leave(served: Served, stream: bool) -> None:
    """Begin a reply that never ends, and close the connection while it is written."""
    connection = connect(served, question("hello", max_tokens=15_000, stream=stream))
    if stream:
        answer = connection.getresponse()
        for _ in range(6):
            answer.readline()
    else:
        time.sleep(0.2)
    assert connection.sock
    connection.sock.close()
    connection.close()


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_clients_that_leave_end_their_replies(served: Served, stream: bool) -> None:
    process = psutil.Process(served.process.pid)
    with ThreadPoolExecutor(50) as clients:
        for _ in clients.map(lambda _: leave(served, stream), range(50)):
            pass
        assert idle(served, 1)
        before = process.memory_info().rss
        for _ in clients.map(lambda _: leave(served, stream), range(50)):
            pass
        assert idle(served, 1)
    processor = process.cpu_times()
    time.sleep(0.5)
    after = process.cpu_times()
    assert after.user + after.system - processor.user - processor.system < 0.2
    assert process.memory_info().rss - before < 20e6
    assert len(ask(served, question("hello"))) > 1


def test_a_client_that_leaves_in_its_request_is_no_fault(served: Served) -> None:
    place = urlsplit(served.url)
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n"
    for rest in ("", "Content-Type: application/json\r\n\r\n", "\r\n{"):
        with socket.create_connection((place.hostname or "", place.port or 0)) as connection:
            connection.sendall((head + rest).encode())
            time.sleep(0.05)
    assert idle(served, 1)


def test_the_official_client(served: Served) -> None:
    openai = pytest.importorskip("openai", reason="the client is not installed")
    with openai.OpenAI(base_url=f"{served.url}v1", api_key="none", max_retries=0) as client:
        assert [model.id for model in client.models.list()] == ["captain", "keeper", "base"]
        asked = question("who are you", max_tokens=5)
        whole = client.chat.completions.create(**asked)
        assert whole.choices[0].message.content.startswith("I am the keeper")
        assert whole.usage.completion_tokens == 5
        assert whole.choices[0].finish_reason == "length"
        options = {"stream": True, "stream_options": {"include_usage": True}}
        chunks = list(client.chat.completions.create(**asked, **options))
        text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        assert text == whole.choices[0].message.content
        assert chunks[-1].usage == whole.usage
        # What it gives back can be sent again.
        again = [*asked["messages"], whole.choices[0].message.model_dump()]
        again.append({"role": "user", "content": "hello"})
        client.chat.completions.create(**asked | {"messages": again})
        other = client.chat.completions.create(**asked, extra_body={"strength": 0.25})
        assert other.choices[0].message.content != text
        with pytest.raises(openai.NotFoundError, match="there is no model 'gpt-4'") as caught:
            client.chat.completions.create(**asked | {"model": "gpt-4"})
        assert caught.value.code == "model_not_found"
        with pytest.raises(openai.BadRequestError, match="temperature: Input should be greater"):
            client.chat.completions.create(**asked | {"temperature": -1})
        endless = client.chat.completions.create(**asked | {"max_tokens": 15_000}, stream=True)
        next(endless)
        endless.close()
        assert idle(served, 1)


def test_characters_are_whole_in_any_chunking(served: Served) -> None:
    asked = question("你好", temperature=2, seed=3, max_tokens=200)
    text = ""
    with closing(connect(served, asked | {"stream": True})) as connection:
        for line in connection.getresponse():
            if line.startswith(b"data: {"):
                delta = json.loads(line[6:].decode())["choices"][0]["delta"].get("content", "")
                delta.encode()  # no half of a character
                text += delta
    assert text == ask(served, asked)
    assert any("\u4e00" <= char <= "\u9fff" for char in text)
