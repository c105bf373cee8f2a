"""Gateway tests run on uvloop, as the gateway does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping

import pytest
import uvloop

from tests.gateway.fake_engine import FakeEngine


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture
async def engine() -> AsyncIterator[FakeEngine]:
    async with FakeEngine("a").running() as running:
        yield running


@pytest.fixture
async def other() -> AsyncIterator[FakeEngine]:
    async with FakeEngine("b").running() as running:
        yield running
