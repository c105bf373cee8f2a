"""Requests for pools without a replica are held until one comes."""

from __future__ import annotations

import asyncio
import dataclasses
import json

import pytest

from pointsman_api.route_table import BackendType, Overload, Route, RouteTable, Rule, Target
from pointsman_serving.gateway.server import Gateway
from tests.gateway.fake_engine import DONE, Call, FakeEngine, answer, gated, word_stream
from tests.gateway.harness import (
    FAST,
    address_of,
    ask,
    chat,
    client_of,
    events,
    gateway_to,
    post,
    table_of,
    until,
)


@pytest.mark.pain_3
@pytest.mark.pain_22
async def test_request_is_held_when_its_pool_has_no_replica_yet(engine: FakeEngine) -> None:
    async with gateway_to(table=table_of(slots=4)) as gateway:
        async with client_of(gateway) as client:
            await client.send(post(chat(stream=True)))
            await until(lambda: len(gateway.plane.admission) == 1)
            # No byte before the first token.
            received = asyncio.ensure_future(client.reader.read(1))
            await asyncio.sleep(0.3)
            assert not received.done()
            gateway.plane.set_replicas("p", [address_of(engine, slots=4)])
            assert await received == b"H"
        await until(lambda: not gateway.plane.relays)


@pytest.mark.pain_22
async def test_request_is_refused_when_no_replica_comes_in_time() -> None:
    table = table_of(overload=Overload(max_cold_start_seconds=0.3, max_queue_seconds=0.1))
    async with gateway_to(table=table) as gateway:
        reply = await ask(gateway, post(chat()))
        assert (reply.status, reply.error["code"]) == (503, "no_replica")
        assert "p was there within 0.3 s" in str(reply.error["message"])
        assert int(reply.headers["retry-after"]) >= 1
        shed = {str(sample.labels["reason"]): sample.value for sample in shed_samples(gateway)}
        assert shed["cold_start"] == 1.0


async def test_request_waits_for_room_only_as_long_as_its_rule_says_when_a_replica_came(
    engine: FakeEngine,
) -> None:
    gate = asyncio.Event()
    engine.behaviour = gated(gate)
    table = table_of(slots=1, overload=Overload(max_cold_start_seconds=20, max_queue_seconds=0.3))
    async with gateway_to(table=table) as gateway:
        asked = [asyncio.ensure_future(ask(gateway, post(chat()))) for _ in range(3)]
        await until(lambda: len(gateway.plane.admission) == 3)
        await asyncio.sleep(0.5)
        gateway.plane.set_replicas("p", [address_of(engine, slots=1)])
        done, _ = await asyncio.wait(asked, timeout=5, return_when=asyncio.FIRST_COMPLETED)
        reply = next(iter(done)).result()
        assert (reply.status, reply.error["code"]) == (429, "queue_timeout")
        gate.set()
        replies = await asyncio.gather(*asked)
    assert sorted(reply.status for reply in replies) == [200, 200, 429]


@pytest.mark.pain_3
@pytest.mark.pain_22
async def test_held_requests_go_as_slots_are_free_when_a_replica_comes(engine: FakeEngine) -> None:
    most = 0

    async def serve(call: Call) -> None:
        nonlocal most
        most = max(most, engine.active)
        await asyncio.sleep(0.002)
        await answer()(call)

    engine.behaviour = serve
    async with gateway_to(table=table_of(slots=4)) as gateway:
        asked = [asyncio.ensure_future(ask(gateway, post(chat(text=f"{n}")))) for n in range(500)]
        await until(lambda: len(gateway.plane.admission) == 500, seconds=20)
        gateway.plane.set_replicas("p", [address_of(engine, slots=4)])
        replies = await asyncio.wait_for(asyncio.gather(*asked), 60)
    assert {reply.status for reply in replies} == {200}
    # Four slots and the one request that waits at the replica, so that a free slot is not idle.
    assert most <= 5


