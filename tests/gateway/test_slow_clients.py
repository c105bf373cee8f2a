"""Requests that come slowly, in part, or in too many bytes."""

from __future__ import annotations

import asyncio
import contextlib
import time

import pytest

from tests.gateway.fake_engine import FakeEngine, answer, gated
from tests.gateway.harness import ask, chat, client_of, gateway_to, post, until

HALF_HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nhost: g\r\n"
HALF_BODY = post(chat())[:-5]
HALF_ASGI = post(chat(), path="/v1/route/explain")[:-5]


@pytest.mark.parametrize("half", [HALF_HEAD, HALF_BODY, HALF_ASGI])
async def test_request_is_408_when_it_does_not_come_whole(engine: FakeEngine, half: bytes) -> None:
    async with (
        gateway_to(engine, request_read_seconds=0.15) as gateway,
        client_of(gateway) as client,
    ):
        await client.send(half)
        started = time.monotonic()
        reply = await client.answer()
        assert (reply.status, reply.error["code"]) == (408, "request_timeout")
        assert 0.1 < time.monotonic() - started < 2
        assert await client.closed()
        assert gateway.plane.bodies.held == 0


async def test_request_is_408_when_it_drips_for_too_long(engine: FakeEngine) -> None:
    async with (
        gateway_to(engine, request_read_seconds=0.3, body_read_seconds=0.4) as gateway,
        client_of(gateway) as client,
    ):
        await client.send(HALF_BODY[:-40])

        async def drip() -> None:
            for _ in range(40):
                await client.send(b"x")
                await asyncio.sleep(0.05)

        dripping = asyncio.ensure_future(drip())
        assert (await client.answer()).status == 408
        dripping.cancel()


async def test_request_is_answered_when_it_is_slow_but_goes_on(engine: FakeEngine) -> None:
    async with (
        gateway_to(engine, request_read_seconds=1.0) as gateway,
        client_of(gateway) as client,
    ):
        await client.send(post(chat())[:-30])
        for byte in post(chat())[-30:]:
            await asyncio.sleep(0.04)
            await client.send(bytes([byte]))
        assert (await client.answer()).status == 200


async def test_replies_are_not_timed_when_the_request_has_come(engine: FakeEngine) -> None:
    gate = asyncio.Event()
    engine.behaviour = gated(gate)
    async with gateway_to(engine, request_read_seconds=0.05) as gateway:
        asked = asyncio.ensure_future(ask(gateway, post(chat()), pieces=3))
        await asyncio.sleep(0.3)
        gate.set()
        assert (await asked).status == 200


async def test_reply_is_whole_when_half_a_request_follows_on_the_connection(
    engine: FakeEngine,
) -> None:
    engine.behaviour = answer(delay=0.4)
    async with (
        gateway_to(engine, request_read_seconds=0.1) as gateway,
        client_of(gateway) as client,
    ):
        await client.send(post(chat()) + HALF_HEAD)
        assert [(await client.answer()).status for _ in range(2)] == [200, 408]


@pytest.mark.parametrize("half", [b"", HALF_HEAD, HALF_BODY, HALF_ASGI])
async def test_stop_waits_for_nothing_when_a_request_is_half_sent(
    engine: FakeEngine, half: bytes
) -> None:
    async with gateway_to(engine) as gateway, client_of(gateway) as client:
        object.__setattr__(gateway.settings, "drain_seconds", 600.0)
        await client.send(half)
        await asyncio.sleep(0.1)
        started = time.monotonic()
        gateway.stop()
        await asyncio.wait_for(client.reader.read(), 5)
        assert time.monotonic() - started < 1


@pytest.mark.pain_24
async def test_request_is_503_when_the_bodies_of_all_are_too_many(engine: FakeEngine) -> None:
    async with (
        gateway_to(engine, max_held_body_bytes=1000) as gateway,
        client_of(gateway) as client,
    ):
        await client.send(post(chat(text="x" * 800))[:-20])
        await until(lambda: gateway.plane.bodies.held > 700)
        for path in ("/v1/chat/completions", "/v1/route/explain"):
            reply = await ask(gateway, post(chat(text="y" * 400), path=path))
            assert (reply.status, reply.error["code"]) == (503, "gateway_overloaded")
            assert int(reply.headers["retry-after"]) >= 1
        client.close()
        await until(lambda: gateway.plane.bodies.held == 0)
        assert (await ask(gateway, post(chat(text="y" * 400)))).status == 200
        assert gateway.plane.bodies.held == 0


async def test_bodies_are_held_when_their_reply_has_not_begun(engine: FakeEngine) -> None:
    gate = asyncio.Event()
    engine.behaviour = gated(gate)
    async with gateway_to(engine) as gateway:
        asked = asyncio.ensure_future(ask(gateway, post(chat())))
        await until(lambda: engine.active == 1)
        assert gateway.plane.bodies.held == len(post(chat()).partition(b"\r\n\r\n")[2])
        gate.set()
        await asked
        assert gateway.plane.bodies.held == 0


TRAILED = post(chat(), chunked=[5])[:-2]


async def test_trailers_change_nothing_when_they_look_like_headers(engine: FakeEngine) -> None:
    async with gateway_to(engine) as gateway:
        request = TRAILED + b"x-request-id: theirs\r\nx-evil: 1\r\n\r\n"
        for pieces in (1, 9):
            reply = await ask(gateway, request, pieces=pieces)
            assert reply.status == 200
            assert reply.headers["x-request-id"] != "theirs"
    assert not any("x-evil" in call.headers for call in engine.calls)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/route/explain"])
async def test_trailers_are_431_when_they_never_end(engine: FakeEngine, path: str) -> None:
    async with gateway_to(engine) as gateway, client_of(gateway) as client:
        await client.send(post(chat(), chunked=[5], path=path)[:-2] + b"x-long: ")
        await asyncio.sleep(0.05)
        with contextlib.suppress(ConnectionError):
            await client.send(b"x" * 900_000, pieces=30)
        if path == "/v1/route/explain":
            with contextlib.suppress(ConnectionError):
                assert await client.closed()
            assert client.reader.exception() is not None or client.reader.at_eof()
        else:
            assert (await client.answer()).status == 431
    assert engine.calls == []


async def test_large_body_is_read_when_its_head_came_in_pieces(engine: FakeEngine) -> None:
    request = post(chat(text="x" * 400_000))
    async with gateway_to(engine) as gateway, client_of(gateway) as client:
        await client.send(request[:20])
        await asyncio.sleep(0.05)
        await client.send(request[20:])
        assert (await client.answer()).status == 200
