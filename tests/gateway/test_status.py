"""What the operator is told."""

from __future__ import annotations

import asyncio

from pointsman_serving.gateway.readings import Readings
from pointsman_serving.gateway.status import status_of
from pointsman_serving.gateway.version import installed_version
from pointsman_serving.routing.scheduler import Scheduler
from pointsman_serving.routing.types import ReplicaAddress, ReplicaKey
from tests.gateway.fake_engine import FakeEngine, gated, stream_then_silence
from tests.gateway.harness import (
    Answer,
    address_of,
    ask,
    chat,
    gateway_to,
    post,
    table_of,
    until,
)
from tests.unit.routing.fleet import pool_entry
from tests.unit.routing.fleet import table_of as routing_table

GET = b"GET /status HTTP/1.1\r\nhost: g\r\n\r\n"


async def test_status_tells_open_requests_and_queues_when_some_wait(engine: FakeEngine) -> None:
    gate = asyncio.Event()
    engine.behaviour = gated(gate)
    async with gateway_to(engine, slots=1) as gateway:
        asked = [asyncio.ensure_future(ask(gateway, post(chat(stream=True)))) for _ in range(3)]
        await until(lambda: engine.active == 2 and len(gateway.plane.admission) == 1)
        found = (await ask(gateway, GET)).json
        gate.set()
        await asyncio.gather(*asked)
        after = (await ask(gateway, GET)).json
    uptime = found.pop("uptimeSeconds")
    assert isinstance(uptime, float)
    assert 0.0 < uptime < 60.0
    replica = {
        "address": f"127.0.0.1:{engine.port}",
        "state": "Closed",
        "openStreams": 2,
        "waitingFirstToken": 2,
        "mostOpen": 2,
    }
    assert found == {
        "name": "default",
        "version": installed_version(),
        "configHash": table_of(slots=1).digest(),
        "ready": True,
        "draining": False,
        "pools": {"p": {"queued": 1, "replicas": {"a": replica}}},
        "queues": {"policy": {"default": 1}},
    }
    idle = replica | {"openStreams": 0, "waitingFirstToken": 0}
    assert after["pools"] == {"p": {"queued": 0, "replicas": {"a": idle}}}


async def test_status_keeps_a_replica_when_it_left_the_list_with_an_open_stream(
    engine: FakeEngine,
) -> None:
    engine.behaviour = stream_then_silence(3)
    async with gateway_to(engine) as gateway:
        asked = asyncio.ensure_future(ask(gateway, post(chat(stream=True))))
        await until(lambda: engine.active == 1)
        await until(lambda: gateway.scheduler.snapshot().pools[0].replicas[0].decoding == 1)
        gateway.plane.set_replicas("p", [])

        async def replica() -> object:
            pools = (await ask(gateway, GET)).json["pools"]
            return pools.get("p", {}).get("replicas", {}).get("a")  # type: ignore[attr-defined]

        expected = {
            "address": f"127.0.0.1:{engine.port}",
            "state": "Draining",
            "openStreams": 1,
            "waitingFirstToken": 0,
            "mostOpen": 68,
        }
        assert await replica() == expected
        # Nor is it forgotten when its whole pool is.
        gateway.set_table(table_of())
        gateway.set_table(type(gateway.plane.table)())
        assert await replica() == expected
        await engine.stop()
        await asked
        assert await replica() is None


async def test_status_tells_of_an_ejection_when_the_replica_is_gone(engine: FakeEngine) -> None:
    async with gateway_to(engine) as gateway:
        await engine.stop()
        gateway.scheduler.failed(ReplicaKey("p", "a"), now=gateway.plane.clock(), hard=True)
        pools = (await ask(gateway, GET)).json["pools"]
        assert pools["p"]["replicas"]["a"]["state"] == "Open"  # type: ignore[index]


async def test_status_tells_of_the_drain_when_the_gateway_ends(engine: FakeEngine) -> None:
    async with gateway_to(engine, lame_duck_seconds=1.0) as gateway:
        gateway.stop()
        found = (await ask(gateway, GET)).json
    assert (found["ready"], found["draining"]) == (False, True)


async def test_status_is_not_there_when_it_is_off(engine: FakeEngine) -> None:
    async with gateway_to(engine, status=False) as gateway:
        reply: Answer = await ask(gateway, GET)
    assert (reply.status, reply.error["code"]) == (404, "not_found")


def test_status_writes_an_address_as_in_a_url_when_it_is_of_version_six() -> None:
    scheduler = Scheduler(routing_table(pool_entry()))
    address = ReplicaAddress(key=ReplicaKey("dense", "a"), host="fd00::1", port=8000)
    scheduler.set_replicas("dense", [address], now=0.0)
    readings = Readings(
        in_flight={},
        queue_depth={},
        replicas={},
        open_upstream_connections=0,
        config_hash="",
        scheduler=scheduler.snapshot(),
    )
    found = status_of(
        readings, name="n", version="v", ready=False, draining=False, uptime_seconds=0.0
    )
    assert "[fd00::1]:8000" in str(found)


async def test_status_names_every_replica_when_there_are_two(
    engine: FakeEngine, other: FakeEngine
) -> None:
    async with gateway_to(engine, other) as gateway:
        gateway.plane.set_replicas("p", [address_of(engine), address_of(other)])
        pools = (await ask(gateway, GET)).json["pools"]
    assert list(pools["p"]["replicas"]) == ["a", "b"]  # type: ignore[index]