@pytest.mark.pain_3
@pytest.mark.pain_22
async def test_held_requests_are_bounded_when_many_come() -> None:
    table = table_of(overload=Overload(max_queued_requests=2, max_cold_start_seconds=0.3))
    async with gateway_to(table=table) as gateway:
        replies = await asyncio.gather(*(ask(gateway, post(chat())) for _ in range(5)))
    codes = sorted(str(reply.error["code"]) for reply in replies)
    assert codes == ["no_replica"] * 2 + ["queue_full"] * 3


async def test_held_request_is_forgotten_when_its_client_leaves() -> None:
    async with gateway_to() as gateway:
        async with client_of(gateway) as client:
            await client.send(post(chat()))
            await until(lambda: len(gateway.plane.admission) == 1)
        await until(lambda: len(gateway.plane.admission) == 0)


@pytest.mark.pain_3
async def test_newcomer_waits_behind_those_that_are_held_when_the_only_replica_is_ejected(
    engine: FakeEngine,
) -> None:
    async with gateway_to(table=table_of(slots=1)) as gateway:
        plane = gateway.plane
        held = asyncio.ensure_future(ask(gateway, post(chat(text="held"))))
        await until(lambda: len(plane.admission) == 1)
        plane.set_replicas("p", [address_of(engine, slots=1)])
        plane.scheduler.failed(address_of(engine).key, now=plane.clock(), hard=True)
        # Without others it would be tried on the ejected replica, for want of a better one.
        newcomer = asyncio.ensure_future(ask(gateway, post(chat(text="newcomer"))))
        assert {reply.status for reply in await asyncio.gather(held, newcomer)} == {200}
    order = [call.json["messages"][0]["content"] for call in engine.calls]  # type: ignore[index]
    assert order == ["held", "newcomer"]


async def test_waiters_are_held_when_the_only_replica_dies_under_others(
    engine: FakeEngine,
) -> None:
    gate = asyncio.Event()
    engine.behaviour = gated(gate)
    table = table_of(slots=1, overload=Overload(max_queue_seconds=1.0, max_cold_start_seconds=20))
    async with gateway_to(engine, table=table, slots=1) as gateway:
        plane = gateway.plane
        asked = [asyncio.ensure_future(ask(gateway, post(chat(text="sent")))) for _ in range(2)]
        await until(lambda: engine.active == 2)
        asked.append(asyncio.ensure_future(ask(gateway, post(chat(text="waits")))))
        await until(lambda: len(plane.admission) == 1)

        def seconds_each() -> float:
            entry = plane.admission.find(plane.admission.waiters()[0])
            assert entry is not None
            place = dataclasses.replace(entry.place, again=False)
            seconds = plane.admission.seconds_behind(1, place, departures=0, now=plane.clock())
            assert seconds is not None
            return seconds

        before = seconds_each()
        await engine.stop()
        # Those who were sent wait again; all are held, longer than for room.
        await until(lambda: len(plane.admission) == 3)
        await asyncio.sleep(1.6)
        assert [True] * 3 == held(gateway)
        # Nor does it teach how fast the queue moves.
        assert seconds_each() - before < 0.5
        gate.set()
        await engine.start()
        replies = await asyncio.wait_for(asyncio.gather(*asked), 15)
    assert [reply.status for reply in replies] == [200, 200, 200]


async def test_others_go_too_when_the_first_at_a_replica_that_is_back_takes_long(
    engine: FakeEngine,
) -> None:
    gate = asyncio.Event()
    async with gateway_to(engine, table=table_of(slots=8), slots=8) as gateway:
        plane = gateway.plane
        plane.scheduler.failed(address_of(engine).key, now=plane.clock(), hard=True)
        engine.behaviour = gated(gate)
        asked = [asyncio.ensure_future(ask(gateway, post(chat(text=f"{n}")))) for n in range(4)]
        await until(lambda: engine.active == 1)
        # They wait for room, not for a replica to come.
        await until(lambda: not any(held(gateway)))
        assert len(plane.admission) == 3
        # No answer is whole yet, and yet the next ones are sent.
        await until(lambda: engine.active == 2, seconds=10.0)
        gate.set()
        replies = await asyncio.wait_for(asyncio.gather(*asked), 10)
    assert [200] * 4 == [reply.status for reply in replies]


