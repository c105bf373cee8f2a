"""Other providers: which key goes where, and what of their replies reaches clients."""

from __future__ import annotations

from pathlib import Path

import pytest

from pointsman_api.route_table import (
    BackendType,
    CredentialReference,
    ExternalEndpoint,
    Overload,
    PoolEntry,
    RouteTable,
    Rule,
    Target,
)
from pointsman_serving.gateway.credentials import Credentials
from pointsman_serving.gateway.external import ExternalPools
from pointsman_serving.gateway.headers import reply_lines
from pointsman_serving.gateway.server import Gateway
from pointsman_serving.gateway.settings import GatewaySettings
from tests.gateway.fake_engine import FakeEngine, answer, status
from tests.gateway.harness import ask, chat, post, table_of


def external(engine: FakeEngine, key: Path | None, name: str = "p") -> PoolEntry:
    return PoolEntry(
        name=name,
        served_model_name="m",
        backend=BackendType.EXTERNAL,
        external_endpoints=(
            ExternalEndpoint(url=f"http://127.0.0.1:{engine.port}/v1", model_name="m"),
        ),
        credential=None if key is None else CredentialReference(path=str(key)),
    )


def table_with(*pools: PoolEntry) -> RouteTable:
    routes = table_of().routes
    (rule,) = routes["m"].rules
    targets = tuple(Target(pool=pool.name) for pool in pools)
    fields = {name: getattr(rule, name) for name in Rule.__slots__} | {"targets": targets}
    route = type(routes["m"])(policy="policy", rules=(Rule(**fields),))
    return RouteTable(pools={pool.name: pool for pool in pools}, routes={"m": route})


def gateway_of(*pools: PoolEntry) -> Gateway:
    return Gateway(settings=GatewaySettings(port=0, drain_seconds=1.0), table=table_with(*pools))


def key_file(folder: Path, name: str) -> Path:
    path = folder / name
    path.write_text(f"sk-{name}\n")
    return path


async def test_key_goes_to_no_other_provider_when_the_pools_address_changes(
    engine: FakeEngine, other: FakeEngine, tmp_path: Path
) -> None:
    first, second = key_file(tmp_path, "first"), key_file(tmp_path, "second")
    gateway = gateway_of(external(engine, first))
    async with gateway.running():
        assert (await ask(gateway, post(chat()))).status == 200
        gateway.set_table(table_with(external(other, second)))
        assert (await ask(gateway, post(chat()))).status == 200
        gateway.set_table(table_with(external(engine, tmp_path / "missing")))
        assert (await ask(gateway, post(chat()))).status == 503
    assert [call.headers["authorization"] for call in engine.calls] == ["Bearer sk-first"]
    assert [call.headers["authorization"] for call in other.calls] == ["Bearer sk-second"]


async def test_pool_is_503_until_its_key_can_be_read_when_it_refers_to_one(
    engine: FakeEngine, tmp_path: Path
) -> None:
    path = tmp_path / "later"
    gateway = gateway_of(external(engine, path))
    async with gateway.running():
        reply = await ask(gateway, post(chat()))
        assert (reply.status, reply.error["code"]) == (503, "pool_misconfigured")
        assert "operator" in str(reply.error["message"])
        assert str(path) not in str(reply.error["message"])
        assert engine.calls == []
        key_file(tmp_path, "later")
        gateway.plane.refresh_credentials()
        assert (await ask(gateway, post(chat()))).status == 200
    assert engine.calls[0].headers["authorization"] == "Bearer sk-later"


def test_key_stays_when_it_cannot_be_read_again_and_is_dropped_when_the_reference_changes(
    tmp_path: Path,
) -> None:
    path = key_file(tmp_path, "key")
    pools = ExternalPools(Credentials())
    pool = external(FakeEngine(port=1), path)
    (address,) = pools.refresh([pool])["p"]
    path.unlink()
    assert pools.refresh([pool])["p"] == (address,)
    assert pools.authorization(address) == b"authorization: Bearer sk-key\r\n"
    assert pools.refresh([external(FakeEngine(port=1), tmp_path / "other")])["p"] == ()
    assert pools.authorization(address) == b""
    assert pools.unusable(["p", "q"]) == ["p"]
    pools.refresh([])
    assert pools.unusable(["p"]) == []


def test_address_gets_no_key_of_another_when_its_pool_moved(tmp_path: Path) -> None:
    pools = ExternalPools(Credentials())
    (old,) = pools.refresh([external(FakeEngine(port=1), key_file(tmp_path, "one"))])["p"]
    (new,) = pools.refresh([external(FakeEngine(port=2), key_file(tmp_path, "two"))])["p"]
    # A request to the old address may still be connecting.
    assert pools.authorization(old) == b""
    assert pools.authorization(new) == b"authorization: Bearer sk-two\r\n"


async def test_replicas_of_a_pool_go_when_it_is_no_longer_external(engine: FakeEngine) -> None:
    gateway = gateway_of(external(engine, None))
    async with gateway.running():
        assert gateway.plane.replicas["p"]
        gateway.set_table(table_of(overload=Overload(max_cold_start_seconds=0.1)))
        assert gateway.plane.replicas["p"] == ()
        assert (await ask(gateway, post(chat()))).status == 503


@pytest.mark.parametrize("code", [401, 403])
async def test_refused_key_is_not_the_clients_when_a_provider_refuses_it(
    engine: FakeEngine, other: FakeEngine, tmp_path: Path, code: int
) -> None:
    engine.behaviour = status(code, body=b'{"error":{"message":"Incorrect API key sk-ke***"}}')
    gateway = gateway_of(external(engine, key_file(tmp_path, "key")))
    async with gateway.running():
        reply = await ask(gateway, post(chat()))
        assert (reply.status, reply.error["code"]) == (502, "upstream_key_refused")
        assert "sk-ke" not in str(reply.error)
        engine.behaviour = None
        other.behaviour = status(code)
        engine.once = [status(code)]
        gateway.set_table(table_with(external(engine, None), external(other, None, "q")))
        assert "upstream_key_refused" in (await ask(gateway, post(chat()))).body.decode()


async def test_refused_key_goes_unseen_when_another_pool_answers(
    engine: FakeEngine, other: FakeEngine
) -> None:
    engine.once = other.once = [status(401)]
    gateway = gateway_of(external(engine, None), external(other, None, "q"))
    async with gateway.running():
        assert (await ask(gateway, post(chat()))).status == 200
        assert gateway.metrics.trouble.retries == {"status_401": 1}


async def test_reply_headers_are_few_when_they_come_from_a_third_party(
    engine: FakeEngine,
) -> None:
    kept = (
        "x-ratelimit-remaining-tokens: 7",
        "openai-processing-ms: 12",
        "cache-control: no-store",
    )
    dropped = ("set-cookie: __cf=1", "alt-svc: h3", "strict-transport-security: max-age=1")
    engine.behaviour = answer(extra=(*kept, *dropped, "location: http://x", "server: theirs"))
    gateway = gateway_of(external(engine, None))
    async with gateway.running():
        reply = await ask(gateway, post(chat()))
    assert reply.headers["content-type"] == "application/json"
    assert {line.partition(":")[0] for line in kept} <= reply.headers.keys()
    names = {"set-cookie", "alt-svc", "strict-transport-security", "location", "server"}
    assert not names & reply.headers.keys()


def test_reply_headers_are_dropped_when_the_upstreams_connection_names_them() -> None:
    raw = [(b"connection", b"X-Hop, close"), (b"x-hop", b"1"), (b"x-kept", b"2")]
    assert reply_lines(raw) == b"x-kept: 2\r\n"
