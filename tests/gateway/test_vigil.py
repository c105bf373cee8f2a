"""Replicas that die without a word, and how ejected ones come back."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Callable

import pytest

from pointsman_api.route_table import BackendType, ExternalEndpoint, PoolEntry, RouteTable
from pointsman_serving.gateway.server import Gateway
from pointsman_serving.gateway.settings import GatewaySettings
from pointsman_serving.gateway.vigil import LOST
from pointsman_serving.routing.breaker import BreakerState
from pointsman_serving.routing.types import ReplicaAddress, ReplicaKey
from tests.gateway.engine_process import EngineProcess, engine_process
from tests.gateway.fake_engine import (
    DONE,
    STREAM_HEAD,
    Behaviour,
    Call,
    FakeEngine,
    answer,
    chat_event,
    chat_object,
    chunk,
    head,
    raw,
    silence,
    status,
    stream_of,
    stream_then_reset,
    stream_then_silence,
)
from tests.gateway.harness import (
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

FAST = {"silence_seconds": 0.3, "probe_seconds": 0.2}

WELL = raw(head(200, "content-length: 0"))
NOTHING = raw(b"", close=True)


def lost(gateway: Gateway) -> dict[str, int]:
    return gateway.metrics.trouble.lost_replicas


def breakers(gateway: Gateway) -> dict[str, BreakerState]:
    (pool,) = gateway.scheduler.snapshot().pools
    return {replica.key.replica: replica.breaker for replica in pool.replicas}


@pytest.mark.pain_20
async def test_request_goes_elsewhere_when_its_replica_falls_silent(
    engine: FakeEngine, other: FakeEngine
) -> None:
    first: list[FakeEngine] = []

    def silent_if_first(each: FakeEngine) -> Behaviour:
        async def run(call: Call) -> None:
            if not first:
                first.append(each)
                each.health = silence()
            await (silence() if each in first else answer())(call)

        return run

    for each in (engine, other):
        each.behaviour = silent_if_first(each)
    async with gateway_to(engine, other, **FAST) as gateway:
        reply = await ask(gateway, post(chat(stream=True)))
        (dead,) = first
        assert (reply.status, lost(gateway)) == (200, {"p": 1})
        assert len(dead.probes) >= 2
        assert breakers(gateway)[dead.name] is BreakerState.OPEN
        # Its connections are gone, and it gets nothing though its time is over.
        calls = len(dead.calls)
        await until(lambda: dead.active == 0)
        await asyncio.sleep(1.5)
        for number in range(10):
            assert (await ask(gateway, post(chat(text=str(number))))).status == 200
        assert len(dead.calls) == calls


@pytest.mark.pain_20
async def test_every_open_request_ends_when_its_replica_is_lost(engine: FakeEngine) -> None:
    engine.behaviour = stream_then_silence(2)
    engine.health = silence()
    async with gateway_to(engine, **FAST) as gateway:
        replies = await asyncio.gather(
            *(ask(gateway, post(chat(text=str(n), stream=True))) for n in range(20))
        )
        assert lost(gateway) == {"p": 1}
        for reply in replies:
            assert (reply.status, reply.complete) == (200, True)
            assert LOST.encode() in events(reply.body)[-2]
            assert events(reply.body)[-1] == DONE
        await until(lambda: engine.active == 0)


@pytest.mark.parametrize("health", [NOTHING, raw(b"\x00\x01 not HTTP\r\n\r\n", close=True)])
async def test_replica_is_lost_when_what_it_says_is_no_answer(
    engine: FakeEngine, health: Behaviour
) -> None:
    engine.behaviour = stream_then_silence(1)
    engine.health = health
    async with gateway_to(engine, **FAST) as gateway:
        await ask(gateway, post(chat(stream=True)))
        assert lost(gateway) == {"p": 1}


@pytest.mark.parametrize("health", [status(503), status(404), status(500)])
async def test_silent_replica_is_kept_when_it_answers_anything(
    engine: FakeEngine, health: Behaviour
) -> None:
    engine.behaviour = answer(delay=1.5)
    engine.health = health
    async with gateway_to(engine, **FAST) as gateway:
        assert (await ask(gateway, post(chat()))).status == 200
        assert (lost(gateway), gateway.metrics.trouble.retries) == ({}, {})
    assert len(engine.probes) >= 2


async def test_full_replica_is_kept_when_its_health_queues_behind_its_requests(
    engine: FakeEngine,
) -> None:
    """As under Ray Serve, where ``{prefix}/health`` takes one of max_ongoing_requests."""
    engine.behaviour = answer(delay=2.0)
    engine.health = silence()
    engine.alive = status(503, body=b"DRAINING")
    async with gateway_to(**FAST) as gateway:
        address = dataclasses.replace(address_of(engine), alive_path="/-/healthz")
        gateway.plane.set_replicas("p", [address])
        replies = await asyncio.gather(*(ask(gateway, post(chat(text=f"{n}"))) for n in range(4)))
        assert {reply.status for reply in replies} == {200}
        assert (lost(gateway), len(engine.calls)) == ({}, 4)
    assert {probe.path for probe in engine.probes} == {"/-/healthz"}


async def test_ejected_replica_stays_out_when_it_lives_and_is_not_well(engine: FakeEngine) -> None:
    engine.health = status(503)
    async with gateway_to(**FAST) as gateway:
        address = dataclasses.replace(address_of(engine), alive_path="/-/healthz")
        gateway.plane.set_replicas("p", [address])
        gateway.scheduler.failed(address.key, now=gateway.plane.clock(), hard=True)
        await until(lambda: len(engine.probes) == 2)
        assert breakers(gateway)["a"] is BreakerState.OPEN
    assert {probe.path for probe in engine.probes} == {"/prefix/health"}


async def test_replica_is_kept_when_it_works_in_silence_and_is_well(engine: FakeEngine) -> None:
    engine.behaviour = answer(delay=3.0)
    async with gateway_to(engine, **FAST) as gateway:
        reply = await ask(gateway, post(chat()))
        assert (reply.status, lost(gateway), gateway.metrics.trouble.retries) == (200, {}, {})
    # After 0.3 s, then 0.3, 0.6 and 1.2 s later: it is asked, and ever less often.
    assert 2 <= len(engine.probes) <= 4


async def test_replica_is_kept_when_one_question_after_its_health_fails(
    engine: FakeEngine,
) -> None:
    engine.behaviour = answer(delay=1.5)

    async def once_badly(call: Call) -> None:
        await (NOTHING if len(engine.probes) == 1 else WELL)(call)

    engine.health = once_badly
    async with gateway_to(engine, **FAST) as gateway:
        assert (await ask(gateway, post(chat()))).status == 200
        assert (lost(gateway), gateway.metrics.trouble.retries) == ({}, {})
    assert len(engine.probes) >= 2


async def test_replica_is_kept_when_a_byte_comes_while_its_health_is_asked(
    engine: FakeEngine,
) -> None:
    async def late(call: Call) -> None:
        await call.write(STREAM_HEAD + chunk(chat_event("a")))
        await until(lambda: len(engine.probes) == 2)
        await call.write(chunk(chat_event("b")))
        engine.health = WELL
        await asyncio.sleep(0.3)
        await call.write(chunk(DONE) + b"0\r\n\r\n")

    engine.behaviour = late
    engine.health = silence()
    async with gateway_to(engine, **FAST) as gateway:
        reply = await ask(gateway, post(chat(stream=True)))
        assert events(reply.body) == [chat_event("a"), chat_event("b"), DONE]
        assert lost(gateway) == {}


async def test_nobody_is_asked_when_a_reply_comes_slowly_byte_by_byte(engine: FakeEngine) -> None:
    async def slowly(call: Call) -> None:
        body = chat_object(call)
        lines = head(200, "content-type: application/json", f"content-length: {len(body)}")
        for at in range(0, len(lines), 8):
            await call.write(lines[at : at + 8])
            await asyncio.sleep(0.1)
        await call.write(body)

    engine.behaviour = slowly
    engine.health = silence()
    async with gateway_to(engine, **FAST) as gateway:
        assert (await ask(gateway, post(chat()))).status == 200
        assert lost(gateway) == {}
    assert engine.probes == []


async def test_idle_replicas_are_never_asked_when_nothing_is_open_there(
    engine: FakeEngine,
) -> None:
    async with gateway_to(engine, **FAST) as gateway:
        for _ in range(2):
            assert (await ask(gateway, post(chat()))).status == 200
            await asyncio.sleep(0.6)
    assert engine.probes == []


async def test_silent_replica_is_lost_when_its_clients_leave_early(
    engine: FakeEngine, other: FakeEngine
) -> None:
    async with gateway_to(engine, other, silence_seconds=0.5, probe_seconds=0.2) as gateway:
        assert (await ask(gateway, post(chat(text="same")))).status == 200
        dead = engine if engine.calls else other
        dead.behaviour = dead.health = silence()
        for _ in range(20):
            async with client_of(gateway) as client:
                await client.send(post(chat(text="same")))
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(client.reader.read(1), 0.25)
            await asyncio.sleep(0.15)
            if lost(gateway):
                break
        assert lost(gateway) == {"p": 1}
        assert breakers(gateway)[dead.name] is BreakerState.OPEN
        # Nobody is there any more for whom to ask.
        probes = len(dead.probes)
        await asyncio.sleep(0.7)
        assert len(dead.probes) == probes


async def test_replica_is_asked_once_when_its_only_client_left_early_and_it_lives(
    engine: FakeEngine,
) -> None:
    engine.behaviour = silence()
    async with gateway_to(engine, **FAST) as gateway:
        async with client_of(gateway) as client:
            await client.send(post(chat()))
            await until(lambda: engine.active == 1)
            await asyncio.sleep(0.15)
        await asyncio.sleep(1.5)
        assert lost(gateway) == {}
    assert len(engine.probes) == 1


async def test_external_endpoints_are_never_asked_when_they_are_silent_or_ejected(
    engine: FakeEngine,
) -> None:
    endpoint = ExternalEndpoint(url=f"http://127.0.0.1:{engine.port}/v1", model_name="m")
    pool = PoolEntry(
        name="p",
        served_model_name="m",
        backend=BackendType.EXTERNAL,
        external_endpoints=(endpoint,),
    )
    table = RouteTable(pools={"p": pool}, routes=table_of().routes)
    settings = GatewaySettings(port=0, drain_seconds=1.0, **FAST)  # type: ignore[arg-type]
    gateway = Gateway(settings=settings, table=table)
    async with gateway.running():
        engine.behaviour = answer(delay=1.0)
        assert (await ask(gateway, post(chat()))).status == 200
        engine.behaviour = status(500)
        for _ in range(3):
            await ask(gateway, post(chat()))
        await asyncio.sleep(1.5)
        engine.behaviour = answer()
        assert (await ask(gateway, post(chat()))).status == 200
    assert engine.probes == []


async def test_replica_that_left_the_list_is_lost_when_it_falls_silent(
    engine: FakeEngine,
) -> None:
    engine.behaviour = stream_then_silence(2)
    async with gateway_to(engine, **FAST) as gateway:
        asked = asyncio.ensure_future(ask(gateway, post(chat(stream=True))))
        await until(lambda: engine.active == 1)
        engine.health = silence()
        gateway.plane.set_replicas("p", [])
        assert LOST.encode() in (await asked).body
        assert list(gateway.plane.upstreams.endpoints()) == []


async def test_nobody_is_lost_when_the_gateway_itself_stood_still(engine: FakeEngine) -> None:
    engine.behaviour = answer(delay=3.0)

    async def nearly_late(call: Call) -> None:
        await asyncio.sleep(0.1)
        await WELL(call)

    engine.health = nearly_late
    async with gateway_to(engine, **FAST) as gateway:
        asked = asyncio.ensure_future(ask(gateway, post(chat())))
        for _ in range(2):
            probes = len(engine.probes)
            await until(lambda: len(engine.probes) > probes)  # noqa: B023
            time.sleep(0.8)  # noqa: ASYNC251 - this is the stall
        assert (await asked).status == 200
        assert (lost(gateway), gateway.metrics.trouble.retries) == ({}, {})


# Coming back.


async def test_ejected_replica_gets_nothing_when_its_health_is_silent(
    engine: FakeEngine, other: FakeEngine
) -> None:
    async with gateway_to(engine, other, **FAST) as gateway:
        await engine.stop()
        number = 0
        while breakers(gateway)["a"] is BreakerState.CLOSED:
            number += 1
            assert (await ask(gateway, post(chat(text=f"{number}")))).status == 200
        engine.health = silence()
        await engine.start()
        calls = len(engine.calls)
        await until(lambda: len(engine.probes) >= 1)
        for number in range(20):
            assert (await ask(gateway, post(chat(text=f"again {number}")))).status == 200
        assert len(engine.calls) == calls
        engine.health = None
        await until(lambda: breakers(gateway)["a"] is BreakerState.DUE, seconds=10.0)
        while len(engine.calls) == calls:
            number += 1
            assert (await ask(gateway, post(chat(text=f"back {number}")))).status == 200
        assert breakers(gateway)["a"] is BreakerState.CLOSED


@pytest.mark.pain_18
async def test_replica_is_ejected_when_all_its_streams_break_after_their_first_token(
    engine: FakeEngine, other: FakeEngine
) -> None:
    engine.behaviour = stream_then_reset(2)
    async with gateway_to(engine, other) as gateway:
        for number in range(50):
            await ask(gateway, post(chat(text=f"{number} {'x' * 300}", stream=True)))
            if breakers(gateway)["a"] is not BreakerState.CLOSED:
                break
        assert breakers(gateway) == {"a": BreakerState.OPEN, "b": BreakerState.CLOSED}
    assert len(engine.calls) == 2


async def test_few_are_asked_at_once_when_a_large_fleet_is_ejected(engine: FakeEngine) -> None:
    most = 0
    asked: set[str] = set()

    async def counted(call: Call) -> None:
        nonlocal most
        asked.add(call.path)
        most = max(most, engine.active)
        await asyncio.sleep(0.5)

    engine.health = counted
    fleet = [
        ReplicaAddress(
            key=ReplicaKey("p", f"{number}"),
            host="127.0.0.1",
            port=engine.port,
            health_path=f"/{number}/health",
        )
        for number in range(200)
    ]
    async with gateway_to(silence_seconds=0.3, probe_seconds=2.0) as gateway:
        gateway.plane.set_replicas("p", fleet)
        for address in fleet:
            gateway.scheduler.failed(address.key, now=gateway.plane.clock(), hard=True)
        await until(lambda: len(asked) == len(fleet), seconds=20.0)
    assert 32 < most <= 128


# Half-closed, stopped, and behind a link that drops everything.


async def test_stream_ends_at_once_when_the_replica_has_closed_its_half(
    engine: FakeEngine,
) -> None:
    async def half(call: Call) -> None:
        await call.write(STREAM_HEAD + chunk(chat_event("a")))
        call.writer.write_eof()
        await asyncio.sleep(3600)

    engine.behaviour = half
    async with gateway_to(engine) as gateway:
        reply = await asyncio.wait_for(ask(gateway, post(chat(stream=True))), 5)
        assert events(reply.body)[0] == chat_event("a")
        assert events(reply.body)[-1] == DONE
        await until(lambda: engine.open == 0)


async def dies_silently(child: EngineProcess, silent: Callable[[], None]) -> None:
    """The stream of a child ends with the reason, and others serve on."""
    async with FakeEngine("b").running() as other, gateway_to(**FAST) as gateway:  # type: ignore[arg-type]
        gateway.plane.set_replicas("p", [child.address()])
        async with client_of(gateway) as client:
            await client.send(post(chat(stream=True)))
            await until(lambda: any(relay.pool == "p" for relay in gateway.plane.relays))
            gateway.plane.set_replicas("p", [child.address(), address_of(other)])
            await asyncio.sleep(0.2)
            silent()
            reply = await client.answer()
        assert LOST.encode() in events(reply.body)[-2]
        assert lost(gateway) == {"p": 1}
        for number in range(10):
            assert (await ask(gateway, post(chat(text=str(number))))).status == 200
        assert 10 == len(other.calls)


@pytest.mark.pain_20
async def test_replica_is_lost_when_its_process_is_stopped(engine: FakeEngine) -> None:
    async with engine_process() as child:
        await dies_silently(child, child.stop)


async def test_replica_comes_back_when_its_process_goes_on() -> None:
    async with engine_process() as child, gateway_to(**FAST) as gateway:  # type: ignore[arg-type]
        gateway.plane.set_replicas("p", [child.address()])
        child.stop()
        async with client_of(gateway) as client:
            await client.send(post(chat(stream=True)))
            await until(lambda: lost(gateway) == {"p": 1})
        child.go_on()
        await until(lambda: breakers(gateway)["child"] is BreakerState.DUE, seconds=10.0)
        async with client_of(gateway) as client:
            await client.send(post(chat(stream=True)))
            assert b"200" in await client.reader.readuntil(b"\r\n")
        await until(lambda: breakers(gateway)["child"] is not BreakerState.OPEN)


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=10)


@contextlib.asynccontextmanager
async def lossy_link() -> AsyncIterator[tuple[str, str, Callable[[], None]]]:
    """A network namespace, the address in it, and what makes its link drop every packet.

    Root in an unprivileged container may not make one. The silence is the same as that of a
    stopped process, which is tried above everywhere; here it is the network's.
    """
    name = f"pm{os.getpid() % 100_000}"
    near, far = f"{name}a", f"{name}b"
    subnet = f"10.{200 + os.getpid() % 50}.{os.getpid() // 50 % 250}"
    try:
        try:
            ip("netns", "add", name)
            ip("link", "add", near, "type", "veth", "peer", "name", far, "netns", name)
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no network namespace or veth can be made here: {error}")
        ip("address", "add", f"{subnet}.1/30", "dev", near)
        ip("link", "set", near, "up")
        ip("-n", name, "address", "add", f"{subnet}.2/30", "dev", far)
        ip("-n", name, "link", "set", far, "up")

        def drop() -> None:
            # Frames for a station that is not there: neither side hears of an error.
            nobody = ("lladdr", "02:00:00:00:00:99", "nud", "permanent")
            ip("neighbour", "replace", f"{subnet}.2", "dev", near, *nobody)
            ip("-n", name, "neighbour", "replace", f"{subnet}.1", "dev", far, *nobody)

        yield name, f"{subnet}.2", drop
    finally:
        with contextlib.suppress(subprocess.CalledProcessError):
            ip("netns", "delete", name)


@pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("ip") is None, reason="needs root and the command ip"
)
@pytest.mark.pain_20
async def test_replica_is_lost_when_its_packets_are_dropped() -> None:
    async with (
        lossy_link() as (name, host, drop),
        engine_process(host, within=("ip", "netns", "exec", name)) as child,
    ):
        await dies_silently(child, drop)


async def test_first_request_is_watched_when_the_connection_was_idle_for_long(
    engine: FakeEngine, other: FakeEngine
) -> None:
    async with gateway_to(engine, **FAST) as gateway:
        assert (await ask(gateway, post(chat()))).status == 200
        await asyncio.sleep(1.0)
        # Silence counts from this request on: what came a second ago does not matter.
        engine.behaviour = stream_of(["a"], first_delay=0.2)
        assert (await ask(gateway, post(chat(stream=True)))).status == 200
    assert engine.probes == []
