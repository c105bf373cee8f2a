"""Who goes first when there is room, and who is turned away when there is none."""

from __future__ import annotations

import asyncio
import dataclasses

from pointsman_api.route_table import (
    LatencyObjective,
    Overload,
    OverloadAction,
    Route,
    RouteTable,
    Rule,
    Target,
)
from pointsman_serving.gateway.server import Gateway
from tests.gateway.fake_engine import Call, FakeEngine, answer, gated
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


def routes_of(**priorities: int) -> RouteTable:
    """Model names that share the pool ``p`` of one slot, each with a priority."""
    table = table_of(slots=1)
    return RouteTable(
        pools=table.pools,
        routes={
            model: Route(
                policy=model,
                rules=(
                    Rule(
                        name="default",
                        targets=(Target(pool="p"),),
                        overload=Overload(priority=priority),
                        resilience=FAST,
                    ),
                ),
            )
            for model, priority in priorities.items()
        },
    )


class Turns:
    """An engine that answers one request at a time, when it is told to."""

    def __init__(self, engine: FakeEngine, gateway: Gateway, *, model: str) -> None:
        self.engine = engine
        self.gateway = gateway
        self.asked: list[asyncio.Task[Answer]] = []
        self._model = model
        self._turns = asyncio.Semaphore(0)
        engine.behaviour = self._serve

    async def _serve(self, call: Call) -> None:
        await self._turns.acquire()
        await answer()(call)

    async def fill(self) -> None:
        """Ask for as much as the replica takes without letting anybody wait."""
        for _ in range(2):
            before = self.engine.active
            self._ask(self._model, "fill")
            await until(lambda: self.engine.active > before)  # noqa: B023

    async def wait(self, text: str, *headers: str, model: str = "") -> asyncio.Task[Answer]:
        """Ask, and see that it waits."""
        before = len(self.gateway.plane.admission)
        task = self._ask(model or self._model, text, *headers)
        await until(lambda: len(self.gateway.plane.admission) > before)
        return task

    def _ask(self, model: str, text: str, *headers: str) -> asyncio.Task[Answer]:
        request = post(chat(model=model, text=text, max_tokens=100), *headers)
        task = asyncio.ensure_future(ask(self.gateway, request))
        self.asked.append(task)
        return task

    async def order(self) -> list[str]:
        """Let all be served; in which order those came to the engine that had waited."""
        while len(self.gateway.plane.admission):
            before = len(self.engine.calls)
            self._turns.release()
            await until(lambda: len(self.engine.calls) > before)  # noqa: B023
        for _ in self.asked:
            self._turns.release()
        await asyncio.gather(*self.asked)
        texts = [call.json["messages"][0]["content"] for call in self.engine.calls]  # type: ignore[index]
        return [text for text in texts if text != "fill"]


async def test_higher_priority_goes_first_when_rules_share_a_pool(engine: FakeEngine) -> None:
    table = routes_of(batch=-10, m=0, urgent=5)
    async with gateway_to(engine, table=table, slots=1) as gateway:
        turns = Turns(engine, gateway, model="m")
        await turns.fill()
        await turns.wait("b", model="batch")
        for number in range(3):
            await turns.wait(f"m{number}")
        await turns.wait("u", model="urgent")
        assert await turns.order() == ["u", "m0", "m1", "m2", "b"]
        assert {task.result().status for task in turns.asked} == {200}


async def test_newcomer_of_higher_priority_takes_the_room_when_lower_ones_wait(
    engine: FakeEngine,
) -> None:
    async with gateway_to(engine, table=routes_of(m=0, urgent=5), slots=1) as gateway:
        turns = Turns(engine, gateway, model="m")
        await turns.fill()
        await turns.wait("low")
        plane = gateway.plane
        # Room for one appears, and before those who wait are woken a newcomer begins.
        plane.scheduler.set_replicas("p", [address_of(engine, slots=2)], now=plane.clock())
        before = len(engine.calls)
        turns._ask("urgent", "high")
        await until(lambda: len(engine.calls) > before)
        assert await turns.order() == ["high", "low"]


