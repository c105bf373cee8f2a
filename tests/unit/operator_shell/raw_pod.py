"""A pod that answers any bytes at all: what no well-behaved server would send."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field


@dataclass
class RawPod:
    """Answers every request with the same bytes, over one connection each."""

    host: str
    port: int = 0
    answer: Callable[[], Iterable[bytes]] = lambda: [b""]
    """The parts of an answer; as many as are wanted."""
    then_wait: bool = False
    """Leave the connection open after the last part."""
    sent_bytes: int = 0
    requests: list[str] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            self.requests.append((await reader.readuntil(b"\r\n\r\n")).decode("latin-1"))
            for part in self.answer():
                writer.write(part)
                await writer.drain()
                self.sent_bytes += len(part)
            if self.then_wait:
                await reader.read()
        writer.close()


@contextlib.asynccontextmanager
async def raw_pod(
    answer: Callable[[], Iterable[bytes]], *, host: str = "127.0.0.1", then_wait: bool = False
) -> AsyncIterator[RawPod]:
    """Serve while the block runs."""
    pod = RawPod(host, answer=answer, then_wait=then_wait)
    server = await asyncio.start_server(pod.serve, host, 0)
    pod.port = server.sockets[0].getsockname()[1]
    try:
        yield pod
    finally:
        server.close()


def plain(body: bytes, *headers: str) -> list[bytes]:
    """An answer with a length."""
    return [_head(f"content-length: {len(body)}", *headers), body]


def document(body: object) -> list[bytes]:
    """A JSON answer with a length."""
    return plain(json.dumps(body).encode())


def endless(part: bytes, *headers: str) -> Iterable[bytes]:
    """A chunked answer that does not end."""
    yield _head("transfer-encoding: chunked", *headers)
    while True:
        yield b"%x\r\n%b\r\n" % (len(part), part)


def _head(*headers: str) -> bytes:
    lines = ["HTTP/1.1 200 OK", "content-type: application/json", *headers]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()
