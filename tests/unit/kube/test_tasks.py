from __future__ import annotations

import asyncio
import contextlib

import pytest

from pointsman_kube.tasks import end_task


async def test_task_has_ended_when_it_fails_at_its_end() -> None:
    async def fail() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(60)
        raise ValueError("too late")

    task = asyncio.create_task(fail())
    await asyncio.sleep(0)
    await end_task(task)
    assert task.done()


async def test_caller_is_cancelled_when_the_task_does_not_end() -> None:
    gate = asyncio.Event()

    async def stay() -> None:
        while not gate.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await gate.wait()

    task = asyncio.create_task(stay())
    await asyncio.sleep(0)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await end_task(task)
    gate.set()
    await task
