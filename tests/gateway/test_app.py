"""Every path that is not hot."""

from __future__ import annotations

import socket

import pytest
from fastapi.routing import APIRoute

from pointsman_api.route_table import RouteTable
from pointsman_serving.gateway.app import create_app
from pointsman_serving.gateway.hot import HOT_PATHS
from pointsman_serving.gateway.schemas import HOT_PATHS as DOCUMENTED
from pointsman_serving.gateway.server import Gateway, ListenError
from pointsman_serving.gateway.settings import GatewaySettings
from pointsman_serving.routing.types import Api
from tests.gateway.fake_engine import FakeEngine
from tests.gateway.harness import Answer, address_of, ask, chat, gateway_to, post, table_of


async def get(gateway: Gateway, path: str, method: str = "GET") -> Answer:
    return await ask(gateway, f"{method} {path} HTTP/1.1\r\nhost: g\r\n\r\n".encode())


async def test_models_lists_the_routes_when_asked(engine: FakeEngine) -> None:
    async with gateway_to(engine) as gateway:
        reply = await get(gateway, "/v1/models")
        one = await get(gateway, "/v1/models/m")
        none = await get(gateway, "/v1/models/org/none")
    assert reply.json["object"] == "list"
    assert [(m["id"], m["object"], m["owned_by"]) for m in reply.json["data"]] == [  # type: ignore[attr-defined]
        ("m", "model", "pointsman")
    ]
    assert one.json["id"] == "m"
    assert (none.status, none.error["code"]) == (404, "model_not_found")


async def test_explain_returns_every_candidate_when_nothing_is_sent(
    engine: FakeEngine, other: FakeEngine
) -> None:
    async with gateway_to(engine, other) as gateway:
        reply = await ask(gateway, post(chat(), path="/v1/route/explain"))
        assert engine.calls == other.calls == []
        routed = await ask(gateway, post(chat()))
    assert reply.json["outcome"] == "Chosen"
    assert {c["replica"] for c in reply.json["candidates"]} == {"a", "b"}  # type: ignore[attr-defined]
    winner = reply.json["winner"]
    assert {"pool", "replica", "quality", "predicted_ttft_seconds", "score"} <= set(winner)  # type: ignore[call-overload]
    # Explain's winner is where the same request then goes.
    assert winner["replica"] == routed.headers["x-pointsman-replica"]  # type: ignore[index]
    assert str(reply.json["reason"])


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"{", 400, "invalid_json"),
        (b"{}", 400, "invalid_model"),
        (b'{"model":"nobody"}', 404, "model_not_found"),
        (b'{"model":"m","x":"' + b"x" * 3000 + b'"}', 413, "request_too_large"),
    ],
)
async def test_explain_says_what_is_wrong_when_the_body_is(
    engine: FakeEngine, body: bytes, status: int, code: str
) -> None:
    async with gateway_to(engine, max_body_bytes=2000) as gateway:
        reply = await ask(gateway, post(body, path="/v1/route/explain"))
    assert (reply.status, reply.error["code"]) == (status, code)


async def test_ready_follows_the_replicas_when_they_come_and_go(engine: FakeEngine) -> None:
    gateway = Gateway(settings=GatewaySettings(port=0, drain_seconds=1.0), table=table_of())
    async with gateway.running():
        before = await get(gateway, "/readyz")
        told = [await get(gateway, "/status")]
        gateway.plane.set_replicas("p", [])
        cold = await get(gateway, "/readyz")
        told.append(await get(gateway, "/status"))
        gateway.plane.set_replicas("p", [address_of(engine)])
        after = await get(gateway, "/readyz")
        told.append(await get(gateway, "/status"))
        assert (await get(gateway, "/healthz")).status == 200
    assert (before.status, before.json["reason"]) == (
        503,
        "nobody has told yet which replicas there are",
    )
    assert [False, True, True] == [reply.json["ready"] for reply in told]
    # Who asks then is what wakes a pool at zero.
    assert (cold.status, cold.json["models"]) == (200, {"m": False})
    assert after.status == 200
    assert after.json["pools"] == {"p": {"replicas": 1}}
    assert after.json["models"] == {"m": True}


async def test_ready_says_so_when_the_table_is_empty() -> None:
    async with gateway_to(table=RouteTable()) as gateway:
        reply = await get(gateway, "/readyz")
    assert (reply.status, reply.json["reason"]) == (
        503,
        "the route table has no routes: create a ModelPool",
    )


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nowhere", 404, "not_found"),
        ("GET", "/docs", 404, "not_found"),
        ("GET", "/openapi.json", 404, "not_found"),
        ("POST", "/v1/chat/completions/", 404, "not_found"),
        ("GET", "/v1/chat/completions", 405, "method_not_allowed"),
        ("DELETE", "/v1/models", 405, "method_not_allowed"),
    ],
)
async def test_unknown_is_an_openai_error_when_asked(
    engine: FakeEngine, method: str, path: str, status: int, code: str
) -> None:
    async with gateway_to(engine) as gateway:
        reply = await get(gateway, path, method)
    assert (reply.status, reply.error["code"]) == (status, code)


async def test_docs_list_every_path_when_they_are_on(engine: FakeEngine) -> None:
    async with gateway_to(engine, docs=True) as gateway:
        document = (await get(gateway, "/openapi.json")).json
        app = create_app(gateway.plane)
    served = {route.path for route in app.routes if isinstance(route, APIRoute)}
    served = {path.replace(":path", "") for path in served}
    hot = {path.decode() for path in HOT_PATHS}
    assert set(document["paths"]) == served | hot  # type: ignore[call-overload]
    assert set(DOCUMENTED) == hot == {f"/v1/{api.value}" for api in Api}


async def test_table_is_in_force_at_once_when_it_is_replaced(engine: FakeEngine) -> None:
    async with gateway_to(engine) as gateway:
        old = gateway.plane.config_hash
        gateway.set_table(table_of(model="renamed"))
        assert gateway.plane.config_hash != old
        assert (await ask(gateway, post(chat("m")))).status == 404
        assert (await ask(gateway, post(chat("renamed")))).status == 200


async def test_listen_fails_at_once_when_the_port_is_taken() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        gateway = Gateway(settings=GatewaySettings(port=port), table=RouteTable())
        with pytest.raises(ListenError, match=f"cannot listen on 127.0.0.1:{port}"):
            async with gateway.running():
                pass


@pytest.mark.parametrize("path", ["/v1/models", "/healthz", "/nowhere", "/v1/models/none"])
async def test_request_id_is_echoed_when_the_path_is_not_hot(engine: FakeEngine, path: str) -> None:
    async with gateway_to(engine) as gateway:
        request = f"GET {path} HTTP/1.1\r\nhost: g\r\nx-request-id: mine-3\r\n\r\n"
        assert (await ask(gateway, request.encode())).headers["x-request-id"] == "mine-3"
        assert len((await get(gateway, path)).headers["x-request-id"]) == 32


@pytest.mark.parametrize("body", [chat(), chat("nobody")])
async def test_request_id_is_echoed_once_when_a_request_is_explained(
    engine: FakeEngine, body: dict[str, object]
) -> None:
    async with gateway_to(engine) as gateway:
        request = post(body, "x-request-id: mine-4", path="/v1/route/explain")
        reply = await ask(gateway, request)
    assert [line for line in reply.lines if line.startswith("x-request-id")] == [
        "x-request-id: mine-4"
    ]
