"""The admin port: a second listener on the gateway's loop, for operators, probes and Prometheus."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Generator

import uvicorn

from pointsman_serving.gateway.app import create_admin_app
from pointsman_serving.gateway.plane import DataPlane

_SHUTDOWN_SECONDS = 1


class _AdminServer(uvicorn.Server):
    """uvicorn's server, which ends when it is told to and leaves the signals alone."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._exit = asyncio.Event()

    def stop(self) -> None:
        """Begin to end."""
        self.should_exit = True
        self._exit.set()

    async def main_loop(self) -> None:
        """Wait for the end."""
        await self._exit.wait()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """The gateway itself listens to signals."""
        yield


@contextlib.asynccontextmanager
async def serving_admin(plane: DataPlane, listener: socket.socket | None) -> AsyncIterator[None]:
    """Serve the admin application while the block runs; without a listener nothing is served."""
    if listener is None:
        yield
        return
    server = _AdminServer(
        uvicorn.Config(
            create_admin_app(plane),
            http="httptools",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=_SHUTDOWN_SECONDS,
        )
    )
    serving = asyncio.ensure_future(server.serve(sockets=[listener]))
    try:
        yield
    finally:
        server.stop()
        await serving
