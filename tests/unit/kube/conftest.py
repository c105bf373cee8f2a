from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.unit.kube.fake_api_server import FakeApiServer, fake_api_server


@pytest.fixture
async def server() -> AsyncIterator[FakeApiServer]:
    async with fake_api_server() as running:
        yield running
