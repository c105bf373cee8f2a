"""What the gateway itself lacks is not the replicas' fault."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import resource
from collections.abc import Generator

import pytest

from pointsman_serving.gateway.descriptors import lacking
from pointsman_serving.routing.breaker import BreakerState
from tests.gateway.fake_engine import FakeEngine, answer
from tests.gateway.harness import address_of, ask, chat, client_of, gateway_to, post, until


@contextlib.contextmanager
def no_descriptor_left() -> Generator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    held: list[int] = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        with contextlib.suppress(OSError):
            while True:
                held.append(os.open(os.devnull, os.O_RDONLY))
        yield
    finally:
        for descriptor in held:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_silent_replica_is_kept_when_the_gateway_cannot_ask(engine: FakeEngine) -> None:
    engine.behaviour = answer(delay=2.5)
    async with gateway_to(engine, silence_seconds=0.3, probe_seconds=0.5) as gateway:
        asked = asyncio.ensure_future(ask(gateway, post(chat())))
        await until(lambda: engine.active == 1)
        with no_descriptor_left():
            await asyncio.sleep(1.5)
        trouble = gateway.metrics.trouble
        assert trouble.lost_replicas == {}
        assert set(trouble.health_probes) == {"unknown"}
        assert (await asked).status == 200
        # It is asked again as soon as it can be.
        assert trouble.health_probes["answered"] >= 1


async def test_ejected_replica_is_asked_again_when_the_gateway_could_not_ask(
    engine: FakeEngine,
) -> None:
    async with gateway_to(engine) as gateway:
        plane = gateway.plane
        plane.scheduler.failed(address_of(engine).key, now=plane.clock(), hard=True)
        with no_descriptor_left():
            await until(lambda: gateway.metrics.trouble.health_probes["unknown"] >= 1)
        (replica,) = plane.scheduler.snapshot().pools[0].replicas
        assert replica.breaker is BreakerState.OPEN
        assert (await asyncio.wait_for(ask(gateway, post(chat())), 5)).status == 200
        assert gateway.metrics.trouble.health_probes["silent"] == 0


async def test_replicas_are_not_ejected_when_the_gateway_cannot_connect(
    engine: FakeEngine, other: FakeEngine
) -> None:
    async with gateway_to(engine, other) as gateway:
        async with client_of(gateway) as client:
            # So that it is accepted.
            await client.send(b"GET /healthz HTTP/1.1\r\nhost: gateway\r\n\r\n")
            await client.answer()
            with no_descriptor_left():
                for number in range(5):
                    await client.send(post(chat(text=f"{number}")))
                    reply = await client.answer()
                    assert (reply.status, reply.error["code"]) == (503, "upstream_failed")
                    assert "gateway" in str(reply.error["message"])
                    assert int(reply.headers["retry-after"]) >= 1
            await client.send(post(chat()))
            assert (await client.answer()).status == 200
        (pool,) = gateway.scheduler.snapshot().pools
        assert pool.ejections == 0


async def test_gateway_may_open_as_many_files_as_allowed_when_it_starts(
    engine: FakeEngine,
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(1024, hard), hard))
    try:
        async with gateway_to(engine):
            assert (hard, hard) == resource.getrlimit(resource.RLIMIT_NOFILE)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(errno.EMFILE, "x"), True),
        (OSError(errno.EADDRNOTAVAIL, "x"), True),
        (ConnectionRefusedError(errno.ECONNREFUSED, "x"), False),
        (OSError("several"), False),
        (UnicodeError(), False),
    ],
)
def test_lack_is_told_from_refusal_by_the_number(error: Exception, expected: bool) -> None:
    assert lacking(error) is expected
