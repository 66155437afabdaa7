"""Thousands of requests, right and wrong, as schemathesis makes them: none is a fault of ours."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from offbook.serve.api import ChatRequest
from offbook.serve.rows import RowRequest
from support.serving import Served

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")

ANY = {"responses": {"default": {"description": "anything but a fault"}}}


def body(kind: Any) -> dict[str, Any]:
    schema = kind.model_json_schema(ref_template="#/components/schemas/{model}")
    return {"required": True, "content": {"application/json": {"schema": schema}}}


def document() -> dict[str, Any]:
    """An OpenAPI document of the server."""
    parts: dict[str, Any] = {}
    bodies = {"/v1/chat/completions": body(ChatRequest), "/rows": body(RowRequest)}
    for one in bodies.values():
        schema = one["content"]["application/json"]["schema"]
        parts |= schema.pop("$defs")
    asked = bodies["/v1/chat/completions"]["content"]["application/json"]["schema"]["properties"]
    asked["model"] = {"enum": ["captain", "keeper", "base", "nobody"]}
    asked["max_tokens"] = {"type": "integer", "minimum": 0, "maximum": 8}
    named = {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}
    paths: dict[str, Any] = {
        path: {"post": {"requestBody": content, **ANY}} for path, content in bodies.items()
    }
    paths |= {path: {"get": ANY} for path in ("/v1/models", "/metrics", "/health", "/")}
    paths["/v1/models/{name}"] = {"get": {"parameters": [named], **ANY}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "offbook", "version": "1"},
        "paths": paths,
        "components": {"schemas": parts},
    }


api = schemathesis.openapi.from_dict(document())


@pytest.mark.slow
@pytest.mark.timeout(1200)
@api.parametrize()
@settings(max_examples=700, deadline=None, suppress_health_check=list(HealthCheck))
def test_no_request_is_a_fault(served: Served, case: Any) -> None:
    answer = case.call(base_url=served.url.rstrip("/"))
    assert answer.status_code < 500, answer.text
