"""A TCP proxy in front of an engine that breaks replies where a test says."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from enum import Enum, auto

from pointsman_serving.routing.types import ReplicaAddress


class Cut(Enum):
    """How a reply breaks."""

    RESET = auto()
    SILENCE = auto()
    """Nothing more comes, and the connection stays."""
    TRUNCATED = auto()
    """The stream ends in order, but before its end."""
    ENGINE_ERROR = auto()
    """An error event of the engine under status 200."""


ENGINE_ERROR = (
    b'data: {"error":{"message":"EngineCore died","type":"InternalServerError","code":500}}\n\n'
    b"data: [DONE]\n\n"
)


@dataclass(slots=True)
class CuttingProxy:
    """Breaks the next replies, one for each number of ``cuts``, after so many events."""

    upstream: ReplicaAddress
    cuts: list[int] = field(default_factory=list)
    how: Cut = Cut.RESET
    replies: int = 0
    requests: list[bytes] = field(default_factory=list)
    port: int = 0

    @property
    def address(self) -> ReplicaAddress:
        return replace(self.upstream, port=self.port)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[CuttingProxy]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            up_reader, up_writer = await asyncio.open_connection(
                self.upstream.host, self.upstream.port
            )
        except OSError:
            writer.transport.abort()
            return
        sending = asyncio.ensure_future(self._requests(reader, up_writer))
        try:
            await self._replies(up_reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            sending.cancel()
            up_writer.transport.abort()
            writer.close()

    async def _requests(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                self.requests.append(data)
                writer.write(data)
            writer.transport.abort()

    async def _replies(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Relay chunk by chunk; uvicorn writes one chunk for each event of a stream."""
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            writer.write(head)
            if b"transfer-encoding: chunked" not in head.lower():
                writer.write(await reader.read(65536))
                continue
            self.replies += 1
            cut = self.cuts.pop(0) if self.cuts else None
            events = 0
            while True:
                if cut is not None and events >= cut:
                    await writer.drain()
                    await self._cut(writer)
                    return
                size = await reader.readuntil(b"\r\n")
                chunk = await reader.readexactly(int(size, 16) + 2)
                events += chunk.count(b"data: ")
                writer.write(size + chunk)
                await writer.drain()
                if int(size, 16) == 0:
                    break

    async def _cut(self, writer: asyncio.StreamWriter) -> None:
        match self.how:
            case Cut.RESET:
                connection = writer.get_extra_info("socket")
                # What was sent shall be read first.
                await asyncio.sleep(0.01)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                writer.transport.abort()
            case Cut.SILENCE:
                await asyncio.sleep(3600)
            case Cut.TRUNCATED:
                writer.write(b"0\r\n\r\n")
                await writer.drain()
            case Cut.ENGINE_ERROR:
                writer.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(ENGINE_ERROR), ENGINE_ERROR))
                await writer.drain()
