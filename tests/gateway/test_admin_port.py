"""What is where once a gateway has an admin port."""

from __future__ import annotations

import asyncio
import contextlib
import socket

import pytest

from pointsman_api.route_table import RouteTable
from pointsman_serving.gateway.server import Gateway, ListenError
from pointsman_serving.gateway.settings import GatewaySettings
from tests.gateway.fake_engine import FakeEngine, gated
from tests.gateway.harness import (
    Answer,
    Client,
    FixedSource,
    address_of,
    ask,
    chat,
    gateway_to,
    post,
    table_of,
    until,
)


async def admin(gateway: Gateway, request: bytes | str) -> Answer:
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.admin_port)
    client = Client(reader, writer)
    try:
        whole = request if isinstance(request, bytes) else _get(request)
        await client.send(whole)
        return await client.answer()
    finally:
        client.close()


def _get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nhost: g\r\n\r\n".encode()


@pytest.mark.parametrize(
    ("path", "public", "inside"),
    [
        ("/status", 404, 200),
        ("/metrics", 404, 200),
        ("/healthz", 200, 200),
        ("/readyz", 200, 200),
        ("/v1/models", 200, 404),
        ("/v1/chat/completions", 405, 405),
        ("/nowhere", 404, 404),
    ],
)
async def test_path_is_on_its_own_port_when_there_is_an_admin_port(
    engine: FakeEngine, path: str, public: int, inside: int
) -> None:
    async with gateway_to(engine, admin_port=0) as gateway:
        found = (await ask(gateway, _get(path))).status, (await admin(gateway, path)).status
    assert (public, inside) == found


async def test_admin_port_serves_no_requests_when_asked_for_some(engine: FakeEngine) -> None:
    async with gateway_to(engine, admin_port=0) as gateway:
        reply = await admin(gateway, post(chat()))
    assert reply.status in (404, 405)
    assert engine.calls == []


async def test_explain_is_on_both_ports_when_there_is_an_admin_port(engine: FakeEngine) -> None:
    request = post(chat(), path="/v1/route/explain")
    async with gateway_to(engine, admin_port=0) as gateway:
        replies = [await ask(gateway, request), await admin(gateway, request)]
    assert ["Chosen", "Chosen"] == [reply.json["outcome"] for reply in replies]


async def test_status_tells_the_open_streams_when_the_gateway_drains(engine: FakeEngine) -> None:
    gate = asyncio.Event()
    engine.behaviour = gated(gate)
    settings = GatewaySettings(port=0, admin_port=0, drain_seconds=10.0)
    gateway = Gateway(settings=settings, table=table_of())
    source = FixedSource({"p": [address_of(engine)]})
    serving = asyncio.ensure_future(gateway.serve([source], signals=False))
    await until(lambda: gateway.listening and bool(gateway.plane.replicas["p"]))
    request = asyncio.ensure_future(ask(gateway, post(chat())))
    await until(lambda: bool(engine.calls))
    port = gateway.port
    gateway.stop()

    async def refused() -> bool:
        with contextlib.suppress(ConnectionError):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.close()
            return False
        return True

    while not await refused():
        await asyncio.sleep(0.01)
    told = (await admin(gateway, "/status")).json
    ready = await admin(gateway, "/readyz")
    gate.set()
    assert 200 == (await request).status
    await asyncio.wait_for(serving, 5)
    assert (True, False) == (told["draining"], told["ready"])
    assert 1 == told["pools"]["p"]["replicas"]["a"]["openStreams"]  # type: ignore[index]
    assert (503, "the gateway is ending") == (ready.status, ready.json["reason"])
    with pytest.raises(RuntimeError, match="no admin port, or is not running"):
        _ = gateway.admin_port


async def test_gateway_does_not_start_when_the_admin_port_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        gateway = Gateway(settings=GatewaySettings(port=0, admin_port=port), table=RouteTable())
        with pytest.raises(ListenError, match=f"cannot listen on 127.0.0.1:{port}"):
            async with gateway.running():
                pass


async def test_gateway_without_a_table_is_ready_when_table_and_replicas_were_told(
    engine: FakeEngine,
) -> None:
    gateway = Gateway(settings=GatewaySettings(port=0, drain_seconds=1.0), table=None)
    async with gateway.running():
        gateway.plane.heard = True
        untold = await ask(gateway, _get("/readyz"))
        gateway.plane.heard = False
        gateway.set_table(RouteTable())
        half = await ask(gateway, _get("/readyz"))
        gateway.plane.heard = True
        empty = await ask(gateway, _get("/readyz"))
        gateway.set_table(table_of())
        held = await ask(gateway, _get("/readyz"))
    assert (503, 503, 200, 200) == (untold.status, half.status, empty.status, held.status)
    assert "nobody has told yet what to route" in str(untold.json["reason"])
    assert "create a ModelPool" in str(empty.json["reason"])


@pytest.mark.parametrize(
    ("ports", "message"),
    [
        ({"admin_port": 70000}, "admin_port is 70000; it must be between 0 and 65535"),
        ({"port": 8080, "admin_port": 8080}, "they must differ"),
    ],
)
def test_settings_are_refused_when_the_admin_port_cannot_be(
    ports: dict[str, int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        GatewaySettings(**ports)  # type: ignore[arg-type]