async def test_tenant_gets_its_turn_when_another_has_many_waiting(engine: FakeEngine) -> None:
    async with gateway_to(
        engine, table=routes_of(m=0), slots=1, trust_fairness_header=True
    ) as gateway:
        turns = Turns(engine, gateway, model="m")
        await turns.fill()
        for number in range(6):
            await turns.wait(f"a{number}", "authorization: Bearer a")
        await turns.wait("b", "authorization: Bearer b")
        # The fairness id counts where it is said: the same credential, another share.
        await turns.wait("c", "authorization: Bearer a", "x-llm-d-inference-fairness-id: c")
        assert (await turns.order())[:3] == ["a0", "b", "c"]


async def test_request_goes_first_when_its_own_objective_is_sooner(engine: FakeEngine) -> None:
    async with gateway_to(engine, table=routes_of(m=0), slots=1) as gateway:
        turns = Turns(engine, gateway, model="m")
        await turns.fill()
        await turns.wait("patient")
        await turns.wait("hurried", "x-llm-d-slo-ttft-ms: 10000")
        assert await turns.order() == ["hurried", "patient"]


async def test_other_rules_are_served_when_more_wait_for_a_full_pool_than_are_looked_at(
    engine: FakeEngine, other: FakeEngine
) -> None:
    table = routes_of(m=5)
    pools = {**table.pools, "q": dataclasses.replace(table.pools["p"], name="q")}
    free = Route(policy="free", rules=(Rule(name="default", targets=(Target(pool="q"),)),))
    table = RouteTable(pools=pools, routes={**table.routes, "free": free})
    gate = asyncio.Event()
    engine.behaviour = gated(gate)
    async with gateway_to(engine, table=table, slots=1) as gateway:
        asked = [asyncio.ensure_future(ask(gateway, post(chat()))) for _ in range(100)]
        await until(lambda: len(gateway.plane.admission) == 98)
        held = asyncio.ensure_future(ask(gateway, post(chat(model="free"))))
        await until(lambda: len(gateway.plane.admission) == 99)
        gateway.plane.set_replicas("q", [address_of(other, slots=1, pool="q")])
        assert (await held).status == 200
        assert (await ask(gateway, post(chat(model="free")))).status == 200
        assert len(gateway.plane.admission) == 98
        gate.set()
        assert {reply.status for reply in await asyncio.gather(*asked)} == {200}


async def test_newest_of_the_largest_tenant_loses_its_place_when_the_rule_is_full(
    engine: FakeEngine,
) -> None:
    table = table_of(slots=1, overload=Overload(max_queued_requests=3))
    async with gateway_to(engine, table=table, slots=1) as gateway:
        turns = Turns(engine, gateway, model="m")
        await turns.fill()
        many = [await turns.wait(f"a{number}", "authorization: Bearer a") for number in range(3)]
        turns._ask("m", "b", "authorization: Bearer b")
        lost = await many[-1]
        assert (lost.status, lost.error["code"]) == (429, "queue_full")
        assert int(lost.headers["retry-after"]) >= 1
        assert await turns.order() == ["a0", "b", "a1"]
        text = (await metrics_of(gateway)).splitlines()
        assert 'pointsman_gateway_queue_shed_total{reason="pushed_out"} 1.0' in text
        assert 'pointsman_gateway_queue_wait_seconds_count{priority="0"} 3.0' in text


async def test_newest_of_the_lowest_priority_loses_its_place_when_the_gateway_is_full(
    engine: FakeEngine,
) -> None:
    table = routes_of(batch=-10, m=0)
    async with gateway_to(engine, table=table, slots=1, max_queued_requests=2) as gateway:
        turns = Turns(engine, gateway, model="m")
        await turns.fill()
        await turns.wait("b0", model="batch")
        newest = await turns.wait("b1", model="batch")
        turns._ask("m", "m")
        assert ((await newest).status, (await newest).error["code"]) == (429, "queue_full")
        refused = await ask(gateway, post(chat(model="batch")))
        assert (refused.status, refused.error["code"]) == (429, "queue_full")
        assert await turns.order() == ["m", "b0"]


