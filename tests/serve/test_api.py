"""OpenAI's chat API: what is understood, what is refused, and in which form."""

from __future__ import annotations

import json
from typing import Any

import pytest

pytest.importorskip("starlette", reason="the extra `serve` is not installed")

from offbook.serve.app import MAX_BODY
from offbook.tokens.template import ChatTemplate
from support.serving import ASK, ScriptedEngine, client


@pytest.fixture
def engine(template: ChatTemplate) -> ScriptedEngine:
    return ScriptedEngine(template)


def ask(engine: ScriptedEngine, **changes: Any) -> Any:
    return client(engine).post("/v1/chat/completions", json=ASK | changes)


def test_a_reply_is_sent_at_once(engine: ScriptedEngine) -> None:
    answer = ask(engine).json()
    assert answer["object"] == "chat.completion"
    assert answer["model"] == "captain"
    (choice,) = answer["choices"]
    assert choice["message"] == {"role": "assistant", "content": "Aye, 小船🚢!", "refusal": None}
    assert choice["finish_reason"] == "stop"
    prompt = len(engine.asked[0]["prompt"])
    assert answer["usage"] == {
        "prompt_tokens": prompt,
        "completion_tokens": 4,
        "total_tokens": prompt + 4,
    }


def test_a_reply_is_streamed(engine: ScriptedEngine) -> None:
    answer = ask(engine, stream=True, stream_options={"include_usage": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    *events, last = [line[6:] for line in answer.text.split("\n\n") if line]
    assert last == "[DONE]"
    chunks = [json.loads(event) for event in events]
    assert len({chunk["id"] for chunk in chunks}) == 1
    deltas = [c["choices"][0]["delta"].get("content") for c in chunks if c["choices"]]
    assert deltas == ["", "Aye, ", "小船", "🚢", "!", None]
    assert [c["choices"][0]["finish_reason"] for c in chunks[-2:-1]] == ["stop"]
    assert chunks[-1]["usage"]["completion_tokens"] == 4
    assert "usage" not in ask(engine, stream=True).text


def test_a_reply_that_is_cut_says_so(engine: ScriptedEngine) -> None:
    answer = ask(engine, max_tokens=2).json()
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["choices"][0]["message"]["content"] == "Aye, 小船"
    assert ask(engine, max_completion_tokens=1, max_tokens=4).json()["usage"]["total_tokens"]
    assert engine.asked[-1]["sampling"].max_new_tokens == 1


def test_settings_reach_the_engine(engine: ScriptedEngine) -> None:
    ask(engine, temperature=0, top_p=0.5, top_k=3, seed=7, repetition_penalty=1.5, stop="\n")
    asked = engine.asked[-1]
    assert asked["stop"] == ["\n"]
    assert asked["strengths"] == (1.0, 0.0)
    sampling = asked["sampling"]
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0, 0.5, 3)
    assert (sampling.seed, sampling.repetition_penalty) == (7, 1.5)
    ask(engine, model="keeper", strength=0.5)
    assert engine.asked[-1]["strengths"] == (0.0, 0.5)
    ask(engine, model="base")
    assert engine.asked[-1]["strengths"] == (0.0, 0.0)


def test_the_prompt_is_that_of_training(engine: ScriptedEngine, template: ChatTemplate) -> None:
    from offbook.data.messages import Message

    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    ask(
        engine,
        messages=[
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": parts},
            {"role": "assistant", "content": "three</s>", "refusal": None, "tool_calls": None},
            {"role": "user", "content": "and then"},
        ],
    )
    expected = template.build_prompt(
        [
            Message("system", "Be brief."),
            Message("user", "one\ntwo"),
            Message("assistant", "three</s>"),
            Message("user", "and then"),
        ]
    )
    assert engine.asked[-1]["prompt"] == expected


def test_a_role_has_its_own_system_text(template: ChatTemplate) -> None:
    engine = ScriptedEngine(template, system="You keep the lamp.")
    ask(engine)
    own = engine.asked[-1]["prompt"]
    ask(engine, messages=[{"role": "system", "content": ""}, *ASK["messages"]])
    none = engine.asked[-1]["prompt"]
    ask(engine, messages=[{"role": "system", "content": "You keep the lamp."}, *ASK["messages"]])
    assert engine.asked[-1]["prompt"] == own
    ask(engine, model="base")
    assert engine.asked[-1]["prompt"] == none
    assert len(own) > len(none)


USER = {"role": "user", "content": "hello"}
REFUSED: dict[str, tuple[dict[str, Any], int, str]] = {
    "no such model": ({"model": "nobody"}, 404, "there is no model 'nobody'; there are captain,"),
    "no messages": ({"messages": []}, 400, "messages: List should have at least 1 item"),
    "an unknown key": ({"temprature": 1}, 400, "unknown key 'temprature'"),
    "a key of a message": ({"messages": [USER | {"x": 1}]}, 400, "unknown key 'messages.0.x'"),
    "a role": ({"messages": [{"role": "tool", "content": "x"}]}, 400, "messages.0.role: Input"),
    "two users": ({"messages": [USER, USER]}, 400, "user and assistant take turns"),
    "no user": ({"messages": [{"role": "system", "content": "x"}]}, 400, "take turns"),
    "no question": ({"messages": [{"role": "user", "content": " "}]}, 400, "is empty"),
    "a picture": (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
        400,
        "messages.0.content",
    ),
    "too long": (
        {"messages": [{"role": "user", "content": "one two " * 200}]},
        400,
        "prompt and reply together may have 256",
    ),
    "text for a number": ({"temperature": "0.5"}, 400, "temperature: Input should be a valid"),
    "not a number": ({"top_p": float("nan")}, 400, "top_p: "),
    "a long seed": ({"seed": 2**32}, 400, "seed: Input should be less than 4294967296"),
    "no tokens": ({"max_tokens": 0}, 400, "max_tokens: "),
    "several replies": ({"n": 2}, 400, "n: "),
    "probabilities": ({"logprobs": True}, 400, "logprobs: "),
    "tools": ({"tools": [{"type": "function"}]}, 400, "tools: "),
    "a penalty": ({"presence_penalty": 0.5}, 400, "presence_penalty: "),
    "JSON as a reply": ({"response_format": {"type": "json_object"}}, 400, "response_format"),
    "a strength beyond": ({"strength": 1e9}, 400, "strength: "),
    "a strength of the base": ({"model": "base", "strength": 0.5}, 400, "no adapter"),
    "an empty stop": ({"stop": [""]}, 400, "up to 4 texts"),
    "half a character": (
        {"messages": [{"role": "user", "content": "\ud800"}]},
        400,
        "the body is not JSON: ",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(engine: ScriptedEngine, name: str) -> None:
    changes, status, said = REFUSED[name]
    body = json.dumps(ASK | changes)
    answer = client(engine).post(
        "/v1/chat/completions", content=body, headers={"content-type": "application/json"}
    )
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert said in error["message"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert engine.asked == []


def test_neutral_values_are_accepted(engine: ScriptedEngine) -> None:
    neutral = {
        "n": 1,
        "frequency_penalty": 0,
        "presence_penalty": 0.0,
        "logprobs": False,
        "logit_bias": {},
        "tools": [],
        "tool_choice": "none",
        "response_format": {"type": "text"},
        "user": "me",
        "metadata": {},
        "store": False,
        "seed": None,
        "stop": None,
        "max_tokens": None,
        "stream": None,
    }
    assert ask(engine, **neutral).status_code == 200


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"{", "application/json", 400),
        (b"[" * 100_000, "application/json", 400),
        (b"\xff", "application/json", 400),
        (b"[]", "application/json", 400),
        (b'{"seed": ' + b"9" * 5000 + b"}", "application/json", 400),
        (b'{"\\ud800": 1}', "application/json", 400),
        (json.dumps(ASK).encode(), "text/plain", 415),
        (b" " * (MAX_BODY + 1), "application/json", 413),
    ],
)
def test_bodies_that_are_no_request(
    engine: ScriptedEngine, body: bytes, kind: str, status: int
) -> None:
    answer = client(engine).post(
        "/v1/chat/completions", content=body, headers={"content-type": kind}
    )
    assert answer.status_code == status
    assert answer.json()["error"]["message"]


def test_models_are_listed(engine: ScriptedEngine) -> None:
    models = client(engine).get("/v1/models").json()
    assert [model["id"] for model in models["data"]] == ["captain", "keeper", "base"]
    assert models["data"][0]["object"] == "model"
    assert client(engine).get("/v1/models/base").json()["tuned"] is False
    assert client(engine).get("/v1/models/nobody").status_code == 404


def test_other_paths_and_methods(engine: ScriptedEngine) -> None:
    assert client(engine).get("/v1/chat/completions").status_code == 405
    assert client(engine).get("/nothing").json()["error"]["message"] == "Not Found"
    assert client(engine).get("/../../etc/passwd").status_code == 404
    assert client(engine).get("/health").json() == {"status": "ok"}


def test_metrics_count_and_the_log_has_no_texts(template: ChatTemplate) -> None:
    engine, log = ScriptedEngine(template), list[str]()
    server = client(engine, log=log.append)
    server.post("/v1/chat/completions", json=ASK)
    server.post("/v1/chat/completions", json=ASK | {"model": "no\nbody"})
    metrics = server.get("/metrics").text
    assert 'offbook_requests{model="captain",finish_reason="stop"} 1\n' in metrics
    assert 'offbook_refusals{status="404"} 1\n' in metrics
    assert "offbook_reply_tokens 4\n" in metrics
    assert "offbook_running 0\n" in metrics
    assert len(log) == 2
    assert "captain: 1" in log[0]
    assert "4 of reply" in log[0]
    assert not any(text in line for line in log for text in ("hello", "Aye"))
