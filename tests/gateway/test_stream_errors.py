"""Engines that say under status 200 that they failed."""

from __future__ import annotations

import asyncio
import json

import pytest

from pointsman_serving.gateway.phase import Phase
from pointsman_serving.routing.breaker import BreakerState
from tests.gateway.fake_engine import (
    DONE,
    STREAM_HEAD,
    Behaviour,
    Call,
    FakeEngine,
    chat_event,
    chunk,
)
from tests.gateway.harness import ask, chat, events, gateway_to, post, until


def error_event(code: object = 500, kind: str = "InternalServerError") -> bytes:
    error = {"message": "EngineCore died", "type": kind, "param": None, "code": code}
    return b"data: " + json.dumps({"error": error}).encode() + b"\n\n"


def stream(*sent: bytes) -> Behaviour:
    async def run(call: Call) -> None:
        await call.write(STREAM_HEAD)
        for event in sent:
            await call.write(chunk(event))
        await call.write(b"0\r\n\r\n")

    return run


@pytest.mark.parametrize("code", [500, "500", None, 503])
async def test_error_event_is_a_failed_attempt_when_it_comes_first(
    engine: FakeEngine, other: FakeEngine, code: object
) -> None:
    async with gateway_to(engine, other) as gateway:
        engine.once = other.once = [stream(error_event(code), DONE)]
        reply = await ask(gateway, post(chat(stream=True)))
        assert gateway.metrics.trouble.retries == {"error_event": 1}
    assert reply.status == 200
    assert b"error" not in reply.body
    assert events(reply.body)[-1] == DONE


async def test_error_event_is_503_when_every_replica_fails(engine: FakeEngine) -> None:
    engine.behaviour = stream(error_event(), DONE)
    async with gateway_to(engine) as gateway:
        reply = await ask(gateway, post(chat(stream=True)))
    assert (reply.status, reply.error["code"]) == (503, "upstream_failed")
    assert "EngineCore died" in str(reply.error["message"])


@pytest.mark.parametrize(
    ("event", "status"),
    [(error_event(404), 404), (error_event(None, "invalid_request_error"), 400)],
)
async def test_error_event_is_the_replys_status_when_the_request_is_at_fault(
    engine: FakeEngine, other: FakeEngine, event: bytes, status: int
) -> None:
    engine.behaviour = other.behaviour = stream(event, DONE)
    async with gateway_to(engine, other) as gateway:
        reply = await ask(gateway, post(chat(stream=True)))
    assert (reply.status, reply.error["message"]) == (status, "EngineCore died")
    assert len(engine.calls) + len(other.calls) == 1


@pytest.mark.pain_18
async def test_error_event_is_passed_on_and_counts_when_tokens_came_before(
    engine: FakeEngine,
) -> None:
    sent = [chat_event("a"), chat_event("b"), error_event(), DONE]

    gate = asyncio.Event()

    async def run(call: Call) -> None:
        await call.write(STREAM_HEAD + chunk(sent[0]))
        await gate.wait()
        for event in sent[1:]:
            await call.write(chunk(event))
        await call.write(b"0\r\n\r\n")

    engine.behaviour = run
    async with gateway_to(engine) as gateway:
        asked = [
            asyncio.ensure_future(ask(gateway, post(chat(text=str(n), stream=True))))
            for n in range(2)
        ]
        await until(
            lambda: sum(relay.phase is Phase.REPLYING for relay in gateway.plane.relays) == 2
        )
        gate.set()
        for reply in await asyncio.gather(*asked):
            assert reply.body == b"".join(sent)
        # Neither of the two had a success after it.
        (pool,) = gateway.scheduler.snapshot().pools
        assert pool.replicas[0].breaker is BreakerState.OPEN
        codes = [code for one in gateway.metrics._series.values() for code in one.codes]
        assert codes == [500]


async def test_stream_is_untouched_when_the_first_event_only_mentions_an_error(
    engine: FakeEngine,
) -> None:
    event = b'data: {"choices":[{"delta":{"content":"x"}}],"error":null}\n\n'
    both = b'data: {"error":{"message":"x"},"choices":[]}\n\n'
    async with gateway_to(engine) as gateway:
        for first in (event, both):
            engine.behaviour = stream(first, chat_event("", "stop"), DONE)
            reply = await ask(gateway, post(chat(stream=True)))
            assert reply.body == first + chat_event("", "stop") + DONE
