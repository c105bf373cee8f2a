"""The hot paths inside uvicorn's own HTTP protocol, without an ASGI task per request.

uvicorn keeps what it is good at: sockets, TLS, signals, keep-alive, pipelining and every other
path. A POST to one of the routed paths is collected here and handed to the data plane.

This leans on internals of uvicorn 0.54 (``cycle``, ``pipeline``, ``_start_asgi_task``,
``on_response_complete`` and the parser callbacks); its version is pinned, and
tests/gateway/test_hot.py holds what is relied on.
"""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar

import httptools
import structlog
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from pointsman_serving.gateway.cycle import HotCycle, bare_reply
from pointsman_serving.gateway.headers import request_id_of
from pointsman_serving.gateway.intake import refuse
from pointsman_serving.gateway.lingering import Lingering
from pointsman_serving.gateway.openai import (
    ApiError,
    body_too_large,
    read_timeout,
    shutting_down,
)
from pointsman_serving.gateway.pace import ReadPace
from pointsman_serving.gateway.plane import DataPlane
from pointsman_serving.gateway.upgrade import PastHead, head_without_upgrade
from pointsman_serving.routing.types import Api

log = structlog.get_logger(__name__)

HOT_PATHS = {f"/v1/{api.value}".encode("ascii"): api for api in Api}

# The parser keeps a head and trailers in memory and has no limit of its own. What a single read
# brings comes on top.
_MAX_HEAD_BYTES = 128 * 1024


