"""Which replicas get a token, and whose."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import pytest
from structlog.testing import capture_logs

from pointsman_api.route_table import BackendType, ExternalEndpoint, PoolEntry, RouteTable
from pointsman_serving.gateway.credentials import CredentialError
from pointsman_serving.gateway.replica_tokens import ReplicaTokens
from pointsman_serving.gateway.server import Gateway
from pointsman_serving.gateway.settings import GatewaySettings
from pointsman_serving.gateway.upstream import Upstreams
from tests.gateway.fake_engine import FakeEngine, status, stream_then_reset
from tests.gateway.harness import FixedSource, address_of, ask, chat, post, table_of, until


@dataclass
class FakeSecrets:
    """The tokens by pool; ``broken``: pools whose token cannot be used."""

    tokens: dict[str, str] = field(default_factory=dict)
    broken: set[str] = field(default_factory=set)

    def key(self, pool: PoolEntry) -> str | None:
        return None

    def token(self, pool: PoolEntry) -> str | None:
        if pool.name in self.broken:
            raise CredentialError(f"pool {pool.name}: bad token")
        return self.tokens.get(pool.name)


def gateway_with(secrets: FakeSecrets, table: RouteTable | None = None) -> Gateway:
    settings = GatewaySettings(port=0, drain_seconds=1.0, silence_seconds=0.3, probe_seconds=0.3)
    return Gateway(settings=settings, table=table or table_of(), credentials=secrets)


def entry(backend: BackendType = BackendType.RAY_SERVE) -> PoolEntry:
    return PoolEntry(name="p", served_model_name="served", backend=backend)


async def test_replica_gets_its_pools_token_and_never_the_clients_when_it_is_asked(
    engine: FakeEngine,
) -> None:
    gateway = gateway_with(FakeSecrets({"p": "t0ken", "q": "other"}))
    async with gateway.running([FixedSource({"p": [address_of(engine)]})]):
        await until(lambda: bool(gateway.plane.replicas["p"]))
        for header in ("x-other: 1", "x-pointsman-token: forged", "X-Pointsman-Token: forged"):
            assert 200 == (await ask(gateway, post(chat(), header))).status
    assert ["t0ken"] * 3 == [call.headers["x-pointsman-token"] for call in engine.calls]


async def test_clients_token_is_dropped_when_the_pool_has_none(engine: FakeEngine) -> None:
    gateway = gateway_with(FakeSecrets())
    async with gateway.running([FixedSource({"p": [address_of(engine)]})]):
        await until(lambda: bool(gateway.plane.replicas["p"]))
        assert 200 == (await ask(gateway, post(chat(), "x-pointsman-token: forged"))).status
    assert "x-pointsman-token" not in engine.calls[0].headers


@pytest.mark.parametrize("backend", [BackendType.POD_SELECTOR, BackendType.EXTERNAL])
async def test_strangers_get_no_token_when_the_secret_has_one_for_their_pool(
    engine: FakeEngine, backend: BackendType
) -> None:
    endpoint = ExternalEndpoint(url=f"http://127.0.0.1:{engine.port}/v1", model_name="m")
    pool = PoolEntry(
        name="p",
        served_model_name="served",
        backend=backend,
        external_endpoints=(endpoint,) if backend is BackendType.EXTERNAL else (),
    )
    gateway = gateway_with(
        FakeSecrets({"p": "t0ken"}), RouteTable(pools={"p": pool}, routes=table_of().routes)
    )
    async with gateway.running([FixedSource({"p": [address_of(engine)]})]):
        await until(lambda: bool(gateway.plane.replicas["p"]))
        assert 200 == (await ask(gateway, post(chat(), "x-pointsman-token: forged"))).status
    assert "x-pointsman-token" not in engine.calls[0].headers


async def test_next_request_bears_the_new_token_when_it_has_changed(engine: FakeEngine) -> None:
    secrets = FakeSecrets({"p": "one"})
    gateway = gateway_with(secrets)
    async with gateway.running([FixedSource({"p": [address_of(engine)]})]):
        await until(lambda: bool(gateway.plane.replicas["p"]))
        await ask(gateway, post(chat()))
        for token in ("two", ""):
            secrets.tokens = {"p": token} if token else {}
            gateway.plane.refresh_credentials()
            await ask(gateway, post(chat()))
    # A token that is missing stays: the replicas have it from their start on.
    assert ["one", "two", "two"] == [call.headers["x-pointsman-token"] for call in engine.calls]


def test_lines_are_those_of_our_own_pools_when_they_are_read_again() -> None:
    secrets = FakeSecrets({"p": "one"})
    tokens = ReplicaTokens(secrets)
    assert {"p": b"x-pointsman-token: one\r\n"} == tokens.refresh([entry()])
    secrets.broken = {"p"}
    with capture_logs() as logs:
        for _ in range(3):
            assert {"p": b"x-pointsman-token: one\r\n"} == tokens.refresh([entry()])
    assert ["pool p: bad token"] == [each["cause"] for each in logs]
    assert {} == tokens.refresh([entry(BackendType.POD_SELECTOR)])
    assert {} == tokens.refresh([entry()])
    assert not tokens.has("p")


async def test_endpoint_that_has_left_gets_no_token_when_one_comes(engine: FakeEngine) -> None:
    upstreams = Upstreams(idle_seconds=1.0, idle_connections=1, clock=lambda: 0.0)
    address = address_of(engine)
    before = upstreams.endpoint(address)
    upstreams.retain("p", ())
    # A request that began before is still connecting there.
    upstreams.set_token_lines({"p": b"x-pointsman-token: t\r\n"})
    assert (b"", b"x-pointsman-token: t\r\n") == (
        before.token_line,
        upstreams.endpoint(address).token_line,
    )


async def test_another_replica_answers_when_one_refuses_the_token(
    engine: FakeEngine, other: FakeEngine
) -> None:
    engine.behaviour = status(401)
    gateway = gateway_with(FakeSecrets({"p": "t"}))
    addresses = [address_of(engine), address_of(other)]
    async with gateway.running([FixedSource({"p": addresses})]):
        await until(lambda: bool(gateway.plane.replicas["p"]))
        replies = [await ask(gateway, post(chat(text=f"{n}"))) for n in range(8)]
    assert {200} == {reply.status for reply in replies}
    assert engine.calls


async def test_client_is_told_that_it_is_not_at_fault_when_all_refuse_the_token(
    engine: FakeEngine,
) -> None:
    engine.behaviour = status(401)
    gateway = gateway_with(FakeSecrets({"p": "s3cret"}))
    with capture_logs() as logs:
        async with gateway.running([FixedSource({"p": [address_of(engine)]})]):
            await until(lambda: bool(gateway.plane.replicas["p"]))
            reply = await ask(gateway, post(chat()))
    assert (502, "replica_token_refused") == (reply.status, reply.error["code"])
    assert "operator" in str(reply.error["message"])
    assert any(each["event"] == "a replica refused the gateway's token" for each in logs)
    assert "s3cret" not in f"{logs}{reply.body!r}"


async def test_probe_bears_no_token_when_a_replica_is_asked_for_its_health(
    engine: FakeEngine,
) -> None:
    engine.behaviour = stream_then_reset(1)
    gateway = gateway_with(FakeSecrets({"p": "t"}))
    async with gateway.running([FixedSource({"p": [address_of(engine)]})]):
        await until(lambda: bool(gateway.plane.replicas["p"]))
        for _ in range(2):
            await ask(gateway, post(chat(stream=True)))
        for _ in range(200):
            if engine.probes:
                break
            await asyncio.sleep(0.02)
    assert engine.probes
    assert all("x-pointsman-token" not in probe.headers for probe in engine.probes)
