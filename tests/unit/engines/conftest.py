"""A Simulated engine on a real socket."""

from __future__ import annotations

import asyncio
import socket
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
import uvicorn

from pointsman_serving.engines.simulated.app import simulated_app_of
from pointsman_serving.engines.simulated.options import parse_simulated_args

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractAsyncContextManager

    from pointsman_serving.engines.simulated.engine import SimulatedEngine


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningEngine:
    """Where it listens, and the engine itself."""

    url: str
    engine: SimulatedEngine


@asynccontextmanager
async def running_engine(*args: str) -> AsyncIterator[RunningEngine]:
    """A Simulated engine with these flags, stopped at the end."""
    app = simulated_app_of(parse_simulated_args(["--served-model-name=m", *args]))
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(
        uvicorn.Config(app, lifespan="off", log_level="error", timeout_graceful_shutdown=1)
    )
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield RunningEngine(
            url=f"http://127.0.0.1:{listener.getsockname()[1]}", engine=app.state.engine
        )
    finally:
        server.should_exit = True
        await serving


@pytest.fixture
def engine_server() -> Callable[..., AbstractAsyncContextManager[RunningEngine]]:
    """Starts engines: ``async with engine_server("--flag", "value") as running``."""
    return running_engine


@pytest.fixture
async def fast() -> AsyncIterator[RunningEngine]:
    """An engine that answers at once: 200 model seconds a second."""
    async with running_engine("--speed=200", "--max-model-len=2000", "--block-size=4") as running:
        yield running
