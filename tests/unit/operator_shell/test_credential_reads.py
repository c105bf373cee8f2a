"""Secrets of External pools are read beside the work on route tables."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any, cast

from pointsman_kube.client import Kube
from pointsman_kube.errors import NotFound, Unavailable
from pointsman_kube.kinds import Ref
from pointsman_operator.credential_reads import CredentialReads
from pointsman_operator.secret_reader import SecretReader

GOOD, OTHER, SLOW = ("team", "good"), ("team", "other"), ("team", "slow")


class Secrets:
    """An API that has Secrets, answers slowly for some, and not at all for others."""

    def __init__(self) -> None:
        self.values = {"good": "a"}
        self.slow: set[str] = set()
        self.goes_on = asyncio.Event()
        self.broken: set[str] = set()

    async def get(self, ref: Ref) -> dict[str, Any]:
        if ref.name in self.slow:
            await self.goes_on.wait()
        if ref.name in self.broken:
            raise Unavailable("away")
        if ref.name not in self.values:
            raise NotFound("no", status=404)
        value = base64.b64encode(self.values[ref.name].encode()).decode()
        return {"metadata": {"name": ref.name}, "data": {"api": value}}


@contextlib.asynccontextmanager
async def reads_of(secrets: Secrets) -> AsyncIterator[tuple[CredentialReads, list[float]]]:
    changes: list[float] = []
    reads = CredentialReads(
        SecretReader(
            cast("Kube", secrets),
            ttl_seconds=0.05,
            missing_ttl_seconds=0.05,
            most_per_second=1000.0,
        ),
        changed=lambda: changes.append(time.monotonic()),
    )
    task = asyncio.create_task(reads.queue.run())
    try:
        yield reads, changes
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_every_secret_is_known_when_it_was_waited_for_also_one_that_is_missing() -> None:
    async with reads_of(Secrets()) as (reads, changes):
        reads.want([GOOD, OTHER])
        await reads.wait_for([GOOD, OTHER], most_seconds=5.0)
        assert {GOOD: {"api": "YQ=="}, OTHER: None} == reads.data()
        assert 2 == len(changes)


async def test_nobody_waits_for_long_when_a_secret_cannot_be_read() -> None:
    secrets = Secrets()
    secrets.slow.add("slow")
    secrets.broken.add("other")
    async with reads_of(secrets) as (reads, _):
        reads.want([SLOW, OTHER, GOOD])
        began = time.monotonic()
        await reads.wait_for([SLOW, OTHER, GOOD], most_seconds=0.2)
        assert time.monotonic() - began < 2.0
        assert {GOOD: {"api": "YQ=="}} == reads.data()


async def test_a_new_value_is_told_once_when_somebody_changes_the_secret() -> None:
    secrets = Secrets()
    async with reads_of(secrets) as (reads, changes):
        reads.want([GOOD])
        await reads.wait_for([GOOD], most_seconds=5.0)
        secrets.values["good"] = "b"
        async with asyncio.timeout(5.0):
            while reads.data() != {GOOD: {"api": "Yg=="}}:
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)
        assert 2 == len(changes)


async def test_a_secret_is_read_no_more_when_no_pool_names_it() -> None:
    async with reads_of(Secrets()) as (reads, _):
        reads.want([GOOD, OTHER])
        await reads.wait_for([GOOD, OTHER], most_seconds=5.0)
        reads.want([OTHER])
        await asyncio.sleep(0.2)
        assert {OTHER: None} == reads.data()


async def test_a_secret_is_forgotten_when_no_pool_names_it_also_one_that_is_being_read() -> None:
    secrets = Secrets()
    secrets.values |= {"slow": "b"}
    secrets.slow.add("slow")
    reader = SecretReader(cast("Kube", secrets), ttl_seconds=0.05, most_per_second=1.0)
    reads = CredentialReads(reader, changed=lambda: None)
    reads.want([GOOD])
    await reads._read(GOOD)
    reads.want([SLOW])
    assert reader.held(*GOOD) is None
    assert 0.05 == reader.ttl_seconds

    reading = asyncio.create_task(reads._read(SLOW))
    await asyncio.sleep(0)
    reads.want([])
    secrets.goes_on.set()
    assert None is await reading

    assert reader.held(*SLOW) is None
