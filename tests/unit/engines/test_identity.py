"""The headers that tell replicas and their restarts apart."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from pointsman_api.modelpool import EngineType, ExpertsImplementation
from pointsman_api.route_table import PrefixIndex
from pointsman_serving.engines.identity import IdentityHeaders, ReplicaIdentity
from pointsman_serving.engines.options import ReplicaOptions
from pointsman_serving.engines.revision import token_revision

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.types import ASGIApp, Message

OPTIONS = ReplicaOptions(
    pool="pool",
    engine=EngineType.VLLM,
    served_model_name="name",
    model_path="org/model",
    context_tokens=2048,
    arguments=("--revision=abc", "--dtype=float32"),
)


async def ask(
    app: ASGIApp, path: str, headers: dict[bytes, bytes] | None = None
) -> tuple[int, dict[bytes, bytes], bytes]:
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": path, "headers": [*(headers or {}).items()]}
    await app(scope, receive, send)
    body = b"".join(message.get("body", b"") for message in sent)
    return sent[0]["status"], dict(sent[0]["headers"]), body


def app_that_counts(served: list[str]) -> ASGIApp:
    async def home(request: Request) -> PlainTextResponse:
        served.append(request.url.path)
        return PlainTextResponse("hello")

    return Starlette(routes=[Route("/", home)])


@pytest.mark.parametrize(("path", "status"), [("/", 200), ("/nowhere", 404)])
async def test_every_reply_names_the_replica_when_it_is_an_error_too(
    path: str, status: int
) -> None:
    identity = ReplicaIdentity(revision="r" * 16, instance="i" * 16)
    answered, headers, _ = await ask(IdentityHeaders(app_that_counts([]), identity), path)
    assert (status, b"i" * 16, b"r" * 16) == (
        answered,
        headers[b"x-pointsman-instance"],
        headers[b"x-pointsman-revision"],
    )


async def test_request_is_refused_unserved_when_it_wants_another_revision() -> None:
    served: list[str] = []
    identity = ReplicaIdentity.new("0123456789abcdef")
    app = IdentityHeaders(app_that_counts(served), identity)
    status, headers, body = await ask(app, "/", {b"x-pointsman-revision": b"another"})
    error = json.loads(body)["error"]
    assert (409, [], identity.instance) == (
        status,
        served,
        headers[b"x-pointsman-instance"].decode(),
    )
    assert ("revision_mismatch", "ConflictError") == (error["code"], error["type"])
    assert "'another'" in error["message"]
    assert "0123456789abcdef" in error["message"]
    status, _, _ = await ask(app, "/", {b"x-pointsman-revision": b"0123456789abcdef"})
    assert (200, ["/"]) == (status, served)


def test_instance_is_new_when_an_engine_starts() -> None:
    first, second = ReplicaIdentity.new("r"), ReplicaIdentity.new("r")
    assert first.instance != second.instance
    assert 16 == len(bytes.fromhex(first.instance)) * 2


@pytest.mark.parametrize(
    "change",
    [
        {"engine": EngineType.TRANSFORMERS},
        {"model_path": "org/other"},
        {"context_tokens": 4096},
        {"experts": ExpertsImplementation.POINTSMAN},
        {"arguments": ("--revision=def", "--dtype=float32")},
    ],
)
def test_revision_differs_when_the_tokens_would(change: dict[str, Any]) -> None:
    assert token_revision(OPTIONS) != token_revision(replace(OPTIONS, **change))


def test_revision_differs_when_the_environment_does() -> None:
    assert token_revision(OPTIONS) != token_revision(OPTIONS, env={"A": "b"})
    assert token_revision(OPTIONS, env={"A": "b", "C": "d"}) == token_revision(
        OPTIONS, env={"C": "d", "A": "b"}
    )


@pytest.mark.parametrize(
    "change",
    [
        {"pool": "other"},
        {"served_model_name": "other"},
        {"max_sequences": 8},
        {"prefix_index": PrefixIndex.EVENTS},
    ],
)
def test_revision_is_the_same_when_the_tokens_are(change: dict[str, Any]) -> None:
    assert token_revision(OPTIONS) == token_revision(replace(OPTIONS, **change))


def test_revision_differs_when_a_simulated_model_has_another_name() -> None:
    simulated = replace(OPTIONS, engine=EngineType.SIMULATED, model_path="")
    assert token_revision(simulated) != token_revision(replace(simulated, served_model_name="b"))
