"""Everything at once, at random: no request hangs, none is lost, all counters end at zero."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import random

import pytest

from pointsman_api.route_table import Overload
from pointsman_serving.gateway.server import Gateway
from pointsman_serving.routing.types import Api
from tests.gateway.fake_engine import (
    Behaviour,
    Call,
    FakeEngine,
    answer,
    raw,
    reset,
    silence,
    status,
    stream_of,
    stream_then_reset,
    stream_then_silence,
)
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

REQUESTS = 150
WORKERS = 15


def mood(random_: random.Random) -> Behaviour:
    """Mostly healthy."""
    choices: list[Behaviour] = [
        answer("ok", delay=random_.random() * 0.02),
        stream_of(["a", "b"], gap=0.002),
        answer("ok"),
        answer("ok"),
        reset(),
        status(500),
        status(503),
        status(429),
        status(400),
        silence(),
        stream_then_reset(2),
        stream_then_silence(2),
        raw(b"nonsense\r\n\r\n"),
        answer("ok", extra=("connection: close",)),
    ]
    return random_.choice(choices)


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.pain_5
@pytest.mark.pain_19
async def test_chaos_leaves_nothing_behind_when_everything_fails_at_random(seed: int) -> None:
    random_ = random.Random(seed)
    limits = dataclasses.replace(
        FAST, attempts=3, first_token_timeout_seconds=0.15, between_tokens_timeout_seconds=0.15
    )
    table = table_of(
        slots=3,
        resilience=limits,
        overload=Overload(max_queued_requests=4, max_queue_seconds=0.3),
    )
    engines = [FakeEngine(name) for name in "abc"]

    async def moody(call: Call) -> None:
        await mood(random_)(call)

    seen: dict[int, int] = {}
    async with contextlib.AsyncExitStack() as stack:
        for engine in engines:
            engine.behaviour = moody
            await stack.enter_async_context(engine.running())
        gateway = await stack.enter_async_context(gateway_to(*engines, table=table, slots=3))
        stop = asyncio.ensure_future(churn(gateway, engines, random_))
        work = iter(range(REQUESTS))
        await asyncio.wait_for(
            asyncio.gather(*(worker(gateway, work, random_, seen) for _ in range(WORKERS))), 60
        )
        stop.cancel()
        await asyncio.gather(stop, return_exceptions=True)
        for engine in engines:
            engine.behaviour = answer()
        gateway.plane.set_replicas("p", [address_of(engine, slots=3) for engine in engines])
        await until(lambda: not gateway.plane.relays)
        counted = gateway.metrics.series("m", "p", Api.CHAT)
        unrouted = gateway.metrics.series("m", "", Api.CHAT)
        assert sum(counted.codes.values()) + sum(unrouted.codes.values()) == REQUESTS
        # Healthy replicas serve again, however often they have failed before.
        for _ in range(200):
            if (await ask(gateway, post(chat()))).status == 200:
                break
            await asyncio.sleep(0.1)
        assert (await ask(gateway, post(chat(stream=True)))).status == 200
    assert set(seen) <= {200, 400, 429, 499, 503, 504}
    assert seen[200] > 0


async def churn(gateway: Gateway, engines: list[FakeEngine], random_: random.Random) -> None:
    """Replicas leave the list, come back, and are killed."""
    while True:
        await asyncio.sleep(0.05)
        listed = [engine for engine in engines if random_.random() < 0.8]
        gateway.plane.set_replicas("p", [address_of(engine, slots=3) for engine in listed])
        if random_.random() < 0.2:
            victim = random_.choice(engines)
            await victim.stop()
            await victim.start()


async def worker(
    gateway: Gateway, work: object, random_: random.Random, seen: dict[int, int]
) -> None:
    for number in work:  # type: ignore[attr-defined]
        request = post(chat(text=f"{number % 7}", stream=random_.random() < 0.5))
        if random_.random() < 0.15:
            async with client_of(gateway) as client:
                await client.send(request)
                await asyncio.sleep(random_.random() * 0.05)
            code = 499
        else:
            reply = await asyncio.wait_for(ask(gateway, request), 15)
            code = reply.status
            if reply.headers.get("content-type", "").startswith("text/event-stream"):
                assert reply.complete
                assert events(reply.body)[-1] == b"data: [DONE]\n\n"
        seen[code] = seen.get(code, 0) + 1
