"""One HTTP/1.1 connection to a replica: callbacks, no tasks.

A general client costs more per request than all the rest of the gateway. This one does what a
proxy needs: back-pressure, replies with a length, in chunks or ended by closing, and an exact
answer to *how much came back* when the connection breaks.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Final, Protocol

import httptools

from pointsman_serving.gateway.endpoint import Endpoint
from pointsman_serving.gateway.headers import Header

# A peer that has vanished is noticed after a minute: 30 s of silence, then three probes.
_KEEPALIVE: Final = [
    (getattr(socket, name), value)
    for name, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3))
    if hasattr(socket, name)
]


class Exchange(Protocol):
    """Who waits for a reply. Every method is called on the event loop."""

    def connected(self, connection: UpstreamConnection) -> None:
        """The connection is there; the request can be sent on it."""

    def connect_failed(self, reason: str, *, lacking: bool) -> None:
        """There is no connection.

        Args:
            lacking: the gateway has no descriptor or port left; of the replica nothing is known.
        """

    def head(self, status: int, headers: list[Header]) -> None:
        """The reply's status and headers (names in lower case)."""

    def received(self, data: bytes, *, done: bool) -> None:
        """A piece of the reply's body; ``done``: the reply is whole."""

    def lost(self, reason: str, *, untouched: bool) -> None:
        """The connection broke before the reply was whole.

        Args:
            reason: for people.
            untouched: a kept connection ended before any byte of a reply, as happens when the
                replica closes it while the request is on its way.
        """


class Keeper(Protocol):
    """Who keeps connections that nobody uses."""

    def opened(self, connection: UpstreamConnection) -> None:
        """The connection is there."""

    def closed(self, connection: UpstreamConnection) -> None:
        """The connection is gone."""

    def keep(self, connection: UpstreamConnection) -> None:
        """The connection has carried a whole reply and can carry another."""


class UpstreamConnection(asyncio.Protocol):
    """One connection to a replica; carries one exchange at a time."""

    __slots__ = (
        "_body",
        "_done",
        "_exchange",
        "_got_bytes",
        "_head_due",
        "_head_seen",
        "_headers",
        "_keep_alive",
        "_keeper",
        "_overrun",
        "_parser",
        "_reused",
        "_status",
        "_transport",
        "_until_close",
        "endpoint",
        "idle_since",
    )

    def __init__(self, keeper: Keeper, endpoint: Endpoint) -> None:
        self._keeper = keeper
        self.endpoint = endpoint
        self.idle_since = 0.0
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._exchange: Exchange | None = None
        self._reused = False
        self._reset()

    def _reset(self) -> None:
        self._got_bytes = False
        self._head_due = False
        self._head_seen = False
        self._done = False
        self._overrun = False
        self._keep_alive = False
        self._until_close = False
        self._status = 0
        self._headers: list[Header] = []
        self._body: list[bytes] = []

    # What the exchange does.

    @property
    def usable(self) -> bool:
        """Whether a request can be sent on it."""
        return self._transport is not None and not self._transport.is_closing()

    def send(self, exchange: Exchange, request: bytes) -> None:
        """Send a request; its reply goes to ``exchange``."""
        if self._transport is None:
            raise RuntimeError("the connection was closed before the request was sent")
        self._exchange = exchange
        self.endpoint.busy.add(self)
        self._transport.write(request)

    def pause(self) -> None:
        """Stop reading: the client is slower than the replica."""
        if self.usable and self._transport is not None:
            self._transport.pause_reading()

    def resume(self) -> None:
        """Read on."""
        if self.usable and self._transport is not None:
            self._transport.resume_reading()

    def abandon(self) -> None:
        """Close at once; the exchange hears no more. The replica sees the client leave."""
        self._exchange = None
        self.endpoint.busy.discard(self)
        if self._transport is not None:
            self._transport.abort()

    def lose(self, reason: str) -> None:
        """Close at once, and tell the exchange that its replica is gone."""
        exchange = self._exchange
        self.abandon()
        if exchange is not None:
            exchange.lost(reason, untouched=False)

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """The socket is there."""
        self._transport = transport
        # A whole answer may take half an hour in silence: only the kernel can tell that the
        # machine behind it is gone.
        opened = transport.get_extra_info("socket")
        if opened is not None:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for option, value in _KEEPALIVE:
                opened.setsockopt(socket.IPPROTO_TCP, option, value)
        self._keeper.opened(self)

    def data_received(self, data: bytes) -> None:
        """Read a piece of the reply, and pass on once what it brought."""
        exchange = self._exchange
        if exchange is None:
            # Nothing was asked for: whatever this is, the next reply could not be told from it.
            self.abandon()
            return
        self._got_bytes = True
        self.endpoint.heard = True
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self.abandon()
            exchange.lost(f"the reply is not valid HTTP ({error})", untouched=False)
            return
        if self._head_due:
            self._head_due = False
            exchange.head(self._status, self._headers)
            if self._exchange is not exchange:
                return
        if self._done:
            body = b"".join(self._body)
            self._release()
            exchange.received(body, done=True)
        elif self._body:
            body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
            self._body = []
            exchange.received(body, done=False)

    def eof_received(self) -> None:
        """Close: a replica that has ended its half has no more to say."""
        return

    def connection_lost(self, exc: Exception | None) -> None:
        """The socket is gone."""
        self._transport = None
        self.endpoint.busy.discard(self)
        self._keeper.closed(self)
        exchange, self._exchange = self._exchange, None
        if exchange is None:
            return
        if self._until_close and exc is None:
            exchange.received(b"", done=True)
            return
        how = "closed" if exc is None else f"broke ({exc})"
        when = "before any answer" if not self._got_bytes else "in the middle of the answer"
        exchange.lost(
            f"the connection {how} {when}", untouched=self._reused and not self._got_bytes
        )

    # httptools callbacks; should_keep_alive() is only right inside them.

    def on_message_begin(self) -> None:
        """A reply begins; a second one is never relayed."""
        if self._done:
            self._overrun = True
            return
        self._headers = []

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header."""
        if not self._overrun:
            self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """The reply's head, unless it is an interim one."""
        if self._overrun:
            return
        status = self._parser.get_status_code()
        if status < 200:
            return
        self._status = status
        self._head_due = self._head_seen = True
        self._until_close = not any(
            name in (b"content-length", b"transfer-encoding") for name, _ in self._headers
        ) and status not in (204, 304)

    def on_body(self, body: bytes) -> None:
        """A piece of the body."""
        if not self._overrun:
            self._body.append(body)

    def on_message_complete(self) -> None:
        """The reply is whole."""
        if not self._overrun and self._head_seen:
            self._done = True
            self._keep_alive = self._parser.should_keep_alive()

    def _release(self) -> None:
        """The reply is whole: keep the connection if it can be used again."""
        self._exchange = None
        self.endpoint.busy.discard(self)
        transport = self._transport
        if (
            transport is None
            or not self._keep_alive
            or self._overrun
            or transport.is_closing()
            or transport.get_write_buffer_size() > 0
        ):
            self.abandon()
            return
        self._reset()
        self._reused = True
        self._keeper.keep(self)
