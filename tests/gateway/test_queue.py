"""Requests that wait for a replica: bounded, in order, and gone when their client is."""

from __future__ import annotations

import asyncio
import dataclasses

import pytest

from pointsman_api.route_table import (
    Overload,
    Route,
    RouteTable,
    Strategy,
    StrategyType,
    Target,
)
from pointsman_serving.gateway.server import Gateway
from tests.gateway.fake_engine import Behaviour, Call, FakeEngine, answer, gated, silence
from tests.gateway.harness import (
    FAST,
    Answer,
    address_of,
    ask,
    chat,
    client_of,
    gateway_to,
    post,
    table_of,
    until,
)


async def fill(
    gateway: Gateway, engine: FakeEngine, behaviour: Behaviour
) -> list[asyncio.Task[Answer]]:
    """Ask until somebody waits in the queue; returns all that were asked."""
    engine.behaviour = behaviour
    asked: list[asyncio.Task[Answer]] = []
    while not len(gateway.plane.admission):
        before = engine.active
        asked.append(asyncio.ensure_future(ask(gateway, post(chat(text=f"fill {len(asked)}")))))
        await until(lambda: engine.active > before or len(gateway.plane.admission) > 0)  # noqa: B023
    return asked


async def test_queue_serves_in_order_when_slots_are_freed(engine: FakeEngine) -> None:
    turns = asyncio.Semaphore(0)

    async def one_by_one(call: Call) -> None:
        await turns.acquire()
        await answer()(call)

    async with gateway_to(engine, slots=1) as gateway:
        asked = await fill(gateway, engine, one_by_one)
        for number in range(5):
            asked.append(asyncio.ensure_future(ask(gateway, post(chat(text=f"wait {number}")))))
            await until(lambda: len(gateway.plane.admission) == number + 2)  # noqa: B023
        for _ in asked:
            before = len(engine.calls)
            turns.release()
            if len(gateway.plane.admission):
                await until(lambda: len(engine.calls) > before)  # noqa: B023
        assert {reply.status for reply in await asyncio.gather(*asked)} == {200}
    order = [call.json["messages"][0]["content"] for call in engine.calls]  # type: ignore[index]
    assert order[-5:] == [f"wait {number}" for number in range(5)]


async def test_queue_refuses_when_it_is_full(engine: FakeEngine) -> None:
    gate = asyncio.Event()
    table = table_of(slots=1, overload=Overload(max_queued_requests=2))
    async with gateway_to(engine, table=table, slots=1) as gateway:
        asked = await fill(gateway, engine, gated(gate))
        asked.append(asyncio.ensure_future(ask(gateway, post(chat()))))
        await until(lambda: len(gateway.plane.admission) == 2)
        refused = await ask(gateway, post(chat()))
        assert (refused.status, refused.error["code"]) == (429, "queue_full")
        assert int(refused.headers["retry-after"]) >= 1
        assert "x-pointsman-replica" not in refused.headers
        gate.set()
        assert {reply.status for reply in await asyncio.gather(*asked)} == {200}


async def test_queue_refuses_when_the_time_is_over(engine: FakeEngine) -> None:
    gate = asyncio.Event()
    table = table_of(slots=1, overload=Overload(max_queue_seconds=0.2))
    async with gateway_to(engine, table=table, slots=1) as gateway:
        asked = await fill(gateway, engine, gated(gate))
        reply = await asked[-1]
        assert (reply.status, reply.error["code"]) == (429, "queue_timeout")
        assert "0.2 s" in str(reply.error["message"])
        gate.set()
        await asyncio.gather(*asked)


async def test_queue_forgets_clients_when_they_leave(engine: FakeEngine) -> None:
    gate = asyncio.Event()
    async with gateway_to(engine, slots=1) as gateway:
        asked = await fill(gateway, engine, gated(gate))
        async with client_of(gateway) as client:
            await client.send(post(chat(text="leaves")))
            await until(lambda: len(gateway.plane.admission) == 2)
        await until(lambda: len(gateway.plane.admission) == 1)
        gate.set()
        await asyncio.gather(*asked)
    sent = [call.json["messages"][0]["content"] for call in engine.calls]  # type: ignore[index]
    assert "leaves" not in sent


async def test_queue_moves_on_when_a_replica_joins(engine: FakeEngine, other: FakeEngine) -> None:
    gate = asyncio.Event()
    async with gateway_to(engine, slots=1) as gateway:
        asked = await fill(gateway, engine, gated(gate))
        other.behaviour = answer("from b")
        addresses = [address_of(engine, slots=1), address_of(other, slots=1)]
        gateway.plane.set_replicas("p", addresses)
        assert (await asked[-1]).headers["x-pointsman-replica"] == "b"
        gate.set()
        await asyncio.gather(*asked)


@pytest.mark.pain_3
async def test_queue_holds_longer_when_the_last_replica_leaves(
    engine: FakeEngine, other: FakeEngine
) -> None:
    gate = asyncio.Event()
    table = table_of(slots=1, overload=Overload(max_queue_seconds=0.3))
    async with gateway_to(engine, table=table, slots=1) as gateway:
        asked = await fill(gateway, engine, gated(gate))
        gateway.plane.set_replicas("p", [])
        await asyncio.sleep(0.5)
        assert not asked[-1].done()
        gateway.plane.set_replicas("p", [address_of(other, slots=1)])
        assert (await asked[-1]).headers["x-pointsman-replica"] == "b"
        gate.set()
        assert {reply.status for reply in await asyncio.gather(*asked)} == {200}


