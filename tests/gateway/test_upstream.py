"""The replica's side of the wire: kept connections, and how much of a reply came back."""

from __future__ import annotations

import asyncio
import time

import pytest

from pointsman_serving.gateway.connection import UpstreamConnection
from pointsman_serving.gateway.upstream import Upstreams
from tests.gateway.fake_engine import FakeEngine, answer, chat_object, head, raw, reset, stream_of
from tests.gateway.harness import address_of, ask, chat, client_of, gateway_to, post, until


async def test_upstream_connection_is_used_again_when_the_reply_allows(engine: FakeEngine) -> None:
    async with gateway_to(engine) as gateway:
        for stream in (False, True, False):
            assert (await ask(gateway, post(chat(stream=stream)))).status == 200
    assert engine.connections == 1


async def test_upstream_connection_is_not_used_again_when_the_replica_closes(
    engine: FakeEngine,
) -> None:
    engine.behaviour = answer(extra=("connection: close",))
    async with gateway_to(engine) as gateway:
        for _ in range(3):
            assert (await ask(gateway, post(chat()))).status == 200
        assert gateway.plane.upstreams.open_connections == 0
    assert engine.connections == 3


async def test_upstream_idle_connection_is_closed_when_its_time_is_over(
    engine: FakeEngine,
) -> None:
    async with gateway_to(engine, upstream_idle_seconds=0.1) as gateway:
        await ask(gateway, post(chat()))
        assert engine.open == 1
        await until(lambda: engine.open == 0)
        assert (await ask(gateway, post(chat()))).status == 200


async def test_upstream_request_is_sent_anew_when_a_kept_connection_is_stale(
    engine: FakeEngine,
) -> None:
    async with gateway_to(engine) as gateway:
        await ask(gateway, post(chat()))
        # The replica takes the request on the kept connection and resets it without a byte.
        engine.once = [reset()]
        reply = await ask(gateway, post(chat()))
        assert reply.status == 200
        assert gateway.metrics.trouble.retries == {}
    assert len(engine.calls) == 3
    assert engine.connections == 2


async def test_upstream_idle_connection_is_noticed_when_the_replica_closes_it(
    engine: FakeEngine,
) -> None:
    async with gateway_to(engine) as gateway:
        await ask(gateway, post(chat()))
        await engine.stop()
        await until(lambda: gateway.plane.upstreams.open_connections == 0)
        await engine.start()
        assert (await ask(gateway, post(chat()))).status == 200


async def test_upstream_connection_is_dropped_when_the_replica_speaks_unasked(
    engine: FakeEngine,
) -> None:
    async def chatter(call: object) -> None:
        await answer()(call)  # type: ignore[arg-type]
        await asyncio.sleep(0.02)
        await call.write(head(200, "content-length: 0"))  # type: ignore[attr-defined]

    engine.behaviour = chatter
    async with gateway_to(engine) as gateway:
        assert (await ask(gateway, post(chat()))).status == 200
        await until(lambda: engine.open == 0)
        assert (await ask(gateway, post(chat()))).status == 200


async def test_upstream_second_reply_is_never_relayed_when_two_come_at_once(
    engine: FakeEngine,
) -> None:
    async def two(call: object) -> None:
        body = chat_object(call, "right")  # type: ignore[arg-type]
        one = head(200, f"content-length: {len(body)}") + body
        await call.write(one + one.replace(b"right", b"wrong"))  # type: ignore[attr-defined]

    engine.behaviour = two
    async with gateway_to(engine) as gateway, client_of(gateway) as client:
        for _ in range(2):
            await client.send(post(chat()))
            assert b"right" in (await client.answer()).body
    assert engine.connections == 2


async def test_upstream_garbage_is_a_failure_when_it_is_no_http(engine: FakeEngine) -> None:
    engine.behaviour = raw(b"SSH-2.0-OpenSSH_9.6\r\n")
    async with gateway_to(engine) as gateway:
        reply = await ask(gateway, post(chat()))
    assert (reply.status, reply.error["code"]) == (503, "upstream_failed")


async def test_upstream_idle_connections_are_few_when_a_burst_is_over(engine: FakeEngine) -> None:
    engine.behaviour = answer(delay=0.1)
    async with gateway_to(engine, upstream_idle_connections=3) as gateway:
        await asyncio.gather(*(ask(gateway, post(chat())) for _ in range(12)))
        assert engine.connections == 12
        await until(lambda: engine.open == 3)


async def test_upstream_idle_connections_close_when_their_replica_leaves(
    engine: FakeEngine,
) -> None:
    engine.behaviour = stream_of(["a", "b", "c"], gap=0.1)
    async with gateway_to(engine) as gateway:
        await asyncio.gather(*(ask(gateway, post(chat(stream=True))) for _ in range(3)))
        assert engine.open == 3
        running = asyncio.ensure_future(ask(gateway, post(chat(stream=True))))
        await until(lambda: engine.active == 1)
        gateway.plane.set_replicas("p", [])
        await until(lambda: engine.open == 1)
        # What runs on a replica that leaves the list ends as if nothing had happened.
        assert (await running).body.endswith(b"data: [DONE]\n\n")
        await until(lambda: engine.open == 0)


@pytest.mark.pain_5
async def test_upstream_connection_is_not_counted_when_it_is_given_up_just_as_it_is_there(
    engine: FakeEngine,
) -> None:
    class Nobody:
        def connected(self, connection: UpstreamConnection) -> None:
            connection.abandon()

        def connect_failed(self, reason: str, *, lacking: bool) -> None:
            raise AssertionError(reason)

    upstreams = Upstreams(idle_seconds=1.0, idle_connections=1, clock=time.monotonic)
    endpoint = upstreams.endpoint(address_of(engine))
    given_up = 0
    for _ in range(20):
        connecting = upstreams.connect(endpoint, Nobody(), timeout_seconds=5.0, fresh=True)  # type: ignore[arg-type]
        assert connecting is not None
        while not upstreams.open_connections and not connecting.done():
            await asyncio.sleep(0)
        given_up += connecting.cancel()
        await asyncio.gather(connecting, return_exceptions=True)
        await until(lambda: upstreams.open_connections == 0)
    assert given_up > 0
