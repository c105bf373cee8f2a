"""What a gateway makes of what the API server tells, and of what it does not tell."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace

import prometheus_client
import pytest
from structlog.testing import capture_logs

from pointsman_api.endpoint_slices import PoolEndpoints, ReplicaEndpoint
from pointsman_api.route_table import (
    BackendType,
    CredentialReference,
    ExternalEndpoint,
    PoolEntry,
    RouteTable,
)
from pointsman_kube.client import Kube
from pointsman_kube.errors import Forbidden
from pointsman_serving.gateway.kubernetes.secrets import GatewaySecret
from pointsman_serving.gateway.kubernetes.source import KubernetesSource
from pointsman_serving.gateway.server import Gateway
from pointsman_serving.gateway.settings import GatewaySettings
from tests.gateway.fake_engine import FakeEngine, gated
from tests.gateway.fake_kube import NAMESPACE, FakeKube
from tests.gateway.harness import ask, chat, post, table_of, until

TOKEN = {"token.default.p": "t0ken"}


@dataclass
class Served:
    gateway: Gateway
    kube: FakeKube

    @property
    def replicas(self) -> list[str]:
        return [address.key.replica for address in self.gateway.plane.replicas.get("p", ())]

    def metric(self, name: str) -> float | None:
        return self.gateway.metrics.registry.get_sample_value(f"pointsman_gateway_{name}")


@contextlib.asynccontextmanager
async def served(
    kube: FakeKube, *, ready: bool = True, clock: Callable[[], float] = time.monotonic
) -> AsyncIterator[Served]:
    secret = GatewaySecret("system/pointsman-default-credentials")
    settings = GatewaySettings(port=0, drain_seconds=1.0)
    gateway = Gateway(settings=settings, table=None, credentials=secret)
    client: Kube = kube  # type: ignore[assignment]
    source = KubernetesSource(gateway, client, secret, namespace=NAMESPACE, clock=clock)
    async with gateway.running([source]):
        if ready:
            await until(lambda: gateway.plane.ready)
        yield Served(gateway, kube)


def endpoints(*engines: FakeEngine, **conditions: bool) -> PoolEndpoints:
    return PoolEndpoints(
        namespace="default",
        pool="p",
        prefix="/prefix",
        endpoints=tuple(
            ReplicaEndpoint(replica=engine.name, host=engine.host, port=engine.port, **conditions)
            for engine in engines
        ),
    )


@pytest.fixture
async def kube(engine: FakeEngine) -> FakeKube:
    """One pool with one replica and its token."""
    found = FakeKube()
    found.put_table(table_of())
    found.put_secret(**TOKEN)
    found.put_endpoints(endpoints(engine))
    return found


async def readyz(gateway: Gateway) -> tuple[int, str]:
    reply = await ask(gateway, b"GET /readyz HTTP/1.1\r\nhost: g\r\n\r\n")
    return reply.status, str(reply.json["reason"])


async def test_request_reaches_the_replica_with_its_token_when_all_is_told(
    kube: FakeKube, engine: FakeEngine
) -> None:
    async with served(kube) as running:
        reply = await ask(running.gateway, post(chat()))
    assert (200, "a") == (reply.status, reply.headers["x-pointsman-replica"])
    (call,) = engine.calls
    assert ("/prefix/v1/chat/completions", "t0ken") == (
        call.path,
        call.headers["x-pointsman-token"],
    )


@pytest.mark.parametrize("missing", ["ConfigMap", "EndpointSlice", "Secret"])
async def test_gateway_is_not_ready_when_something_cannot_be_read(
    kube: FakeKube, missing: str
) -> None:
    lists = kube.list

    async def list_but_one(kind, *args, **options):  # type: ignore[no-untyped-def]
        if kind.name == missing:
            await asyncio.sleep(3600)
        return await lists(kind, *args, **options)

    kube.list = list_but_one  # type: ignore[method-assign]
    async with served(kube, ready=False) as running:
        await asyncio.sleep(0.2)
        status, _ = await readyz(running.gateway)
        assert (503, {}) == (status, running.gateway.plane.table.routes)


async def test_gateway_is_not_ready_when_there_is_no_table_and_is_once_an_empty_one_came() -> None:
    kube = FakeKube()
    async with served(kube, ready=False) as running:
        await asyncio.sleep(0.1)
        before = await readyz(running.gateway)
        kube.put_table(RouteTable())
        await until(lambda: running.gateway.plane.ready)
        after = await readyz(running.gateway)
    assert (503, "nobody has told yet what to route: the operator writes the route table") == before
    assert (200, "the route table has no routes: create a ModelPool") == after


async def test_edit_is_in_force_within_milliseconds_when_its_event_comes(kube: FakeKube) -> None:
    async with served(kube) as running:
        seconds = []
        for number in range(20):
            table = table_of(model=f"m{number}")
            began = time.perf_counter()
            kube.put_table(table)
            while f"m{number}" not in running.gateway.plane.table.routes:
                await asyncio.sleep(0)
            seconds.append(time.perf_counter() - began)
    # Far above what it takes, far below what a poll would.
    assert sorted(seconds)[10] < 0.05


async def test_replica_leaves_and_its_stream_goes_on_when_it_is_said_to_end(
    kube: FakeKube, engine: FakeEngine, other: FakeEngine
) -> None:
    gate = asyncio.Event()
    engine.behaviour = gated(gate)
    async with served(kube) as running:
        request = asyncio.ensure_future(ask(running.gateway, post(chat())))
        await until(lambda: bool(engine.calls))
        ending = endpoints(engine, ready=False, serving=True, terminating=True)
        fresh = endpoints(other)
        kube.put_endpoints(replace(fresh, endpoints=(*ending.endpoints, *fresh.endpoints)))
        await until(lambda: ["b"] == running.replicas)
        assert 200 == (await ask(running.gateway, post(chat()))).status
        kube.empty_slices()
        await until(lambda: not running.replicas)
        gate.set()
        assert 200 == (await request).status
    assert (1, 1) == (len(engine.calls), len(other.calls))


@pytest.mark.parametrize(
    ("conditions", "listed"),
    [
        ({"ready": True, "serving": True, "terminating": False}, True),
        ({"ready": False, "serving": True, "terminating": False}, False),
        ({"ready": True, "serving": True, "terminating": True}, False),
        ({"ready": False, "serving": False, "terminating": False}, False),
    ],
)
async def test_replica_gets_new_requests_only_when_it_is_ready_and_does_not_end(
    kube: FakeKube, engine: FakeEngine, conditions: dict[str, bool], listed: bool
) -> None:
    kube.put_endpoints(endpoints(engine, **conditions))
    async with served(kube) as running:
        assert (["a"] if listed else []) == running.replicas


async def test_requests_go_on_when_the_api_is_away(kube: FakeKube, engine: FakeEngine) -> None:
    async with served(kube) as running:
        kube.leave()
        await asyncio.sleep(0.2)
        assert 200 == (await ask(running.gateway, post(chat()))).status
        assert 200 == (await readyz(running.gateway))[0]


@pytest.mark.parametrize("forgetful", [True, False])
@pytest.mark.parametrize("whole_slice", [True, False])
async def test_deletion_in_the_gap_is_noticed_when_the_api_is_back(
    kube: FakeKube, engine: FakeEngine, other: FakeEngine, forgetful: bool, whole_slice: bool
) -> None:
    kube.put_endpoints(endpoints(engine, other))
    async with served(kube) as running:
        await until(lambda: ["a", "b"] == running.replicas)
        kube.leave()
        await asyncio.sleep(0.1)
        # Each has a port of its own, and so a slice.
        if whole_slice:
            kube.remove("EndpointSlice", f"-{engine.port}-")
        else:
            (key,) = (key for key in kube.objects if f"-{engine.port}-" in key[1])
            kube.put(kube.objects[key] | {"endpoints": []})
        kube.put_table(table_of(model="after"))
        await asyncio.sleep(0.1)
        assert ["a", "b"] == running.replicas
        kube.come_back(forgetful=forgetful)
        await until(lambda: ["b"] == running.replicas, seconds=10)
        await until(lambda: "after" in running.gateway.plane.table.routes, seconds=10)


async def test_last_good_table_stays_and_that_is_said_once_when_a_bad_one_comes(
    kube: FakeKube, engine: FakeEngine
) -> None:
    with capture_logs() as logs:
        async with served(kube) as running:
            (config_map,) = (item for item in kube.objects.values() if item["kind"] == "ConfigMap")
            good = config_map["data"]
            for _ in range(3):
                kube.put(config_map | {"data": {"table.json": "{"}})
                await asyncio.sleep(0.05)
            assert 200 == (await ask(running.gateway, post(chat()))).status
            assert 1.0 == running.metric("route_tables_refused_total")
            assert 0.1 < (running.metric("route_table_age_seconds") or 0.0)
            kube.put(config_map | {"data": good})
            await until(lambda: any("good again" in each["event"] for each in logs))
            assert 0.1 > (running.metric("route_table_age_seconds") or 9.0)
    refused = [each for each in logs if "cannot be taken" in each["event"]]
    assert 1 == len(refused)
    assert "pointsman-default-routes-0" in refused[0]["cause"]


async def test_last_good_table_stays_when_its_config_map_is_deleted(
    kube: FakeKube, engine: FakeEngine
) -> None:
    async with served(kube) as running:
        before = running.gateway.plane.config_hash
        kube.remove("ConfigMap")
        await asyncio.sleep(0.1)
        assert 200 == (await ask(running.gateway, post(chat()))).status
        assert (200, before) == (
            (await readyz(running.gateway))[0],
            running.gateway.plane.config_hash,
        )
        assert 0.05 < (running.metric("route_table_age_seconds") or 0.0)
        kube.put_table(table_of(model="after"))
        await until(lambda: "after" in running.gateway.plane.table.routes)


async def test_next_request_shows_the_new_token_when_the_secret_was_rotated(
    kube: FakeKube, engine: FakeEngine
) -> None:
    async with served(kube) as running:
        assert 200 == (await ask(running.gateway, post(chat()))).status
        kube.put_secret(**{"token.default.p": "n3xt"})
        await asyncio.sleep(0.05)
        assert 200 == (await ask(running.gateway, post(chat()))).status
        # One without it takes none away, and one that cannot be read neither.
        kube.put_secret()
        await asyncio.sleep(0.05)
        (secret,) = (item for item in kube.objects.values() if item["kind"] == "Secret")
        kube.put(secret | {"data": {"token.default.p": "*"}})
        await asyncio.sleep(0.05)
        assert 200 == (await ask(running.gateway, post(chat()))).status
    assert ["t0ken", "n3xt", "n3xt"] == [call.headers["x-pointsman-token"] for call in engine.calls]


async def test_table_grows_old_though_the_server_answers_when_it_refuses_it(
    kube: FakeKube, engine: FakeEngine
) -> None:
    async with served(kube) as running:
        lists = kube.list

        async def refuse(kind, *args, **options):  # type: ignore[no-untyped-def]
            if kind.name == "ConfigMap":
                raise Forbidden("list configmaps: 403 no", status=403, reason="Forbidden")
            return await lists(kind, *args, **options)

        kube.list = refuse  # type: ignore[method-assign]
        kube.leave()
        await asyncio.sleep(0.1)
        kube.put_table(table_of(model="after"))
        kube.come_back()
        text = ""

        def told() -> bool:
            nonlocal text
            text = prometheus_client.generate_latest(running.gateway.metrics.registry).decode()
            return 'pointsman_gateway_watch_refused{resource="configmaps"} 1.0' in text

        await until(told, seconds=10)
        assert 'pointsman_gateway_watch_refused{resource="secrets"} 0.0' in text
        assert 0.1 < (running.metric("route_table_age_seconds") or 0.0)
        assert 200 == (await ask(running.gateway, post(chat()))).status


async def test_table_is_taken_whole_when_it_comes_in_parts(kube: FakeKube) -> None:
    async with served(kube) as running:
        seen = set()
        plane = running.gateway.plane
        old = plane.config_hash
        table = table_of(model="m2")
        parts = FakeKube()
        parts.put_table(table, shard_bytes=150)
        maps = [item for item in parts.objects.values() if item["kind"] == "ConfigMap"]
        assert 3 <= len(maps)
        for part in reversed(maps):
            kube.put(part)
            await asyncio.sleep(0.02)
            seen.add(plane.config_hash)
        assert {old, table.digest()} == seen
        assert table.digest() == plane.config_hash
        # What is left of a longer table is passed over.
        kube.put_table(table_of(model="m3"))
        await until(lambda: "m3" in plane.table.routes)


async def test_replicas_are_withheld_until_their_token_is_there_when_ours_need_one(
    kube: FakeKube, engine: FakeEngine
) -> None:
    kube.put_secret()
    with capture_logs() as logs:
        async with served(kube) as running:
            assert [] == running.replicas
            request = asyncio.ensure_future(ask(running.gateway, post(chat())))
            await asyncio.sleep(0.1)
            assert not request.done()
            kube.put_secret(**TOKEN)
            assert 200 == (await request).status
            # A Secret that goes by mistake takes nothing away.
            kube.remove("Secret")
            await asyncio.sleep(0.05)
            assert 200 == (await ask(running.gateway, post(chat()))).status
    assert ["t0ken", "t0ken"] == [call.headers["x-pointsman-token"] for call in engine.calls]
    assert ["p"] == [each["pool"] for each in logs if "not used yet" in each["event"]]
    assert 1 == len([each for each in logs if "Secret is gone" in each["event"]])
    assert "t0ken" not in str(logs)


async def test_pods_of_others_are_used_without_a_token_when_a_pool_selects_them(
    kube: FakeKube, engine: FakeEngine
) -> None:
    kube.put_secret()
    kube.put_table(table_of(backend=BackendType.POD_SELECTOR, engine=""))
    kube.put_endpoints(replace(endpoints(engine), prefix=""))
    async with served(kube) as running:
        assert 200 == (await ask(running.gateway, post(chat()))).status
        (address,) = running.gateway.plane.replicas["p"]
    assert ("/v1", "/health", "") == (
        address.base_path,
        address.health_path,
        address.alive_path,
    )
    assert "x-pointsman-token" not in engine.calls[0].headers


async def test_key_of_a_provider_is_read_from_the_secret_when_the_pool_refers_to_one(
    kube: FakeKube, engine: FakeEngine
) -> None:
    pool = PoolEntry(
        name="p",
        served_model_name="served",
        backend=BackendType.EXTERNAL,
        external_endpoints=(
            ExternalEndpoint(url=f"http://127.0.0.1:{engine.port}/v1", model_name="m"),
        ),
        credential=CredentialReference(secret_namespace="team", secret_name="s", secret_key="k"),
    )
    kube.put_table(RouteTable(pools={"p": pool}, routes=table_of().routes))
    async with served(kube) as running:
        assert 503 == (await ask(running.gateway, post(chat()))).status
        kube.put_secret(**{"credential.team_s_k": "sk-1\n"})
        await until(lambda: bool(running.replicas))
        assert 200 == (await ask(running.gateway, post(chat()))).status
        kube.put_secret(**{"credential.team_s_k": "sk-2"})
        await asyncio.sleep(0.05)
        assert 200 == (await ask(running.gateway, post(chat()))).status
    assert ["Bearer sk-1", "Bearer sk-2"] == [
        call.headers["authorization"] for call in engine.calls
    ]


async def test_replicas_of_a_pool_are_used_when_slices_came_before_the_table(
    engine: FakeEngine,
) -> None:
    kube = FakeKube()
    kube.put_secret(**TOKEN)
    kube.put_endpoints(endpoints(engine))
    kube.put_table(RouteTable())
    async with served(kube) as running:
        kube.put_table(table_of())
        await until(lambda: ["a"] == running.replicas)
        kube.put_table(table_of(slots=7))
        plane = running.gateway.plane
        await until(lambda: [7] == [each.sequence_slots for each in plane.replicas["p"]])


async def test_metrics_tell_of_the_watches_when_they_are_scraped(kube: FakeKube) -> None:
    async with served(kube) as running:
        text = prometheus_client.generate_latest(running.gateway.metrics.registry).decode()
    for line in (
        'pointsman_gateway_watch_lists_total{resource="configmaps"} 1.0',
        'pointsman_gateway_watch_starts_total{resource="secrets"} 1.0',
        'pointsman_gateway_watch_objects{resource="endpointslices.discovery.k8s.io"} 1.0',
        "pointsman_gateway_route_tables_refused_total 0.0",
    ):
        assert line in text


async def test_other_pools_get_their_replicas_when_one_pools_slices_are_broken(
    kube: FakeKube, engine: FakeEngine
) -> None:
    table = table_of()
    pools = {name: replace(table.pools["p"], name=name) for name in ("o", "p", "q")}
    kube.put_table(replace(table, pools=pools))
    kube.put_secret(**{f"token.default.{name}": "t" for name in pools})
    kube.put_endpoints(replace(endpoints(engine), pool="o"))
    kube.put_endpoints(replace(endpoints(engine), pool="q"))
    with capture_logs() as logs:
        async with served(kube) as running:
            for name, item in list(kube.objects.items()):
                if item["kind"] == "EndpointSlice":
                    broken = "-p-" in name[1]
                    kube.put(
                        item | {"endpoints": [{"addresses": 7, "hostname": "x"}] if broken else []}
                    )
            await until(lambda: not running.gateway.plane.replicas["q"])
            counts = {name: len(found) for name, found in running.gateway.plane.replicas.items()}
    assert {"o": 0, "p": 1, "q": 0} == counts
    assert ["p"] == [each["pool"] for each in logs if "stay as they were" in each["event"]]
