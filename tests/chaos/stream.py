"""One streamed request on a connection of its own, with the time of every piece."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast

import httptools


@dataclass(slots=True, kw_only=True)
class Observed:
    """What a client saw of one reply."""

    started_at: float
    """Seconds of the monotonic clock, as all times here."""
    status: int = 0
    """0: no reply at all."""
    pieces: list[tuple[float, bytes]] = field(default_factory=list)
    """The body as it came, without the framing of chunks."""
    ended_at: float | None = None
    complete: bool = False
    """Whether the reply ended as its framing says."""
    broken: str = ""
    """Why it did not, where the connection said so."""


class _Reader(asyncio.Protocol):
    """Reads one reply; httptools calls the ``on_`` methods."""

    def __init__(self, request: bytes, observed: Observed) -> None:
        self._request = request
        self._observed = observed
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self.over = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no asyncio.Transport by type.
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._end(f"no HTTP: {error}")

    def on_headers_complete(self) -> None:
        self._observed.status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        self._observed.pieces.append((time.monotonic(), body))

    def on_message_complete(self) -> None:
        self._observed.complete = True
        self._end("")

    def connection_lost(self, error: Exception | None) -> None:
        self._end(f"the connection broke: {error}" if error else "the connection was closed")

    def _end(self, broken: str) -> None:
        if not self.over.done():
            self._observed.ended_at = time.monotonic()
            self._observed.broken = broken
            self.over.set_result(None)
        if self._transport is not None:
            self._transport.abort()


def request_bytes(path: str, body: Mapping[str, object], *headers: str) -> bytes:
    """A POST with a JSON body."""
    data = json.dumps(body).encode()
    lines = [
        f"POST {path} HTTP/1.1",
        "host: gateway",
        "content-type: application/json",
        f"content-length: {len(data)}",
        *headers,
    ]
    return "\r\n".join([*lines, "", ""]).encode() + data


async def ask(host: str, port: int, request: bytes, *, limit_seconds: float) -> Observed:
    """Send a request and read its reply to the end, whatever that is."""
    observed = Observed(started_at=time.monotonic())
    reader = _Reader(request, observed)
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(limit_seconds):
            await loop.create_connection(lambda: reader, host, port)
            await reader.over
    except OSError as error:
        # asyncio's TimeoutError is one too.
        observed.broken = observed.broken or f"{type(error).__name__}: {error}".rstrip(": ")
        observed.ended_at = time.monotonic()
    finally:
        reader.over.cancel()
    return observed
