"""A gateway that ends while load balancers still send to it."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator

import pytest

from pointsman_serving.gateway.server import Gateway
from tests.gateway.fake_engine import DONE, FakeEngine, answer, stream_of
from tests.gateway.gateway_process import gateway_process
from tests.gateway.harness import Client, ask, chat, client_of, events, gateway_to, post, until

READY = b"GET /readyz HTTP/1.1\r\nhost: g\r\n\r\n"


@contextlib.asynccontextmanager
async def connected(port: int) -> AsyncIterator[Client]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    client = Client(reader, writer)
    try:
        yield client
    finally:
        client.close()


async def listens(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except ConnectionError:
        return False
    writer.close()
    return True


@pytest.mark.pain_14
async def test_no_request_fails_when_the_gateway_is_ended_under_load(engine: FakeEngine) -> None:
    """Clients that keep their connections, and go elsewhere once it is not ready for a second."""
    engine.behaviour = answer(delay=0.01)
    statuses: list[int] = []
    cut: list[str] = []
    async with gateway_process(engine, lame_duck_seconds=3.0) as gateway:
        unready = asyncio.Event()

        async def probe() -> None:
            while not unready.is_set():
                async with connected(gateway.port) as client:
                    await client.send(READY)
                    if (await client.answer()).status == 503:
                        unready.set()
                await asyncio.sleep(0.05)

        async def load(stream: bool) -> None:
            while not unready.is_set():
                async with connected(gateway.port) as client:
                    while True:
                        await client.send(post(chat(stream=stream)))
                        reply = await client.answer()
                        statuses.append(reply.status)
                        if not reply.complete or b'"error"' in reply.body:
                            cut.append(reply.body.decode())
                        if reply.headers.get("connection") == "close" or unready.is_set():
                            break

        workers = [asyncio.ensure_future(load(n % 2 == 0)) for n in range(8)]
        probing = asyncio.ensure_future(probe())
        await asyncio.sleep(0.5)
        assert not unready.is_set()
        gateway.process.send_signal(signal.SIGTERM)
        # The balancer takes a moment; new connections come until it knows.
        await asyncio.wait_for(asyncio.gather(probing, *workers), 10)
        for _ in range(5):
            async with connected(gateway.port) as client:
                await client.send(post(chat()))
                assert (await client.answer()).status == 200
            await asyncio.sleep(0.1)
        assert await gateway.ended() == 0
    assert set(statuses) == {200}
    assert cut == []


@pytest.mark.pain_14
async def test_readiness_ends_at_once_and_replies_say_close_when_a_stop_begins(
    engine: FakeEngine,
) -> None:
    async with gateway_to(engine, lame_duck_seconds=1.0) as gateway, client_of(gateway) as client:
        await client.send(post(chat()))
        assert "connection" not in (await client.answer()).headers
        gateway.stop()
        ready = await ask(gateway, READY)
        assert (ready.status, ready.json["reason"]) == (503, "the gateway is ending")
        assert ready.headers["connection"] == "close"
        assert (await ask(gateway, b"GET /healthz HTTP/1.1\r\nhost: g\r\n\r\n")).status == 200
        # On the connection that was there, and on a new one.
        await client.send(post(chat()))
        kept = await client.answer()
        assert (kept.status, kept.headers["connection"]) == (200, "close")
        assert await client.closed()
        fresh = await ask(gateway, post(chat(stream=True)))
        assert (fresh.status, fresh.headers["connection"]) == (200, "close")


async def test_pipelined_requests_are_all_answered_when_a_stop_has_begun(
    engine: FakeEngine,
) -> None:
    engine.behaviour = answer(delay=0.05)
    async with gateway_to(engine, lame_duck_seconds=1.0) as gateway, client_of(gateway) as client:
        gateway.stop()
        await client.send(post(chat()) * 3)
        replies = [await client.answer() for _ in range(3)]
        assert [200] * 3 == [reply.status for reply in replies]
        assert ["close" == reply.headers.get("connection") for reply in replies] == [
            False,
            False,
            True,
        ]
        assert await client.closed()


async def test_idle_connections_close_and_nobody_listens_when_the_lame_duck_is_over(
    engine: FakeEngine,
) -> None:
    async with gateway_to(engine, lame_duck_seconds=0.5) as gateway, client_of(gateway) as client:
        await client.send(post(chat()))
        await client.answer()
        port = gateway.port
        gateway.stop()
        await asyncio.sleep(0.2)
        assert await listens(port)
        assert await client.closed()
        assert not await listens(port)


@pytest.mark.pain_14
async def test_stream_ends_whole_when_it_outlasts_the_lame_duck(engine: FakeEngine) -> None:
    engine.behaviour = stream_of(["a"] * 30, gap=0.03)
    async with gateway_to(engine, lame_duck_seconds=0.2) as gateway, client_of(gateway) as client:
        await client.send(post(chat(stream=True)))
        await until(lambda: engine.active == 1)
        gateway.stop()
        reply = await client.answer()
        assert b"error" not in reply.body
        assert events(reply.body)[-1] == DONE
        assert await client.closed()


@pytest.mark.parametrize("wait_seconds", [0.2, 1.0])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_second_signal_ends_at_once_when_a_stop_is_under_way(
    engine: FakeEngine, number: signal.Signals, wait_seconds: float
) -> None:
    """In the lame duck, and in the drain."""
    engine.behaviour = stream_of(["a"] * 5000, gap=0.02)
    async with (
        gateway_process(engine, lame_duck_seconds=0.6, drain_seconds=60.0) as gateway,
        connected(gateway.port) as client,
    ):
        await client.send(post(chat(stream=True)))
        await until(lambda: engine.active == 1)
        gateway.process.send_signal(number)
        await asyncio.sleep(wait_seconds)
        assert gateway.process.returncode is None
        gateway.process.send_signal(signal.SIGTERM)
        reply = await client.answer()
        assert b"gateway_stopping" in events(reply.body)[-2]
        assert events(reply.body)[-1] == DONE
        assert await gateway.ended() == 0


async def test_second_signal_ends_at_once_when_a_client_does_not_read(engine: FakeEngine) -> None:
    engine.behaviour = stream_of(["a" * 60_000] * 2000)
    async with (
        gateway_process(engine, drain_seconds=60.0) as gateway,
        connected(gateway.port) as client,
    ):
        await client.send(post(chat(stream=True)))
        await until(lambda: engine.active == 1)
        await asyncio.sleep(0.3)
        for _ in range(2):
            gateway.process.send_signal(signal.SIGTERM)
            await asyncio.sleep(0.3)
        assert await gateway.ended() == 0


async def test_stop_is_no_second_signal_when_it_is_called_twice(engine: FakeEngine) -> None:
    engine.behaviour = stream_of(["a"] * 10, gap=0.03)
    async with gateway_to(engine) as gateway, client_of(gateway) as client:
        await client.send(post(chat(stream=True)))
        await until(lambda: engine.active == 1)
        stop_twice(gateway)
        assert b"error" not in (await client.answer()).body


def stop_twice(gateway: Gateway) -> None:
    for _ in range(2):
        gateway.stop()
