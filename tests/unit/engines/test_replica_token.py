"""Who is served by a replica that has a token."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pointsman_serving.engines.front import ReplicaFront
from pointsman_serving.engines.identity import ReplicaIdentity
from pointsman_serving.engines.open_requests import busy_processes

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

TOKEN = (b"x-pointsman-token", b"s3cret")


def replica(folder: Path, served: list[str], **environment: str) -> ASGIApp:
    async def engine(scope: Scope, receive: Receive, send: Send) -> None:
        served.append(scope["type"] if scope["type"] != "http" else scope["path"])
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"tokens"})

    front = ReplicaFront.of({"POINTSMAN_RUN_DIR": str(folder), **environment})
    return front.before(engine, ReplicaIdentity.new("revision"))


async def ask(
    app: ASGIApp, path: str, *headers: tuple[bytes, bytes], kind: str = "http", root: str = ""
) -> list[Message]:
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    scope: dict[str, Any] = {"type": kind, "path": path, "root_path": root, "headers": [*headers]}
    await app(scope, receive, send)
    return sent


@pytest.mark.parametrize(
    "headers",
    [
        (),
        ((b"x-pointsman-token", b""),),
        ((b"x-pointsman-token", b"s3cre"),),
        ((b"x-pointsman-token", b"s3cret2"),),
        ((b"authorization", b"Bearer s3cret"),),
    ],
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/models", "/health/x", "/"])
async def test_request_is_401_and_unserved_when_it_lacks_the_token(
    tmp_path: Path, path: str, headers: tuple[tuple[bytes, bytes], ...]
) -> None:
    served: list[str] = []
    app = replica(tmp_path, served, POINTSMAN_REPLICA_TOKEN="s3cret")
    start, body = await ask(app, path, *headers)
    error = json.loads(body["body"])["error"]
    assert (401, "replica_token_required", []) == (start["status"], error["code"], served)
    assert "x-pointsman-token" in error["message"]
    assert "gateway" in error["message"]
    assert "s3cret" not in body["body"].decode()


async def test_request_is_served_when_it_bears_the_token(tmp_path: Path) -> None:
    served: list[str] = []
    app = replica(tmp_path, served, POINTSMAN_REPLICA_TOKEN=" s3cret\n")
    start, _ = await ask(app, "/v1/chat/completions", TOKEN)
    assert (200, ["/v1/chat/completions"]) == (start["status"], served)


@pytest.mark.parametrize("path", ["/health", "/-/healthz", "/metrics"])
@pytest.mark.parametrize("root", ["", "/pool"])
async def test_probe_is_served_when_it_has_no_token(tmp_path: Path, path: str, root: str) -> None:
    served: list[str] = []
    app = replica(tmp_path, served, POINTSMAN_REPLICA_TOKEN="s3cret")
    start, _ = await ask(app, root + path, root=root)
    assert (200, [root + path]) == (start["status"], served)
    # Below a prefix that is not the replica's own, it is no probe.
    start, _ = await ask(app, "/other" + path, root=root)
    assert 401 == start["status"]


async def test_websocket_is_closed_when_it_lacks_the_token(tmp_path: Path) -> None:
    served: list[str] = []
    app = replica(tmp_path, served, POINTSMAN_REPLICA_TOKEN="s3cret")
    sent = await ask(app, "/v1/realtime", kind="websocket")
    await ask(app, "/health", kind="websocket")
    assert ([{"type": "websocket.close", "code": 1008}], []) == (sent, served)
    await ask(app, "/v1/realtime", TOKEN, kind="websocket")
    assert ["websocket"] == served


async def test_lifespan_passes_when_there_is_a_token(tmp_path: Path) -> None:
    served: list[str] = []
    app = replica(tmp_path, served, POINTSMAN_REPLICA_TOKEN="s3cret")
    await app({"type": "lifespan"}, None, None)  # type: ignore[arg-type]
    assert ["lifespan"] == served


async def test_everybody_is_served_when_no_token_is_set(tmp_path: Path) -> None:
    served: list[str] = []
    app = replica(tmp_path, served)
    assert 200 == (await ask(app, "/v1/models"))[0]["status"]


def test_replica_does_not_start_when_its_token_is_empty(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="POINTSMAN_REPLICA_TOKEN is set and empty"):
        replica(tmp_path, [], POINTSMAN_REPLICA_TOKEN=" ")


async def test_refused_request_counts_as_open_to_nobody_when_it_lacks_the_token(
    tmp_path: Path,
) -> None:
    app = replica(tmp_path, [], POINTSMAN_REPLICA_TOKEN="s3cret")
    await ask(app, "/v1/models")
    assert not (tmp_path / "open").exists()
    await ask(app, "/v1/models", TOKEN)
    assert [] == busy_processes(tmp_path / "open")