async def test_queue_frees_its_slot_when_a_running_client_leaves(engine: FakeEngine) -> None:
    table = table_of(slots=1, overload=Overload(max_cold_start_seconds=0.3))
    async with gateway_to(engine, slots=1, table=table) as gateway:
        engine.behaviour = silence()
        async with client_of(gateway) as client:
            await client.send(post(chat(stream=True)))
            await until(lambda: engine.active == 1)
            asked = []
            while not len(gateway.plane.admission):
                before = engine.active
                asked.append(asyncio.ensure_future(ask(gateway, post(chat(text=str(len(asked)))))))
                await until(lambda: engine.active > before or len(gateway.plane.admission) > 0)  # noqa: B023
            engine.behaviour = answer()
        # The client has left: its slot goes to the one who waits.
        assert (await asked[-1]).status == 200
        await engine.stop()
        await asyncio.gather(*asked)


def table_of_two(*, slots: int = 1) -> RouteTable:
    """Two pools, ``p`` and ``q``; each conversation belongs to one of them."""
    one = table_of(slots=slots, strategy=Strategy(type=StrategyType.WEIGHTED))
    route = one.routes["m"]
    rule = dataclasses.replace(route.rules[0], targets=(Target(pool="p"), Target(pool="q")))
    pools = {**one.pools, "q": dataclasses.replace(one.pools["p"], name="q")}
    return RouteTable(pools=pools, routes={"m": Route(policy="policy", rules=(rule,))})


async def test_queue_passes_over_who_waits_for_a_full_pool_when_another_has_room(
    engine: FakeEngine, other: FakeEngine
) -> None:
    gate = asyncio.Event()
    engine.behaviour = gated(gate)
    async with gateway_to(engine, table=table_of_two(), slots=1) as gateway:
        gateway.plane.set_replicas("q", [address_of(other, slots=1, pool="q")])
        asked = []
        answered = 0
        for number in range(60):
            task = asyncio.ensure_future(ask(gateway, post(chat(text=f"talk {number}"))))
            asked.append(task)
            waiting = engine.active + len(gateway.plane.admission)
            await until(
                lambda: (
                    task.done()  # noqa: B023
                    or engine.active + len(gateway.plane.admission) > waiting  # noqa: B023
                )
            )
            if task.done() and len(gateway.plane.admission):
                answered += 1
                assert task.result().headers["x-pointsman-pool"] == "q"
        # Half of the conversations are of the idle pool, and none of them waited.
        assert answered > 5
        assert len(gateway.plane.admission) > 5
        gate.set()
        assert {reply.status for reply in await asyncio.gather(*asked)} == {200}
    order = [call.json["messages"][0]["content"] for call in engine.calls]  # type: ignore[index]
    in_order = sorted(order, key=lambda text: int(text.split()[1]))
    # Two are on their way at once, and may arrive in either order.
    assert all(abs(order.index(text) - place) <= 2 for place, text in enumerate(in_order))


async def test_queue_frees_the_other_pools_waiters_when_its_head_cannot_go(
    engine: FakeEngine, other: FakeEngine
) -> None:
    gates = {"a": asyncio.Event(), "b": asyncio.Event()}
    engine.behaviour, other.behaviour = gated(gates["a"]), gated(gates["b"])
    async with gateway_to(engine, table=table_of_two(), slots=1) as gateway:
        gateway.plane.set_replicas("q", [address_of(other, slots=1, pool="q")])
        asked = [
            asyncio.ensure_future(ask(gateway, post(chat(text=f"talk {n}")))) for n in range(30)
        ]
        await until(
            lambda: engine.active + other.active + len(gateway.plane.admission) == len(asked)
        )
        # Whichever pool the head waits for, the other one's waiters go when that one is free.
        gates["b"].set()
        await until(lambda: len(other.calls) > 8)
        await until(lambda: sum(task.done() for task in asked) == len(other.calls))
        gates["a"].set()
        assert {reply.status for reply in await asyncio.gather(*asked)} == {200}


async def test_queue_is_not_overtaken_when_the_head_could_use_the_room(
    engine: FakeEngine,
) -> None:
    gate = asyncio.Event()
    async with gateway_to(engine, slots=1) as gateway:
        asked = await fill(gateway, engine, gated(gate))
        plane = gateway.plane
        # Room for one appears, and before those who wait are woken a newcomer begins.
        plane.scheduler.set_replicas("p", [address_of(engine, slots=2)], now=plane.clock())
        newcomer = asyncio.ensure_future(ask(gateway, post(chat(text="newcomer"))))
        await until(lambda: len(engine.calls) == len(asked))
        assert len(plane.admission) == 1
        assert "newcomer" not in str([call.body for call in engine.calls])
        gate.set()
        await asyncio.gather(*asked, newcomer)


async def test_queue_keeps_a_failed_request_when_the_other_replica_is_full(
    engine: FakeEngine, other: FakeEngine
) -> None:
    gate = asyncio.Event()
    limits = dataclasses.replace(FAST, attempts=3)
    table = table_of(slots=1, resilience=limits)
    async with gateway_to(engine, other, table=table, slots=1) as gateway:
        engine.behaviour = other.behaviour = gated(gate)
        asked = []
        while not len(gateway.plane.admission):
            before = engine.active + other.active
            asked.append(asyncio.ensure_future(ask(gateway, post(chat(text=f"q {len(asked)}")))))
            await until(
                lambda: (
                    engine.active + other.active > before  # noqa: B023
                    or len(gateway.plane.admission) > 0
                )
            )
        await engine.stop()
        gate.set()
        assert {reply.status for reply in await asyncio.gather(*asked)} == {200}
