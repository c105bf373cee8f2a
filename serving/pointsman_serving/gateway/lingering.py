"""The end of a connection whose client still sends what nobody will read."""

from __future__ import annotations

import asyncio

# How long, and for how many bytes, the rest of a refused body is read and dropped: closing
# with unread bytes would reset the connection, and the client would never see the answer.
_SECONDS = 2.0
_BYTES = 64 * 1024 * 1024


class Lingering:
    """Closes the connection after a while, or after too many bytes."""

    __slots__ = ("_dropped_bytes", "_timer", "_transport")

    def __init__(self, loop: asyncio.AbstractEventLoop, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._dropped_bytes = 0
        self._timer = loop.call_later(_SECONDS, transport.close)

    def drop(self, data: bytes) -> None:
        """Bytes came."""
        self._dropped_bytes += len(data)
        if self._dropped_bytes > _BYTES:
            self._transport.close()

    def cancel(self) -> None:
        """The connection is closed."""
        self._timer.cancel()
