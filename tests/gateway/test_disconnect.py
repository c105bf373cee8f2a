"""Clients that leave or read slowly."""

from __future__ import annotations

import asyncio
import contextlib
import gc

import pytest

from pointsman_serving.gateway.body import RequestBody
from pointsman_serving.routing.types import Api
from tests.gateway.fake_engine import (
    DONE,
    FakeEngine,
    silence,
    stream_of,
    stream_then_silence,
    word_stream,
)
from tests.gateway.harness import chat, client_of, events, gateway_to, post, until


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.pain_5
async def test_disconnect_reaches_the_replica_promptly_when_20_clients_close(
    engine: FakeEngine, stream: bool
) -> None:
    engine.behaviour = stream_of(["x"] * 2000, gap=0.02) if stream else silence()
    async with gateway_to(engine) as gateway:
        async with contextlib.AsyncExitStack() as stack:
            for number in range(20):
                client = await stack.enter_async_context(client_of(gateway))
                await client.send(post(chat(text=str(number), stream=stream)))
            await until(lambda: engine.active == 20)
            if stream:
                await asyncio.sleep(0.05)
        took = await until(lambda: engine.open == 0)
        await until(lambda: engine.cancelled == 20)
        series = gateway.metrics.series("m", "p", Api.CHAT)
        assert series.codes == {499: 20}
    # 20 ms on an idle machine; the bound leaves room for a busy one.
    assert took < 1.0


async def test_disconnect_is_noticed_when_the_client_closes_its_half(engine: FakeEngine) -> None:
    engine.behaviour = silence()
    async with gateway_to(engine) as gateway, client_of(gateway) as client:
        await client.send(post(chat()))
        await until(lambda: engine.active == 1)
        client.writer.close()
        await until(lambda: engine.open == 0)


async def test_disconnect_costs_nothing_when_the_request_is_not_whole(engine: FakeEngine) -> None:
    async with gateway_to(engine) as gateway:
        for cut in (10, 60, 150):
            async with client_of(gateway) as client:
                await client.send(post(chat(text="x" * 200))[:cut])
                await asyncio.sleep(0.02)
    assert engine.calls == []


async def test_backpressure_stops_the_replica_when_the_client_reads_slowly(
    engine: FakeEngine,
) -> None:
    words = ["y" * 60_000] * 600
    written = 0

    async def flood(call: object) -> None:
        nonlocal written
        from tests.gateway.fake_engine import STREAM_HEAD, chat_event, chunk

        await call.write(STREAM_HEAD)  # type: ignore[attr-defined]
        for word in words:
            await call.write(chunk(chat_event(word)))  # type: ignore[attr-defined]
            written += 1
        await call.write(chunk(chat_event("", "stop")) + chunk(DONE) + b"0\r\n\r\n")  # type: ignore[attr-defined]

    engine.behaviour = flood
    async with gateway_to(engine) as gateway:
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port, limit=1 << 16)
        writer.write(post(chat(stream=True)))
        await asyncio.sleep(0.3)
        seen = -1
        while seen != written:
            seen = written
            await asyncio.sleep(0.3)
        # Socket buffers hold some megabytes; the rest of the 36 MB has not been written.
        assert written < 450
        from tests.gateway.harness import Client

        reply = await Client(reader, writer).answer()
        writer.close()
    assert reply.complete
    assert len(events(reply.body)) == 602


@pytest.mark.pain_24
async def test_request_body_is_let_go_when_the_reply_has_begun(engine: FakeEngine) -> None:
    engine.behaviour = stream_then_silence(1)
    async with gateway_to(engine) as gateway, client_of(gateway) as client:
        text = "z" * 1_000_000
        gc.collect()
        await client.send(post(chat(text=text, stream=True)))
        await asyncio.wait_for(client.reader.readuntil(b"data: "), 10)
        engine.calls.clear()
        gc.collect()
        held = [each for each in gc.get_objects() if isinstance(each, RequestBody)]
        assert held
        assert all(not body.raw and not body.fields for body in held)


@pytest.mark.pain_19
async def test_tokens_are_counted_when_the_client_leaves_in_the_middle(engine: FakeEngine) -> None:
    engine.behaviour = word_stream(50, gap=0.02)
    async with gateway_to(engine) as gateway:
        async with client_of(gateway) as client:
            await client.send(post(chat(stream=True)))
            await client.reader.readuntil(b"w4 ")
        await until(lambda: not gateway.plane.relays)
        series = gateway.metrics.series("m", "p", Api.CHAT)
        assert {499: 1} == series.codes
        assert 5 <= series.completion_tokens.total <= 10