def held(gateway: Gateway) -> list[bool]:
    """Whether each of those who wait is held for a replica to come."""
    admission = gateway.plane.admission
    entries = [admission.find(waiter) for waiter in admission.waiters()]
    return [entry.cold for entry in entries if entry is not None]


async def test_waiter_is_held_when_the_table_moves_it_to_a_pool_without_replica(
    engine: FakeEngine, other: FakeEngine
) -> None:
    gate = asyncio.Event()
    engine.behaviour = gated(gate)
    overload = Overload(max_queue_seconds=0.5, max_cold_start_seconds=20)
    async with gateway_to(engine, table=two_pools("p", overload), slots=1) as gateway:
        plane = gateway.plane
        asked = [asyncio.ensure_future(ask(gateway, post(chat()))) for _ in range(2)]
        await until(lambda: engine.active == 2)
        asked.append(asyncio.ensure_future(ask(gateway, post(chat(model="n")))))
        asked.append(asyncio.ensure_future(ask(gateway, post(chat(text="moves")))))
        await until(lambda: len(plane.admission) == 2)
        gateway.set_table(two_pools("q", overload))
        await asyncio.sleep(0.8)
        assert [False, False] == [task.done() for task in asked[2:]]
        plane.set_replicas("q", [address_of(other, slots=1, pool="q")])
        gate.set()
        replies = await asyncio.wait_for(asyncio.gather(*asked), 10)
    assert [200] * 4 == [reply.status for reply in replies]


async def test_begun_stream_waits_for_its_own_pool_when_the_table_changes(
    engine: FakeEngine, other: FakeEngine
) -> None:
    engine.behaviour = word_stream(200, gap=0.02)
    other.behaviour = word_stream(200)
    overload = Overload()
    async with gateway_to(engine, table=two_pools("p", overload)) as gateway:
        plane = gateway.plane
        asked = asyncio.ensure_future(ask(gateway, post(chat(stream=True, max_tokens=200))))
        await until(lambda: engine.active == 1)
        await asyncio.sleep(0.1)
        plane.set_replicas("p", [])
        await engine.stop()
        await until(lambda: len(plane.admission) == 1)
        gateway.set_table(two_pools("q", overload))
        assert [frozenset({"p"})] == plane.admission.lanes()
        plane.set_replicas("p", [address_of(other)])
        reply = await asyncio.wait_for(asked, 10)
        assert (reply.status, reply.complete) == (200, True)
        assert sum(event == DONE for event in events(reply.body)) == 1
        assert sum(gateway.metrics.trouble.continuations.values()) == 1
    assert b"".join(b"w%d " % number for number in range(200)) == words(reply.body)


def words(body: bytes) -> bytes:
    chunks = [json.loads(event[6:]) for event in events(body) if event != DONE]
    contents = [choice["delta"]["content"] for chunk in chunks for choice in chunk["choices"]]
    return "".join(contents).encode()


def two_pools(pool: str, overload: Overload) -> RouteTable:
    """The pools ``p`` and ``q``; the model ``m`` is at ``pool``, ``n`` at ``q``."""
    entry = table_of(slots=1, engine="Simulated").pools["p"]
    pools = {name: dataclasses.replace(entry, name=name) for name in ("p", "q")}
    routes = {
        model: Route(
            policy=model,
            rules=(
                Rule(
                    name="default",
                    targets=(Target(pool=target),),
                    resilience=FAST,
                    overload=overload,
                ),
            ),
        )
        for model, target in (("m", pool), ("n", "q"))
    }
    return RouteTable(pools=pools, routes=routes)


async def test_external_pool_is_answered_at_once_when_its_key_cannot_be_read() -> None:
    table = table_of(backend=BackendType.EXTERNAL)
    async with gateway_to(table=table) as gateway:
        reply = await asyncio.wait_for(ask(gateway, post(chat())), 5)
    assert reply.status == 503


def shed_samples(gateway: object) -> list[object]:
    families = gateway.metrics.queue.families()  # type: ignore[attr-defined]
    return [
        sample
        for family in families
        if family.name == "pointsman_gateway_queue_shed"
        for sample in family.samples
    ]
