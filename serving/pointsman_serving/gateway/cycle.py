"""One hot request and its reply on a client's connection."""

from __future__ import annotations

import asyncio
from typing import ClassVar, Protocol

import structlog
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from pointsman_serving.gateway.headers import Header
from pointsman_serving.gateway.held import HeldBytes
from pointsman_serving.gateway.intake import accept
from pointsman_serving.gateway.openai import ApiError, bodies_full, body_too_large, internal_error
from pointsman_serving.gateway.plane import DataPlane
from pointsman_serving.gateway.relay import Relay
from pointsman_serving.gateway.settings import GatewaySettings
from pointsman_serving.routing.types import Api

log = structlog.get_logger(__name__)


class Wire(Protocol):
    """The connection, as a reply sees it."""

    transport: asyncio.Transport

    @property
    def ending(self) -> bool:
        """Whether the client is to be asked to close: the gateway ends and nothing more waits."""

    @property
    def write_paused(self) -> bool:
        """Whether the transport holds more than its high-water mark."""

    def hot_complete(self, cycle: HotCycle) -> None:
        """The reply is whole."""


class _NoEvent:
    """Stands where uvicorn keeps an asyncio.Event that wakes an ASGI task: there is no task."""

    def set(self) -> None:
        """Nothing waits."""


class HotCycle:
    """One hot request and its reply; stands where uvicorn keeps a RequestResponseCycle."""

    message_event: ClassVar[_NoEvent] = _NoEvent()

    __slots__ = (
        "_budget",
        "_chunked",
        "_held",
        "_wire",
        "active",
        "api",
        "body",
        "disconnected",
        "expects_continue",
        "headers",
        "http10",
        "keep_alive",
        "refused",
        "relay",
        "response_complete",
        "response_started",
        "size",
        "whole",
    )

    def __init__(
        self,
        wire: Wire,
        api: Api,
        headers: list[Header],
        *,
        http10: bool,
        keep: bool,
        budget: HeldBytes,
    ) -> None:
        self._wire = wire
        self._budget = budget
        self._held = 0
        self.api = api
        self.headers = headers
        self.http10 = http10
        self.keep_alive = keep
        self.expects_continue = False
        self.body: list[bytes] = []
        self.size = 0
        self.whole = False
        self.active = False
        """Whether it is this request's turn on the connection."""
        self.refused: ApiError | None = None
        """The error that the request will get whatever else comes."""
        self.relay: Relay | None = None
        self.disconnected = False
        self.response_started = False
        self.response_complete = False
        self._chunked = False

    def take(self, piece: bytes, settings: GatewaySettings) -> ApiError | None:
        """Keep a piece of the body; the answer to the request where it is too much."""
        self.size += len(piece)
        if self.size > settings.max_body_bytes:
            self.release()
            return body_too_large(settings.max_body_bytes)
        if not self._budget.take(len(piece)):
            self.release()
            return bodies_full(settings.retry_after_seconds)
        self._held += len(piece)
        self.body.append(piece)
        return None

    def release(self) -> None:
        """The body is needed no more: a reply begins, or nobody waits for one."""
        self.body = []
        self._budget.give_back(self._held)
        self._held = 0

    def route(self, plane: DataPlane) -> None:
        """Hand the request, which is whole, to the data plane."""
        body = self.body[0] if len(self.body) == 1 else b"".join(self.body)
        self.body = []
        relay = accept(plane, self, self.api, self.headers, body)
        if relay is None:
            return
        self.relay = relay
        try:
            relay.begin()
        except Exception:
            # httptools would turn it into a parser error, and the cause would be lost.
            log.exception("request failed", request_id=relay.request.request_id)
            relay.stop(internal_error())

    # The client's side of an exchange (reply.ClientReply).

    @property
    def paused(self) -> bool:
        """Whether the transport holds more than its high-water mark."""
        return self._wire.write_paused

    def start(
        self, status: int, lines: bytes, *, length: int | None, body: bytes, last: bool
    ) -> None:
        """Write the status line, the headers and the first bytes, in one call."""
        if self.disconnected or self.response_started:
            return
        self.response_started = True
        if self._wire.ending:
            self.keep_alive = False
        if last and length is None and status not in (204, 304):
            length = len(body)
        head = [STATUS_LINE.get(status) or b"HTTP/1.1 %d \r\n" % status, lines]
        if length is not None:
            head.append(b"content-length: %d\r\n" % length)
        elif status not in (204, 304):
            if self.http10:
                self.keep_alive = False
            else:
                self._chunked = True
                head.append(b"transfer-encoding: chunked\r\n")
        if not self.keep_alive:
            head.append(b"connection: close\r\n")
        head.append(b"\r\n")
        if self._chunked and body:
            head.append(b"%x\r\n%b\r\n" % (len(body), body))
        else:
            head.append(body)
        self._wire.transport.write(b"".join(head))
        if last:
            self._complete()

    def send(self, data: bytes) -> None:
        """Write more of the body."""
        if self.disconnected or not data:
            return
        if self._chunked:
            data = b"%x\r\n%b\r\n" % (len(data), data)
        self._wire.transport.write(data)

    def end(self) -> None:
        """Write the end of the body."""
        if self.disconnected:
            return
        if self._chunked:
            self._wire.transport.write(b"0\r\n\r\n")
        self._complete()

    def abort(self) -> None:
        """Close without the end that the framing promises."""
        self.keep_alive = False
        self.release()
        self.response_complete = True
        self.relay = None
        if self.http10:
            # Its body ends with the connection: only a reset tells that it is not whole.
            self._wire.transport.abort()
        else:
            self._wire.transport.close()

    def _complete(self) -> None:
        self.release()
        self.response_complete = True
        self.relay = None
        self._wire.hot_complete(self)


def bare_reply(error: ApiError) -> bytes:
    """The bytes that answer what never became a request; the connection ends with them."""
    body = error.body()
    return (
        STATUS_LINE[error.status]
        + b"content-type: application/json\r\ncontent-length: %d\r\n" % len(body)
        + b"connection: close\r\n\r\n"
        + body
    )
