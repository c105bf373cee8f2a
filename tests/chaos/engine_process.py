"""A Simulated engine in a process of its own, which can be told to misbehave.

SIGUSR1 hangs it, and again frees it: it takes requests and says nothing more, while
``/health`` answers as ever. SIGUSR2 resets all its connections. Everything else (SIGKILL,
SIGSTOP, dropped packets) is done to it from outside.
"""

from __future__ import annotations

import asyncio
import signal
import socket
import struct
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

import uvicorn
import uvloop

from pointsman_serving.engines.identity import IdentityHeaders, ReplicaIdentity
from pointsman_serving.engines.simulated.app import simulated_app_of
from pointsman_serving.engines.simulated.options import parse_simulated_args
from tests.chaos.network import Namespace

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

REVISION = "c0ffee0000000000"
"""All engines here say the same."""

_RESET = struct.pack("ii", 1, 0)


class Hangable:
    """An ASGI application that can stop saying anything but that it is healthy."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._free = asyncio.Event()
        self._free.set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def held(message: Message) -> None:
            await self._free.wait()
            await send(message)

        healthy = scope["type"] == "http" and scope["path"] == "/health"
        await self._app(scope, receive, send if healthy else held)

    def toggle(self) -> None:
        """Hang, or go on."""
        if self._free.is_set():
            self._free.clear()
        else:
            self._free.set()


def reset_all(server: uvicorn.Server) -> None:
    """RST on every connection."""
    for connection in list(server.server_state.connections):
        transport = connection.transport
        if transport is not None:
            transport.get_extra_info("socket").setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, _RESET
            )
            transport.abort()


def serve(flags: Sequence[str], namespace: Namespace | None, tell: Connection) -> None:
    """Serve until killed.

    Args:
        flags: of the Simulated engine.
        namespace: where to listen; None: on the loopback.
        tell: gets the port once the engine listens.
    """
    if namespace is not None:
        namespace.enter()
    host = "127.0.0.1" if namespace is None else namespace.address
    uvloop.run(_serve(flags, socket.create_server((host, 0), backlog=2048), tell))


def replica_app(flags: Sequence[str]) -> ASGIApp:
    """A Simulated engine as a replica serves it: every reply says of which revision it is."""
    return IdentityHeaders(
        simulated_app_of(parse_simulated_args(list(flags))), ReplicaIdentity.new(REVISION)
    )


async def _serve(flags: Sequence[str], listener: socket.socket, tell: Connection) -> None:
    app = Hangable(replica_app(flags))
    server = uvicorn.Server(
        uvicorn.Config(app, lifespan="off", log_level="critical", access_log=False)
    )
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGUSR1, app.toggle)
    loop.add_signal_handler(signal.SIGUSR2, reset_all, server)
    tell.send(listener.getsockname()[1])
    tell.close()
    await server.serve(sockets=[listener])
