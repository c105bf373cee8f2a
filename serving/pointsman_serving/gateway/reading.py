"""How a replica's reply is read: what is passed on, what is held, and how it may end.

Pure: bytes in, bytes out. A stream and a whole reply differ in nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec

from pointsman_serving.gateway.headers import Header
from pointsman_serving.gateway.openai import ApiError
from pointsman_serving.gateway.said import Said
from pointsman_serving.gateway.sse import SseScanner, StreamError, UsageObject
from pointsman_serving.routing.types import Usage

# A reply longer than this is passed on without being looked at.
_MAX_USAGE_BYTES = 1024 * 1024

_MAX_HELD_BYTES = 64 * 1024


class Reading(Protocol):
    """One reply while it is read."""

    @property
    def length(self) -> int | None:
        """Bytes of the whole body for the client; None where they are not known."""

    @property
    def events(self) -> int:
        """Data events of a stream so far."""

    @property
    def error(self) -> StreamError | None:
        """What an error event of a stream said."""

    @property
    def error_held(self) -> bool:
        """Whether that error was kept from the client."""

    @property
    def seam(self) -> str:
        """Why a stream does not go on where the last one broke; empty where it does."""

    @property
    def ended(self) -> bool:
        """Whether the reply has said its last word, though the connection goes on."""

    def feed(self, data: bytes, *, done: bool) -> bytes | None:
        """Take a piece; return what may be passed on, None while nothing must be committed."""

    def flaw(self) -> str:
        """Once all has come: why it is not whole; empty where it is."""

    def ending(self, error: ApiError) -> bytes | None:
        """What makes a broken reply visible; None: only a cut connection does."""

    def usage(self) -> Usage | None:
        """Once all has come: the tokens that the engine counted."""


class StreamReading:
    """Server-sent events.

    Args:
        hide_usage: leave out the event that only carries the usage.
        said: what the client has got, where the stream may have to be continued.
    """

    __slots__ = ("_held", "_open", "_scanner")

    def __init__(self, *, hide_usage: bool, said: Said | None = None) -> None:
        self._scanner = SseScanner(hide_usage=hide_usage, said=said)
        self._held = b""
        self._open = False

    @property
    def length(self) -> int | None:
        """See :class:`Reading`; leaving out an event changes the length."""
        return None

    @property
    def events(self) -> int:
        """See :class:`Reading`."""
        return self._scanner.events

    @property
    def error(self) -> StreamError | None:
        """See :class:`Reading`."""
        return self._scanner.error

    @property
    def error_held(self) -> bool:
        """See :class:`Reading`."""
        return self._scanner.holding

    @property
    def seam(self) -> str:
        """See :class:`Reading`."""
        return self._scanner.seam

    @property
    def ended(self) -> bool:
        """See :class:`Reading`."""
        return self._scanner.done

    def feed(self, data: bytes, *, done: bool) -> bytes | None:
        """See :class:`Reading`. Comments keep a connection alive, but commit to nothing."""
        scanner = self._scanner
        passed = scanner.feed(data) if data else b""
        if done:
            passed += scanner.flush()
        if self._open:
            return passed
        self._held += passed
        if not (
            scanner.events or scanner.error or scanner.done or len(self._held) > _MAX_HELD_BYTES
        ):
            return None
        self._open = True
        passed, self._held = self._held, b""
        return passed

    def flaw(self) -> str:
        """See :class:`Reading`."""
        if self._scanner.complete:
            return ""
        return "the replica ended the stream without [DONE]"

    def ending(self, error: ApiError) -> bytes | None:
        """The error event; it begins on a line of its own whatever was passed on before."""
        return (b"\n\n" if self._scanner.mid_event else b"") + error.event()

    def usage(self) -> Usage | None:
        """See :class:`Reading`."""
        return self._scanner.usage


class _Reply(msgspec.Struct):
    usage: UsageObject | None = None


_decode_reply = msgspec.json.Decoder(_Reply).decode


class WholeReading:
    """A reply that is no stream.

    Args:
        status: a reply that is an error has no usage.
        headers: names in lower case.
    """

    __slots__ = ("_parts", "_size", "_status", "length")

    def __init__(self, status: int, headers: Sequence[Header]) -> None:
        self._status = status
        self._parts: list[bytes] = []
        self._size = 0
        self.length: int | None = None
        for name, value in headers:
            if name == b"content-length" and value.isdigit():
                self.length = int(value)

    @property
    def events(self) -> int:
        """See :class:`Reading`."""
        return 0

    @property
    def error(self) -> StreamError | None:
        """See :class:`Reading`."""
        return None

    @property
    def error_held(self) -> bool:
        """See :class:`Reading`."""
        return False

    @property
    def seam(self) -> str:
        """See :class:`Reading`."""
        return ""

    @property
    def ended(self) -> bool:
        """See :class:`Reading`."""
        return False

    def feed(self, data: bytes, *, done: bool) -> bytes | None:
        """See :class:`Reading`."""
        self._size += len(data)
        if self._size <= _MAX_USAGE_BYTES:
            self._parts.append(data)
        else:
            self._parts = []
        return data

    def flaw(self) -> str:
        """See :class:`Reading`; a length or chunks that do not fit break the connection."""
        return ""

    def ending(self, error: ApiError) -> bytes | None:
        """See :class:`Reading`."""
        return None

    def usage(self) -> Usage | None:
        """See :class:`Reading`."""
        if self._status != 200 or not self._parts:
            return None
        try:
            usage = _decode_reply(b"".join(self._parts)).usage
        except msgspec.DecodeError:
            return None
        return None if usage is None else usage.usage()
