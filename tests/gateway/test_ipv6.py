"""A gateway and replicas in clusters of IPv6, alone or beside IPv4."""

from __future__ import annotations

import asyncio

import pytest

from pointsman_serving.cli.gateway import _every_address
from pointsman_serving.gateway.server import Gateway, ListenError, listen
from pointsman_serving.gateway.settings import GatewaySettings
from tests.gateway.fake_engine import FakeEngine
from tests.gateway.fake_kube import FakeKube
from tests.gateway.harness import (
    Answer,
    Client,
    FixedSource,
    address_of,
    chat,
    post,
    table_of,
    until,
)
from tests.gateway.harness import ask as ask_gateway
from tests.gateway.test_kubernetes_source import TOKEN, endpoints, served
from tests.machine import needs_ipv6


@pytest.fixture(autouse=True)
def ipv6() -> None:
    needs_ipv6()


async def ask(host: str, port: int, request: bytes) -> Answer:
    client = Client(*await asyncio.open_connection(host, port))
    try:
        await client.send(request)
        return await client.answer()
    finally:
        client.close()


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_both_ports_answer_in_both_families_when_it_listens_everywhere(
    engine: FakeEngine, host: str
) -> None:
    assert "::" == _every_address()
    settings = GatewaySettings(host=_every_address(), port=0, admin_port=0, drain_seconds=1.0)
    gateway = Gateway(settings=settings, table=table_of())
    async with gateway.running([FixedSource({"p": [address_of(engine)]})]):
        await until(lambda: gateway.plane.ready)
        reply = await ask(host, gateway.port, post(chat()))
        probe = await ask(host, gateway.admin_port, b"GET /readyz HTTP/1.1\r\nhost: g\r\n\r\n")
    assert (200, 200) == (reply.status, probe.status)


async def test_replica_is_reached_and_kept_when_its_address_is_of_version_six() -> None:
    async with FakeEngine(host="::1").running() as engine:
        kube = FakeKube()
        kube.put_table(table_of())
        kube.put_secret(**TOKEN)
        kube.put_endpoints(endpoints(engine))
        async with served(kube) as running:
            assert 200 == (await ask_gateway(running.gateway, post(chat()))).status
            assert f"[::1]:{engine.port}" == engine.calls[0].headers["host"]
            kube.remove("EndpointSlice")
            await until(lambda: len(engine.probes) >= 4, seconds=20)
            assert ["a"] == running.replicas
            assert f"[::1]:{engine.port}" == engine.probes[0].headers["host"]


async def test_url_can_be_used_when_it_listens_on_an_address_of_version_six() -> None:
    gateway = Gateway(settings=GatewaySettings(host="::1", port=0), table=table_of())
    async with gateway.running():
        assert f"http://[::1]:{gateway.port}" == gateway.url
        with pytest.raises(ListenError, match=rf"cannot listen on \[::1\]:{gateway.port} "):
            listen("::1", gateway.port)
