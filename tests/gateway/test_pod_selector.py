"""Engines that somebody else runs in pods: what the gateway does with them, and what it cannot."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator

from pointsman_api.endpoint_slices import PoolEndpoints, ReplicaEndpoint
from pointsman_api.route_table import BackendType, PoolEntry, RouteTable
from pointsman_serving.gateway.kubernetes.addresses import ready_addresses
from pointsman_serving.gateway.server import Gateway
from pointsman_serving.routing.breaker import BreakerState
from tests.gateway.fake_engine import FakeEngine, head, raw, status, stream_then_reset, word_stream
from tests.gateway.harness import ask, chat, events, gateway_to, post, table_of, until

POOL = PoolEntry(name="p", served_model_name="served", backend=BackendType.POD_SELECTOR)
TABLE = RouteTable(pools={"p": POOL}, routes=table_of().routes)


@contextlib.asynccontextmanager
async def gateway_to_pods(*engines: FakeEngine) -> AsyncIterator[Gateway]:
    found = PoolEndpoints(
        namespace="default",
        pool="p",
        endpoints=tuple(
            ReplicaEndpoint(replica=engine.name, host=engine.host, port=engine.port)
            for engine in engines
        ),
    )
    async with gateway_to(table=TABLE, silence_seconds=0.3, probe_seconds=0.3) as gateway:
        gateway.plane.set_replicas("p", ready_addresses(POOL, found))
        yield gateway


async def test_pod_gets_the_request_at_its_root_when_it_is_chosen(engine: FakeEngine) -> None:
    async with gateway_to_pods(engine) as gateway:
        reply = await ask(gateway, post(chat()))
    assert (200, "a") == (reply.status, reply.headers["x-pointsman-replica"])
    (call,) = engine.calls
    assert ("/v1/chat/completions", "served") == (call.path, call.json["model"])
    # Nothing that only our own replicas understand.
    assert set() == {"cache_salt", "return_token_ids", "vllm_xargs"} & {*call.json}


async def test_stream_ends_with_an_error_event_when_its_pod_breaks(
    engine: FakeEngine, other: FakeEngine
) -> None:
    engine.behaviour = other.behaviour = stream_then_reset(3)
    async with gateway_to_pods(engine, other) as gateway:
        reply = await ask(gateway, post(chat(stream=True)))
    last, done = events(reply.body)[-2:]
    assert (200, True, b"data: [DONE]\n\n") == (reply.status, reply.complete, done)
    assert "stream_broken" == json.loads(last[6:])["error"]["code"]
    assert 1 == len(engine.calls) + len(other.calls)


async def test_stream_is_not_continued_when_a_pod_calls_itself_by_a_revision(
    engine: FakeEngine, other: FakeEngine
) -> None:
    engine.behaviour = other.behaviour = word_stream(9, breaks_after=4)
    async with gateway_to_pods(engine, other) as gateway:
        reply = await ask(gateway, post(chat(stream=True)))
    assert b"stream_broken" in events(reply.body)[-2]
    assert 1 == len(engine.calls) + len(other.calls)


async def test_another_pod_answers_when_one_fails_before_the_first_token(
    engine: FakeEngine, other: FakeEngine
) -> None:
    engine.behaviour = status(500)
    async with gateway_to_pods(engine, other) as gateway:
        replies = [await ask(gateway, post(chat(text=f"{n}"))) for n in range(8)]
    assert {200} == {reply.status for reply in replies}


async def test_pod_is_asked_for_its_own_health_when_it_was_ejected(engine: FakeEngine) -> None:
    engine.health = status(503)
    async with gateway_to_pods(engine) as gateway:
        address = gateway.plane.replicas["p"][0]
        gateway.scheduler.failed(address.key, now=gateway.plane.clock(), hard=True)
        await until(lambda: bool(engine.probes))
        assert BreakerState.CLOSED is not _state(gateway)
        engine.health = raw(head(200, "content-length: 0"))
        assert 200 == (await ask(gateway, post(chat()))).status
        assert BreakerState.CLOSED is _state(gateway)
    assert {"/health"} == {probe.path for probe in engine.probes}


def _state(gateway: Gateway) -> BreakerState:
    (pool,) = gateway.scheduler.snapshot().pools
    return pool.replicas[0].breaker