class HotProtocol(HttpToolsProtocol):
    """uvicorn's protocol with the routed paths taken out. Subclassed once per gateway."""

    plane: ClassVar[DataPlane]

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._hot: HotCycle | None = None
        """The hot request that is being read."""
        self._replying: HotCycle | None = None
        """The hot request whose turn it is."""
        self._lingering: Lingering | None = None
        self._in_head = False
        self._bare_bytes = 0
        """Bytes read since the last that were of a body: heads, trailers and chunks' sizes."""
        self._receiving = False
        """Whether a request has begun and is not whole."""
        self._pace = ReadPace(self.loop.call_later, self.plane.settings, self._check_pace)
        self._stopping = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for a first request no longer than for a second one."""
        super().connection_made(transport)
        self.timeout_keep_alive_task = self.loop.call_later(
            self.timeout_keep_alive, self.timeout_keep_alive_handler
        )

    # Reading requests.

    def data_received(self, data: bytes) -> None:
        """Feed the parser, unless the connection only waits for its end."""
        if self._lingering is not None:
            self._lingering.drop(data)
            return
        self._unset_keepalive_if_required()
        if self._bare_bytes > _MAX_HEAD_BYTES:
            self._refuse_connection("its headers are too long", status=431)
            return
        self._bare_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            if self._hot is None:
                self._unsupported_upgrade_warning()
            else:
                self._read_without_upgrade(self._hot, data[upgrade.args[0] :])
        except httptools.HttpParserError as error:
            self._refuse_connection(str(error))
        if self._receiving:
            # Requests that come in one read, nearly all of them, need no timer.
            self._pace.watch()

    def on_message_begin(self) -> None:
        """Start a request; uvicorn's scope is only made when it is needed."""
        self.url = b""
        self.expect_100_continue = False
        self.headers = []
        self._hot = None
        self._in_head = self._receiving = True
        self._bare_bytes = 0
        self._pace.began_at = self._pace.came_at = self.loop.time()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header, but no trailer: it would change what has been decided on the head."""
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Tell the hot paths from the others."""
        self._in_head = False
        self._pace.began_at = self._pace.came_at = self.loop.time()
        if self._lingering is not None:
            # What follows a refused body in the same read gets no answer.
            self._hot = HotCycle(
                self, Api.CHAT, self.headers, http10=False, keep=False, budget=self.plane.bodies
            )
            self._hot.response_complete = True
            return
        url = self.url
        api = HOT_PATHS.get(url)
        if api is None and b"?" in url:
            api = HOT_PATHS.get(url.partition(b"?")[0])
        if api is None or self.parser.get_method() != b"POST":
            self._as_usual()
            return
        version = self.parser.get_http_version()
        cycle = HotCycle(
            self,
            api,
            self.headers,
            http10=version == "1.0",
            # Only right inside the parser's callbacks.
            keep=version != "1.0" and self.parser.should_keep_alive(),
            budget=self.plane.bodies,
        )
        cycle.expects_continue = self.expect_100_continue
        self._begin(cycle)

    def _begin(self, cycle: HotCycle) -> None:
        limit = self.plane.settings.max_body_bytes
        for name, value in cycle.headers:
            if name == b"content-length" and int(value) > limit:
                cycle.refused = body_too_large(limit)
        before = self.cycle
        self._hot = cycle
        self.cycle = cycle  # type: ignore[assignment]
        if before is None or before.response_complete:
            self._activate(cycle)
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((cycle, self.app))  # type: ignore[arg-type]

    def _as_usual(self) -> None:
        url, headers, expects = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()
        self.url = url
        self.expect_100_continue = expects
        self.headers.extend(headers)
        super().on_headers_complete()
        if self.plane.ending:
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        """Collect a hot body up to the limit."""
        self._bare_bytes = 0
        self._pace.came_at = self.loop.time()
        cycle = self._hot
        if cycle is None:
            super().on_body(body)
            return
        if cycle.refused is not None or cycle.response_complete:
            return
        error = cycle.take(body, self.plane.settings)
        if error is not None:
            self._refuse(cycle, error)

    def on_message_complete(self) -> None:
        """Route a hot request as soon as it is whole and its turn has come."""
        cycle = self._hot
        if cycle is not None and self.parser.should_upgrade():
            # The body has not been read: the parser stops for the upgrade.
            return
        self._receiving = False
        self._bare_bytes = 0
        self._pace.stop()
        if cycle is None:
            super().on_message_complete()
        else:
            self._whole(cycle)

    def _whole(self, cycle: HotCycle) -> None:
        cycle.whole = True
        if cycle.active and not cycle.response_complete:
            cycle.route(self.plane)

    def _read_without_upgrade(self, cycle: HotCycle, rest: bytes) -> None:
        """Read the body that follows."""
        head = head_without_upgrade(self.url, cycle.headers, http10=cycle.http10)
        self.parser = httptools.HttpRequestParser(PastHead(self))
        try:
            self.parser.feed_data(head)
            self.parser.feed_data(rest)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._refuse_connection(str(error))

    # A client that sends too slowly.

    def _check_pace(self) -> None:
        """End a request that does not come."""
        if not self._receiving or self._lingering is not None or self.transport.is_closing():
            return
        now = self.loop.time()
        earlier = self._in_head and self.cycle is not None and not self.cycle.response_complete
        if self.flow.read_paused or earlier:
            # We do not read, or an earlier reply is under way, which must not be cut.
            self._pace.began_at = self._pace.came_at = now
        limit = self._pace.overdue(now, in_head=self._in_head)
        if limit is not None:
            self._refuse_half(read_timeout(limit))

    def _refuse_half(self, error: ApiError) -> None:
        """Answer a request that is not whole, and close."""
        cycle = self._hot
        if cycle is not None:
            self._refuse(cycle, error)
            return
        unread = self.cycle
        if not self._in_head and isinstance(unread, RequestResponseCycle):
            if unread.response_started:
                self.transport.close()
                return
            # The application waits for a body that nobody will send.
            unread.disconnected = unread.response_complete = True
            unread.message_event.set()
        self._end_with(error)

    def shutdown(self) -> None:
        """Begin to end: what has been asked in full is answered, nothing else is waited for."""
        self._stopping = True
        cycle = self._hot
        if self._receiving and self._lingering is None:
            if cycle is not None and cycle is self._replying and not cycle.response_started:
                self._refuse(cycle, shutting_down())
                return
            first = self._replying is None and not self.pipeline
            if cycle is None and not self._in_head and first and not self.cycle.response_started:
                self._refuse_half(shutting_down())
                return
        super().shutdown()

    # Turns.

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        if isinstance(cycle, HotCycle):
            # Not in this call: many pipelined requests in one read would nest.
            self.loop.call_soon(self._activate, cycle)
        else:
            super()._start_asgi_task(cycle, app)

    def _activate(self, cycle: HotCycle) -> None:
        """It is this request's turn."""
        if cycle.disconnected or self.transport.is_closing():
            return
        cycle.active = True
        self._replying = cycle
        if cycle.refused is not None:
            self._refuse(cycle, cycle.refused)
            return
        if self._stopping and not cycle.whole:
            self._refuse(cycle, shutting_down())
            return
        if cycle.expects_continue and not cycle.whole:
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if cycle.whole:
            cycle.route(self.plane)

    @property
    def ending(self) -> bool:
        """Whether the gateway ends and the client has nothing more under way here."""
        return self.plane.ending and not self.pipeline and not self._receiving

    @property
    def write_paused(self) -> bool:
        """Whether the client reads more slowly than data comes."""
        return self.flow.write_paused

    def hot_complete(self, cycle: HotCycle) -> None:
        """Called by a cycle whose reply is whole."""
        if self._replying is cycle:
            self._replying = None
        if not cycle.keep_alive and self._lingering is None:
            self.transport.close()
        self.on_response_complete()

    # Refusals.

    def _refuse(self, cycle: HotCycle, error: ApiError) -> None:
        """Answer before the body has ended, then drop the rest of it and close."""
        cycle.refused = error
        if not cycle.active:
            return
        cycle.keep_alive = False
        # Set before the answer is whole, which would close the connection.
        self._lingering = Lingering(self.loop, self.transport)
        request_id = request_id_of(cycle.headers, self.plane.new_id)
        started = self.plane.clock()
        refuse(self.plane, cycle, error, request_id, api=cycle.api, started=started)
        self._linger()

    def _linger(self) -> None:
        """End our half, and read and drop what still comes until the client ends its own."""
        self.flow.resume_reading()
        if self._lingering is None:
            self._lingering = Lingering(self.loop, self.transport)
        if self.transport.can_write_eof():
            self.transport.write_eof()

    def _refuse_connection(self, cause: str, *, status: int = 400) -> None:
        """Answer bytes that are no request, unless a reply is under way on the connection."""
        log.info("invalid HTTP", client=self.client, cause=cause)
        message = f"The request is not valid HTTP: {cause}."
        self._end_with(ApiError(status=status, message=message, code="bad_http"))

    def _end_with(self, error: ApiError) -> None:
        """Answer on the bare connection and close it; where a reply is under way, only close."""
        self._pace.stop()
        reading = self._hot is not None and self._hot is self._replying
        if self.cycle is not None and not self.cycle.response_complete and not reading:
            self.transport.close()
        else:
            self.transport.write(bare_reply(error))
            self._linger()

    # The connection.

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the work for a client that has left."""
        if self._lingering is not None:
            self._lingering.cancel()
        self._pace.stop()
        for waiting in (self._hot, self._replying, *(cycle for cycle, _ in self.pipeline)):
            if isinstance(waiting, HotCycle):
                waiting.release()
        cycle, self._replying = self._replying, None
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True
            relay, cycle.relay = cycle.relay, None
            if relay is not None:
                relay.client_gone()
        self.pipeline.clear()
        super().connection_lost(exc)
        self._unset_keepalive_if_required()

    def pause_writing(self) -> None:
        """The client reads slowly."""
        super().pause_writing()
        if self._replying is not None and self._replying.relay is not None:
            self._replying.relay.client_paused()

    def resume_writing(self) -> None:
        """The client reads again."""
        super().resume_writing()
        if self._replying is not None and self._replying.relay is not None:
            self._replying.relay.client_resumed()


def hot_protocol(plane: DataPlane) -> type[HotProtocol]:
    """The protocol class of one gateway, as uvicorn's ``Config(http=...)`` wants it."""
    return type("GatewayProtocol", (HotProtocol,), {"plane": plane})
