"""A first token that threatens to be late is asked of a second replica."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from pointsman_api.route_table import Hedging, LatencyObjective, RouteTable
from pointsman_serving.gateway.server import Gateway
from tests.gateway.fake_engine import Call, FakeEngine, answer, stream_of
from tests.gateway.harness import FAST, ask, chat, gateway_to, post, table_of, until

STREAM = post(chat(text="a question " * 20, stream=True))


def hedged(*, ttft: float = 0.3, percent: float = 50.0, slots: int = 64) -> RouteTable:
    resilience = replace(FAST, hedging=Hedging(enabled=True, budget_percent=percent))
    return table_of(slots=slots, resilience=resilience, slo=LatencyObjective(ttft_seconds=ttft))


class Slow:
    """The first request that comes to any of the engines is answered late."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.first = True

    async def __call__(self, call: Call) -> None:
        seconds, self.first = (self.seconds if self.first else 0.0), False
        await stream_of([call.engine.name, "b"], first_delay=seconds)(call)


async def test_second_replica_answers_when_the_first_is_late() -> None:
    slow = Slow(3.0)
    async with (
        FakeEngine("a", behaviour=slow).running() as a,
        FakeEngine("b", behaviour=slow).running() as b,
    ):
        async with gateway_to(a, b, table=hedged()) as gateway:
            reply = await ask(gateway, STREAM)
            assert (200, 2) == (reply.status, len(a.calls) + len(b.calls))
            late = a if len(a.calls) and a.active else b
            # The loser hears of it at once.
            await until(lambda: late.cancelled == 1, seconds=1.0)
            assert {"sent": 1, "won": 1} == gateway.metrics.trouble.hedges
        assert reply.headers["x-pointsman-replica"] != late.name
        assert b"[DONE]" in reply.body
        assert 1 == reply.body.count(b'"stop"')


async def test_nothing_is_sent_twice_when_the_first_token_comes_in_time() -> None:
    async with (
        FakeEngine("a", behaviour=answer()).running() as a,
        FakeEngine("b", behaviour=answer()).running() as b,
    ):
        async with gateway_to(a, b, table=hedged()) as gateway:
            for _ in range(5):
                assert 200 == (await ask(gateway, STREAM)).status
            await asyncio.sleep(0.4)
            assert {} == gateway.metrics.trouble.hedges
        assert 5 == len(a.calls) + len(b.calls)


async def test_first_replica_wins_when_it_is_sooner_than_the_second() -> None:
    started: list[str] = []

    async def behave(call: Call) -> None:
        started.append(call.engine.name)
        await stream_of(["x"], first_delay=0.6 if len(started) == 1 else 3.0)(call)

    async with (
        FakeEngine("a", behaviour=behave).running() as a,
        FakeEngine("b", behaviour=behave).running() as b,
    ):
        async with gateway_to(a, b, table=hedged()) as gateway:
            reply = await ask(gateway, STREAM)
            assert {"sent": 1} == gateway.metrics.trouble.hedges
        assert started[0] == reply.headers["x-pointsman-replica"]


async def test_request_is_answered_when_one_of_the_two_fails() -> None:
    started: list[str] = []

    async def behave(call: Call) -> None:
        started.append(call.engine.name)
        if len(started) == 1:
            await asyncio.sleep(0.6)
            call.reset()
        else:
            await stream_of(["x"], first_delay=1.0)(call)

    async with (
        FakeEngine("a", behaviour=behave).running() as a,
        FakeEngine("b", behaviour=behave).running() as b,
        gateway_to(a, b, table=hedged()) as gateway,
    ):
        reply = await ask(gateway, STREAM)
    assert (200, 2) == (reply.status, len(started))
    assert b"[DONE]" in reply.body


async def test_nothing_is_sent_twice_when_the_budget_is_spent() -> None:
    async def late(call: Call) -> None:
        await stream_of(["x"], first_delay=4.0)(call)

    long = post(chat(text="word " * 20_000, stream=True))
    async with (
        FakeEngine("a", behaviour=late).running() as a,
        FakeEngine("b", behaviour=late).running() as b,
    ):
        async with gateway_to(a, b, table=hedged(percent=1.0)) as gateway:
            assert 200 == (await ask(gateway, long)).status
            assert {"no_budget": 1} == gateway.metrics.trouble.hedges
        assert 1 == len(a.calls) + len(b.calls)


async def test_nothing_is_sent_twice_when_no_other_replica_has_room() -> None:
    async def late(call: Call) -> None:
        await stream_of(["x"], first_delay=0.5)(call)

    async with FakeEngine("a", behaviour=late).running() as a:
        async with gateway_to(a, table=hedged()) as gateway:
            assert 200 == (await ask(gateway, STREAM)).status
            assert {"no_room": 1} == gateway.metrics.trouble.hedges
        assert 1 == len(a.calls)


@pytest.mark.parametrize("leaves_after", [0.1, 0.5])
async def test_both_replicas_stop_when_the_client_leaves(leaves_after: float) -> None:
    async def silent(call: Call) -> None:
        await asyncio.sleep(30)

    async def leave(gateway: Gateway) -> None:
        task = asyncio.ensure_future(ask(gateway, STREAM))
        await asyncio.sleep(leaves_after)
        task.cancel()

    async with (
        FakeEngine("a", behaviour=silent).running() as a,
        FakeEngine("b", behaviour=silent).running() as b,
        gateway_to(a, b, table=hedged(ttft=0.2)) as gateway,
    ):
        await leave(gateway)
        await until(lambda: a.active + b.active == 0, seconds=2.0)