async def test_newcomers_are_refused_at_once_when_the_queue_is_too_long(
    engine: FakeEngine,
) -> None:
    table = table_of(slots=1, overload=Overload(max_queue_seconds=1.0))
    engine.behaviour = answer(delay=0.2)
    async with gateway_to(engine, table=table, slots=1) as gateway:
        first = [asyncio.ensure_future(ask(gateway, post(chat()))) for _ in range(8)]
        await until(lambda: len(engine.calls) >= 7)
        # Two in every 0.2 s are served, so ten in a second.
        replies = await asyncio.gather(*first, *(ask(gateway, post(chat())) for _ in range(60)))
        text = (await metrics_of(gateway)).splitlines()
    codes = [reply.error["code"] for reply in replies if reply.status != 200]
    assert "queue_too_long" in codes
    assert set(codes) <= {"queue_too_long", "queue_timeout"}
    refused = [reply for reply in replies if reply.status != 200]
    assert {int(reply.headers["retry-after"]) for reply in refused} == {1}
    # Whoever was let into the queue had its turn, but for the error of the estimate.
    assert codes.count("queue_timeout") < codes.count("queue_too_long")
    too_late = float(codes.count("queue_too_long"))
    assert f'pointsman_gateway_queue_shed_total{{reason="too_late"}} {too_late}' in text


async def test_request_is_refused_when_its_objective_passes_in_the_queue_of_a_rule_that_rejects(
    engine: FakeEngine,
) -> None:
    table = table_of(
        slots=1,
        overload=Overload(action=OverloadAction.REJECT),
        slo=LatencyObjective(ttft_seconds=0.3),
    )
    async with gateway_to(engine, table=table, slots=1) as gateway:
        turns = Turns(engine, gateway, model="m")
        await turns.fill()
        reply = await (await turns.wait("late"))
        assert (reply.status, reply.error["code"]) == (429, "objective_unreachable")
        assert await turns.order() == []


async def test_waiters_follow_the_route_table_when_it_changes(
    engine: FakeEngine, other: FakeEngine
) -> None:
    before = routes_of(m=0, moved=0, gone=0)
    pools = {**before.pools, "q": dataclasses.replace(before.pools["p"], name="q")}
    elsewhere = Route(policy="moved", rules=(Rule(name="default", targets=(Target(pool="q"),)),))
    after = RouteTable(pools=pools, routes={"m": before.routes["m"], "moved": elsewhere})
    async with gateway_to(engine, table=before, slots=1) as gateway:
        turns = Turns(engine, gateway, model="m")
        await turns.fill()
        moved = await turns.wait("moved", model="moved")
        gone = await turns.wait("gone", model="gone")
        gateway.set_table(after)
        assert ((await gone).status, (await gone).error["code"]) == (404, "model_not_found")
        gateway.plane.set_replicas("q", [address_of(other, pool="q")])
        assert (await asyncio.wait_for(moved, 5)).headers["x-pointsman-replica"] == "b"
        assert await turns.order() == []


async def metrics_of(gateway: Gateway) -> str:
    async with client_of(gateway) as client:
        await client.send(b"GET /metrics HTTP/1.1\r\nhost: gateway\r\n\r\n")
        return (await client.answer()).body.decode()


async def test_others_are_served_when_one_asks_for_more_tokens_than_there_are(
    engine: FakeEngine,
) -> None:
    async with gateway_to(engine, table=routes_of(m=0), slots=1) as gateway:
        turns = Turns(engine, gateway, model="m")
        await turns.fill()
        most = asyncio.ensure_future(
            ask(gateway, post(chat(text="most", max_tokens=10**400)))  # a number in JSON
        )
        await until(lambda: len(gateway.plane.admission) >= 1)
        for number in range(3):
            await turns.wait(f"a{number}")
        assert sorted(await turns.order()) == ["a0", "a1", "a2", "most"]
        assert {task.result().status for task in turns.asked} == {200}
        assert 200 == (await most).status
