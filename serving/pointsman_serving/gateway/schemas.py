"""The OpenAPI entries of the paths that FastAPI never sees, and of bodies it does not decode."""

from __future__ import annotations

from typing import Any

from pointsman_serving.routing.types import Api

_ERROR: dict[str, Any] = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}

REQUIRED = {Api.CHAT: "messages", Api.COMPLETIONS: "prompt", Api.EMBEDDINGS: "input"}
"""The member, beside ``model``, that a body of each API must have."""

_SUMMARIES = {
    Api.CHAT: "Chat completion, whole or as a stream",
    Api.COMPLETIONS: "Text completion, whole or as a stream",
    Api.EMBEDDINGS: "Embeddings, where a pool serves them",
}

_STATUSES = {
    "400": "The body is not valid",
    "404": "Unknown model, or the pools do not serve this endpoint",
    "413": "The body is longer than the gateway's limit",
    "429": "No capacity; see Retry-After",
    "503": "No replica could answer; see Retry-After",
    "504": "No answer in time",
}


def _body(required: list[str]) -> dict[str, Any]:
    schema = {
        "type": "object",
        "required": required,
        "properties": {"model": {"type": "string"}, "stream": {"type": "boolean"}},
        "additionalProperties": True,
    }
    return {"required": True, "content": {"application/json": {"schema": schema}}}


def _operation(api: Api) -> dict[str, Any]:
    answers: dict[str, Any] = {"application/json": {"schema": {"type": "object"}}}
    if api is not Api.EMBEDDINGS:
        answers["text/event-stream"] = {"schema": {"type": "string"}}
    responses: dict[str, Any] = {"200": {"description": "The engine's answer", "content": answers}}
    for status, description in _STATUSES.items():
        content = {"application/json": {"schema": _ERROR}}
        responses[status] = {"description": description, "content": content}
    return {
        "summary": _SUMMARIES[api],
        "operationId": api.value.replace("/", "_"),
        "requestBody": _body(["model", REQUIRED[api]]),
        "responses": responses,
    }


HOT_PATHS: dict[str, Any] = {f"/v1/{api.value}": {"post": _operation(api)} for api in Api}

EXPLAIN: dict[str, Any] = {"requestBody": _body(["model", "messages"])}
