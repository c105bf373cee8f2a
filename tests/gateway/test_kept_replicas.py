"""Replicas that no EndpointSlice names any more: the operator's Deployment went, they stayed."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from structlog.testing import capture_logs

from pointsman_api.route_table import BackendType, RouteTable
from tests.gateway.fake_engine import FakeEngine, head, raw
from tests.gateway.fake_kube import FakeKube
from tests.gateway.harness import ask, chat, post, table_of, until
from tests.gateway.test_kubernetes_source import TOKEN, Served, endpoints, served

pytestmark = pytest.mark.timeout(60)
GONE_SECONDS = 20.0
"""Three questions, a second apart, on a machine that has other things to do."""


@pytest.fixture
async def kube(engine: FakeEngine, other: FakeEngine) -> FakeKube:
    """One pool with two replicas."""
    found = FakeKube()
    found.put_table(table_of())
    found.put_secret(**TOKEN)
    found.put_endpoints(endpoints(engine, other))
    return found


async def answered(running: Served) -> str:
    reply = await ask(running.gateway, post(chat()))
    assert 200 == reply.status
    return reply.headers["x-pointsman-replica"]


async def test_replicas_serve_on_when_all_slices_are_gone(
    kube: FakeKube, engine: FakeEngine, other: FakeEngine
) -> None:
    with capture_logs() as logs:
        async with served(kube) as running:
            kube.remove("EndpointSlice")
            await until(lambda: len(engine.probes) >= 4 and len(other.probes) >= 4, seconds=20)
            assert ["a", "b"] == running.replicas
            assert 2.0 == running.metric("replicas_kept")
            assert {"a", "b"} == {await answered(running) for _ in range(20)}
            # The operator is back, and one of them was taken away meanwhile.
            kube.put_endpoints(endpoints(other))
            await until(lambda: ["b"] == running.replicas)
            assert 0.0 == running.metric("replicas_kept")
            probes = len(engine.probes)
            await asyncio.sleep(1.5)
            assert probes == len(engine.probes)
    said = [each for each in logs if "EndpointSlice" in each["event"]]
    assert ["p", "p"] == [each["pool"] for each in said]
    assert "whether the operator runs" in said[0]["next_step"]
    assert "again" in said[1]["event"]


async def test_all_replicas_serve_on_when_their_slices_go_one_after_another(
    kube: FakeKube, engine: FakeEngine, other: FakeEngine
) -> None:
    async with served(kube) as running:
        kube.remove("EndpointSlice", f"-{engine.port}-")
        # While there is a slice, what it does not name is not there.
        await until(lambda: ["b"] == running.replicas)
        await asyncio.sleep(0.1)
        kube.remove("EndpointSlice")
        await until(lambda: ["a", "b"] == sorted(running.replicas))
        # Once dropped, nothing brings it back but a slice.
        await engine.stop()
        await until(lambda: ["b"] == running.replicas, seconds=GONE_SECONDS)
        kube.put_table(table_of(slots=7))
        plane = running.gateway.plane
        await until(lambda: [7] == [each.sequence_slots for each in plane.replicas["p"]])


async def test_replica_of_a_slice_that_went_long_ago_does_not_come_back(
    kube: FakeKube, engine: FakeEngine
) -> None:
    now = 1000.0
    async with served(kube, clock=lambda: now) as running:
        kube.remove("EndpointSlice", f"-{engine.port}-")
        await until(lambda: ["b"] == running.replicas)
        now += 31.0
        kube.remove("EndpointSlice")
        await asyncio.sleep(0.1)
        assert ["b"] == running.replicas


@pytest.mark.parametrize("how", ["dead", "another pool's", "draining"])
async def test_kept_replica_is_dropped_for_good_when_it_does_not_answer_as_it_should(
    kube: FakeKube, engine: FakeEngine, how: str
) -> None:
    async with served(kube) as running:
        kube.remove("EndpointSlice")
        if how == "dead":
            await engine.stop()
        elif how == "another pool's":
            engine.health = raw(head(404, "content-length: 0"))
            engine.alive = raw(head(200, "content-length: 0"))
        else:
            engine.health = engine.alive = raw(head(503, "content-length: 0"))
        await until(lambda: ["b"] == running.replicas, seconds=GONE_SECONDS)
        assert "b" == await answered(running)
        engine.health = engine.alive = None
        if how == "dead":
            await engine.start()
        await asyncio.sleep(1.5)
        assert ["b"] == running.replicas


async def test_kept_replica_stays_when_it_is_too_full_to_answer_under_its_own_path(
    kube: FakeKube, engine: FakeEngine
) -> None:
    async def never(_: object) -> None:
        await asyncio.sleep(3600)

    engine.health, engine.alive = never, raw(head(200, "content-length: 0"))
    async with served(kube) as running:
        kube.remove("EndpointSlice")

        def rounds() -> int:
            return sum(call.path == "/-/healthz" for call in engine.probes)

        await until(lambda: rounds() >= 4, seconds=40)
        assert ["a", "b"] == running.replicas


async def test_pool_is_empty_at_once_when_its_slice_says_so(kube: FakeKube) -> None:
    async with served(kube) as running:
        kube.empty_slices()
        await until(lambda: not running.replicas, seconds=0.9)
        # What was said last holds: nothing is kept then.
        kube.remove("EndpointSlice")
        await asyncio.sleep(0.1)
        assert [] == running.replicas


async def test_nothing_comes_back_when_the_only_slice_left_says_that_there_is_none(
    kube: FakeKube,
) -> None:
    async with served(kube) as running:
        # Each of the two replicas has a slice, as each has a port.
        left, gone = (name for kind, name in kube.objects if kind == "EndpointSlice")
        kube.remove("EndpointSlice", gone)
        kube.put(kube.objects["EndpointSlice", left] | {"endpoints": []})
        await until(lambda: not running.replicas, seconds=0.9)
        kube.remove("EndpointSlice")
        await asyncio.sleep(0.1)
        assert [] == running.replicas


async def test_pods_of_a_deleted_pool_are_dropped_when_its_namesake_selects_none(
    kube: FakeKube,
) -> None:
    kube.put_table(table_of(backend=BackendType.POD_SELECTOR, engine=""))
    async with served(kube) as running:
        (first, *_) = (kube.objects[key] for key in kube.objects if key[0] == "EndpointSlice")
        kube.remove("EndpointSlice")
        await until(lambda: running.metric("replicas_kept") == 2.0)
        kube.put(first | {"endpoints": []})
        await until(lambda: not running.replicas, seconds=0.9)
        assert 0.0 == running.metric("replicas_kept")


async def test_replica_that_was_not_ready_gets_nothing_when_its_slice_is_gone(
    kube: FakeKube, engine: FakeEngine, other: FakeEngine
) -> None:
    going = endpoints(engine, ready=False, terminating=True).endpoints
    kube.put_endpoints(replace(endpoints(other), endpoints=(*going, *endpoints(other).endpoints)))
    async with served(kube) as running:
        kube.remove("EndpointSlice")
        await asyncio.sleep(0.1)
        assert ["b"] == running.replicas


async def test_nothing_is_kept_when_the_pool_has_left_the_table(kube: FakeKube) -> None:
    with capture_logs() as logs:
        async with served(kube) as running:
            # As the operator deletes a pool: first who serves, then the way there.
            kube.remove("EndpointSlice")
            kube.put_table(RouteTable())
            await until(lambda: not running.gateway.plane.table.pools)
            await asyncio.sleep(1.5)
            kube.put_table(table_of())
            await until(lambda: "p" in running.gateway.plane.table.pools)
            assert [] == running.replicas
    assert [] == [each for each in logs if each["log_level"] in ("warning", "error")]


async def test_nothing_is_kept_when_a_pool_of_the_same_name_has_another_token(
    kube: FakeKube,
) -> None:
    async with served(kube) as running:
        kube.remove("EndpointSlice")
        await asyncio.sleep(0.05)
        assert ["a", "b"] == running.replicas
        kube.put_secret(**{"token.default.p": "another"})
        await until(lambda: not running.replicas)


async def test_kept_replicas_follow_the_table_when_the_pool_is_changed(kube: FakeKube) -> None:
    async with served(kube) as running:
        kube.remove("EndpointSlice")
        kube.put_table(table_of(slots=7))
        plane = running.gateway.plane
        await until(lambda: [7, 7] == [each.sequence_slots for each in plane.replicas["p"]])


async def test_pods_of_others_are_kept_by_their_own_health_when_there_is_no_ray(
    kube: FakeKube, engine: FakeEngine, other: FakeEngine
) -> None:
    kube.put_table(table_of(backend=BackendType.POD_SELECTOR, engine=""))
    async with served(kube) as running:
        kube.remove("EndpointSlice")
        await other.stop()
        await until(lambda: ["a"] == running.replicas, seconds=GONE_SECONDS)
        assert "a" == await answered(running)
