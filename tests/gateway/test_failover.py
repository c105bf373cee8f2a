"""What clients see when replicas fail: nothing at all, or an honest end."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from contextlib import AsyncExitStack

import pytest

from pointsman_api.route_table import Overload
from pointsman_serving.routing.breaker import BreakerState
from tests.gateway.fake_engine import (
    DONE,
    Behaviour,
    Call,
    FakeEngine,
    answer,
    chat_event,
    head,
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
    ask,
    chat,
    client_of,
    events,
    gateway_to,
    post,
    table_of,
    until,
)

FAILURES: dict[str, Behaviour] = {
    "reset": reset(),
    "status_500": status(500),
    "status_502": status(502),
    "status_503": status(503),
    "status_429": status(429),
    "empty_stream": raw(
        head(200, "content-type: text/event-stream", "transfer-encoding: chunked") + b"0\r\n\r\n"
    ),
}


def fail_first(engines: list[FakeEngine], behaviour: Behaviour) -> None:
    """Whichever gets the next request behaves so; everything else is healthy."""
    shared = [behaviour]
    for engine in engines:
        engine.once = shared


@pytest.mark.parametrize("label", FAILURES)
@pytest.mark.parametrize("stream", [False, True])
async def test_failover_is_invisible_when_a_replica_fails_before_its_answer(
    engine: FakeEngine, other: FakeEngine, label: str, stream: bool
) -> None:
    async with gateway_to(engine, other) as gateway:
        fail_first([engine, other], FAILURES[label])
        reply = await ask(gateway, post(chat(stream=stream)))
        assert reply.status == 200
        assert gateway.metrics.trouble.retries == {label: 1}
    assert len(engine.calls) == len(other.calls) == 1


async def test_answer_comes_when_more_replicas_are_gone_than_there_are_attempts(
    engine: FakeEngine,
) -> None:
    gone = [FakeEngine(name) for name in ("x", "y", "z")]
    async with AsyncExitStack() as stack:
        for each in gone:
            await stack.enter_async_context(each.running())
        async with gateway_to(engine, *gone) as gateway:
            for each in gone:
                await each.stop()
            for number in range(8):
                assert 200 == (await ask(gateway, post(chat(text=f"question {number}")))).status


async def test_retried_request_outlasts_the_queue_s_limit_when_the_others_are_full(
    engine: FakeEngine, other: FakeEngine
) -> None:
    table = table_of(
        slots=1,
        overload=Overload(max_queue_seconds=0.2),
        resilience=dataclasses.replace(FAST, first_token_timeout_seconds=5.0),
    )
    async with gateway_to(engine, other, table=table, slots=1) as gateway:
        fail_first([engine, other], reset(after=0.2))
        engine.behaviour = other.behaviour = answer(delay=1.0)
        # One slot and one of credit at each: the one that fails finds the other replica full.
        replies = await asyncio.gather(
            *(ask(gateway, post(chat(text=f"question {number}"))) for number in range(4))
        )
        assert [200] * 4 == [reply.status for reply in replies]
        assert 1 == sum(gateway.metrics.trouble.retries.values())


async def test_failover_is_invisible_when_a_replica_is_killed(
    engine: FakeEngine, other: FakeEngine
) -> None:
    async with gateway_to(engine, other) as gateway:
        for _ in range(4):
            await ask(gateway, post(chat()))
        assert engine.calls
        await engine.stop()
        for _ in range(4):
            reply = await ask(gateway, post(chat()))
            assert (reply.status, reply.headers["x-pointsman-replica"]) == (200, "b")


@pytest.mark.pain_20
async def test_failover_is_invisible_when_killed_with_requests_waiting_for_tokens(
    engine: FakeEngine, other: FakeEngine
) -> None:
    table = table_of(overload=Overload(max_cold_start_seconds=0.3))
    async with gateway_to(engine, other, table=table) as gateway:
        engine.behaviour = other.behaviour = silence()
        asked = [
            asyncio.ensure_future(ask(gateway, post(chat(text=str(n), stream=n % 2 == 0))))
            for n in range(24)
        ]
        await until(lambda: engine.active + other.active == 24)
        assert engine.active >= 4
        other.behaviour = answer()
        waiting = engine.active
        await engine.stop()
        await until(lambda: sum(task.done() for task in asked) >= waiting)
        replies = [task.result() for task in asked if task.done()]
        assert {reply.status for reply in replies} == {200}
        await other.stop()
        await asyncio.gather(*asked)


@pytest.mark.pain_20
async def test_failover_happens_when_no_first_token_comes_in_time(
    engine: FakeEngine, other: FakeEngine
) -> None:
    limits = dataclasses.replace(FAST, first_token_timeout_seconds=0.2)
    async with gateway_to(engine, other, table=table_of(resilience=limits)) as gateway:
        fail_first([engine, other], silence())
        reply = await ask(gateway, post(chat(stream=True)))
        assert reply.status == 200
        assert gateway.metrics.trouble.retries == {"first_token_timeout": 1}
        await until(lambda: engine.cancelled + other.cancelled == 1)


async def test_failover_leaves_whole_answers_their_time_when_no_byte_comes_for_long(
    engine: FakeEngine,
) -> None:
    limits = dataclasses.replace(
        FAST, first_token_timeout_seconds=0.05, between_tokens_timeout_seconds=0.05
    )
    engine.behaviour = answer(delay=0.3)
    async with gateway_to(engine, table=table_of(resilience=limits)) as gateway:
        reply = await ask(gateway, post(chat()))
    assert (reply.status, len(engine.calls)) == (200, 1)


async def test_failover_ejects_nobody_when_a_whole_answer_exceeds_the_requests_limit(
    engine: FakeEngine,
) -> None:
    limits = dataclasses.replace(FAST, request_timeout_seconds=0.2)
    engine.behaviour = silence()
    async with gateway_to(engine, table=table_of(resilience=limits)) as gateway:
        for _ in range(3):
            reply = await ask(gateway, post(chat()))
            assert (reply.status, reply.error["code"]) == (504, "upstream_timeout")
        (pool,) = gateway.scheduler.snapshot().pools
        assert pool.replicas[0].breaker is BreakerState.CLOSED
    assert len(engine.calls) == 3


@pytest.mark.pain_20
async def test_failover_probes_with_pauses_that_double_when_a_replica_stays_broken(
    engine: FakeEngine, other: FakeEngine
) -> None:
    async def as_before(call: Call) -> None:
        await status(500)(call)

    engine.behaviour = as_before
    async with gateway_to(engine, other) as gateway:
        started = time.monotonic()
        number = 0
        while time.monotonic() - started < 4.5:
            number += 1
            reply = await ask(gateway, post(chat(text=f"{number} {'x' * 300}")))
            assert (reply.status, reply.headers["x-pointsman-replica"]) == (200, "b")
            await asyncio.sleep(0.01)
    # Two until it is ejected, one probe after 1 s and one after 2 s more.
    assert len(engine.calls) == 4


async def test_failover_ends_when_the_upstream_redirects(
    engine: FakeEngine, other: FakeEngine
) -> None:
    async with gateway_to(engine, other) as gateway:
        fail_first([engine, other], status(307, "location: http://elsewhere/"))
        assert (await ask(gateway, post(chat()))).status == 200
        assert gateway.metrics.trouble.retries == {"status_307": 1}


async def test_failover_happens_when_only_comments_come_in_time(
    engine: FakeEngine, other: FakeEngine
) -> None:
    async def pings(call: object) -> None:
        await call.write(  # type: ignore[attr-defined]
            head(200, "content-type: text/event-stream", "transfer-encoding: chunked")
        )
        while True:
            await call.write(b"8\r\n: ping\n\n\r\n")  # type: ignore[attr-defined]
            await asyncio.sleep(0.02)

    limits = dataclasses.replace(FAST, first_token_timeout_seconds=0.2)
    async with gateway_to(engine, other, table=table_of(resilience=limits)) as gateway:
        fail_first([engine, other], pings)
        reply = await ask(gateway, post(chat(stream=True)))
        assert gateway.metrics.trouble.retries == {"first_token_timeout": 1}
        assert reply.body.endswith(DONE)
        assert b"ping" not in reply.body


async def test_failover_ends_with_503_when_every_replica_fails(
    engine: FakeEngine, other: FakeEngine
) -> None:
    engine.behaviour = other.behaviour = status(500)
    async with gateway_to(engine, other) as gateway:
        reply = await ask(gateway, post(chat()))
    assert (reply.status, reply.error["code"]) == (503, "upstream_failed")
    assert int(reply.headers["retry-after"]) >= 1
    assert reply.headers["x-pointsman-replica"] in ("a", "b")
    assert len(engine.calls) == len(other.calls) == 1


async def test_failover_ends_with_504_when_every_replica_is_silent(
    engine: FakeEngine, other: FakeEngine
) -> None:
    engine.behaviour = other.behaviour = silence()
    limits = dataclasses.replace(FAST, first_token_timeout_seconds=0.1)
    async with gateway_to(engine, other, table=table_of(resilience=limits)) as gateway:
        reply = await ask(gateway, post(chat(stream=True)))
    assert (reply.status, reply.error["code"]) == (504, "upstream_timeout")
    assert "2 attempts" in str(reply.error["message"])


async def test_failover_ends_with_429_when_every_replica_limits(engine: FakeEngine) -> None:
    engine.behaviour = status(429, "retry-after: 17")
    async with gateway_to(engine) as gateway:
        reply = await ask(gateway, post(chat()))
    assert (reply.status, reply.headers["retry-after"]) == (429, "17")
    assert reply.error["code"] == "upstream_rate_limited"


async def test_failover_is_not_tried_when_one_attempt_is_allowed(
    engine: FakeEngine, other: FakeEngine
) -> None:
    engine.behaviour = other.behaviour = status(503)
    limits = dataclasses.replace(FAST, attempts=1)
    async with gateway_to(engine, other, table=table_of(resilience=limits)) as gateway:
        assert (await ask(gateway, post(chat()))).status == 503
    assert len(engine.calls) + len(other.calls) == 1


async def test_failover_ends_with_503_when_no_replica_comes() -> None:
    table = table_of(overload=Overload(max_cold_start_seconds=0.2))
    async with gateway_to(table=table) as gateway:
        reply = await ask(gateway, post(chat()))
    assert (reply.status, reply.error["code"]) == (503, "no_replica")
    assert "retry-after" in reply.headers
    assert "x-pointsman-replica" not in reply.headers


async def test_failover_ends_with_503_when_nothing_listens(engine: FakeEngine) -> None:
    table = table_of(overload=Overload(max_cold_start_seconds=0.3))
    async with gateway_to(engine, table=table) as gateway:
        await engine.stop()
        reply = await ask(gateway, post(chat()))
    assert reply.status == 503
    assert "cannot connect" in str(reply.error["message"])


@pytest.mark.parametrize("partial", [b"", b'data: {"choices":[{"del'])
async def test_stream_ends_with_the_error_event_when_the_replica_dies(
    engine: FakeEngine, partial: bytes
) -> None:
    engine.behaviour = stream_then_reset(3, partial)
    async with gateway_to(engine) as gateway, client_of(gateway) as client:
        await client.send(post(chat(stream=True)))
        reply = await client.answer()
        found = events(reply.body)
        assert found[:3] == [chat_event(f"w{n} ") for n in range(3)]
        assert found[3].startswith(b'data: {"error":{"message":"The stream broke')
        assert found[4:] == [DONE]
        assert (reply.status, reply.complete) == (200, True)
        # The connection can be used again: the reply ended by its framing.
        engine.behaviour = answer()
        await client.send(post(chat()))
        assert (await client.answer()).status == 200


@pytest.mark.pain_18
async def test_stream_ends_with_the_error_event_when_it_stops_without_done(
    engine: FakeEngine,
) -> None:
    body = chat_event("a") + chat_event("b")
    engine.behaviour = raw(head(200, "content-type: text/event-stream") + body, close=True)
    async with gateway_to(engine) as gateway:
        reply = await ask(gateway, post(chat(stream=True)))
    found = events(reply.body)
    assert found[:2] == [chat_event("a"), chat_event("b")]
    assert b'"code":"stream_broken"' in found[2]
    assert found[3] == DONE


@pytest.mark.pain_18
async def test_stream_ends_with_the_error_event_when_tokens_stop_coming(
    engine: FakeEngine,
) -> None:
    engine.behaviour = stream_then_silence(2)
    limits = dataclasses.replace(FAST, between_tokens_timeout_seconds=0.15)
    async with gateway_to(engine, table=table_of(resilience=limits)) as gateway:
        reply = await ask(gateway, post(chat(stream=True)))
        assert b"nothing came for 0.15 s" in events(reply.body)[2]
        await until(lambda: engine.cancelled == 1)


async def test_stream_goes_on_when_each_gap_is_within_the_limit(engine: FakeEngine) -> None:
    engine.behaviour = stream_of(["a"] * 20, gap=0.1)
    limits = dataclasses.replace(FAST, between_tokens_timeout_seconds=1.2)
    async with gateway_to(engine, table=table_of(resilience=limits)) as gateway:
        reply = await ask(gateway, post(chat(stream=True)))
    assert b"error" not in reply.body


async def test_stream_ends_with_the_error_event_when_the_whole_takes_too_long(
    engine: FakeEngine,
) -> None:
    engine.behaviour = stream_of(["a"] * 100, gap=0.05)
    limits = dataclasses.replace(FAST, request_timeout_seconds=0.4)
    async with gateway_to(engine, table=table_of(resilience=limits)) as gateway:
        reply = await ask(gateway, post(chat(stream=True)))
    assert b"longer than 0.4 s" in events(reply.body)[-2]
    assert events(reply.body)[-1] == DONE


@pytest.mark.parametrize("framing", ["content-length: 1000", "transfer-encoding: chunked"])
@pytest.mark.pain_18
async def test_reply_is_visibly_cut_when_the_replica_dies_in_its_middle(
    engine: FakeEngine, framing: str
) -> None:
    async def half(call: object) -> None:
        body = b"64\r\n" + b"x" * 100 + b"\r\n" if "chunked" in framing else b"x" * 100
        await call.write(head(200, "content-type: application/json", framing) + body)  # type: ignore[attr-defined]
        await asyncio.sleep(0.05)
        call.reset()  # type: ignore[attr-defined]

    engine.behaviour = half
    async with gateway_to(engine) as gateway:
        reply = await ask(gateway, post(chat()))
    assert reply.status == 200
    assert not reply.complete


@pytest.mark.pain_14
async def test_stop_ends_streams_with_the_error_event_when_they_outlast_the_drain(
    engine: FakeEngine,
) -> None:
    engine.behaviour = stream_of(["a"] * 400, gap=0.02)
    async with gateway_to(engine) as gateway, client_of(gateway) as client:
        await client.send(post(chat(stream=True)))
        await until(lambda: engine.active == 1)
        gateway.stop()
        reply = await client.answer()
        assert b"gateway_stopping" in events(reply.body)[-2]
        assert events(reply.body)[-1] == DONE
        assert reply.complete


@pytest.mark.pain_14
async def test_stop_waits_when_a_stream_ends_within_the_drain(engine: FakeEngine) -> None:
    engine.behaviour = stream_of(["a"] * 10, gap=0.03)
    async with gateway_to(engine) as gateway, client_of(gateway) as client:
        await client.send(post(chat(stream=True)))
        await until(lambda: engine.active == 1)
        gateway.stop()
        reply = await client.answer()
        assert b"error" not in reply.body
        assert events(reply.body)[-1] == DONE
