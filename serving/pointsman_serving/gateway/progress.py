"""What a client hears while its stream waits, where it asked to: comments that clients skip.

Telling commits the reply to 200 before it is known what comes of the request. So whatever comes
later that is no stream, such as an error of the gateway's or of a replica's, becomes an event.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from pointsman_serving.gateway.deadline import CallLater, Timer
from pointsman_serving.gateway.dispatcher import Standing
from pointsman_serving.gateway.headers import routed_lines
from pointsman_serving.gateway.reply import ClientReply
from pointsman_serving.routing.types import RouteRequest

PROGRESS_HEADER = "x-pointsman-progress"

_FIRST_SECONDS = 1.0
_NEXT_SECONDS = 2.0

_DONE = b"data: [DONE]\n\n"


def wants_progress(headers: Mapping[str, str], *, stream: bool) -> bool:
    """Whether a client asked to hear of its waiting; only a stream can tell it."""
    return stream and headers.get(PROGRESS_HEADER, "").strip().lower() == "true"


def waiting_comment(standing: Standing) -> bytes:
    """One comment of server-sent events."""
    what = "waiting for a replica to start" if standing.cold else "waiting"
    position = "far back" if standing.position is None else f"position {standing.position}"
    about = "" if standing.seconds is None else f", about {standing.seconds:.0f} s"
    return f": {what}, {position}{about}\n\n".encode()


class ProgressReply:
    """A reply whose client hears of its waiting. Is a ``ClientReply`` itself.

    Args:
        reply: the client's side.
        standing: where the request stands; None where it does not wait.
        lines: header lines of a reply that begins before its replica is known.
    """

    def __init__(
        self,
        reply: ClientReply,
        *,
        call_later: CallLater,
        standing: Callable[[], Standing | None],
        lines: bytes,
    ) -> None:
        self._reply = reply
        self._call_later = call_later
        self._standing = standing
        self._lines = lines
        self._timer: Timer | None = None
        self._told = False
        # A reply that is no stream, until it is whole; None: what comes is passed on.
        self._kept: bytearray | None = None

    # Waiting.

    def start_telling(self) -> None:
        """The request waits from now on: tell of it after a second, then every two."""
        if self._timer is None:
            self._timer = self._call_later(_FIRST_SECONDS, self._tell)

    def stop_telling(self) -> None:
        """The request waits no more; further calls change nothing."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _tell(self) -> None:
        self._timer = None
        standing = self._standing()
        if standing is None:
            return
        comment = waiting_comment(standing)
        if self._told:
            # A client that does not read gets no pile of comments.
            if not self._reply.paused:
                self._reply.send(comment)
        else:
            self._told = True
            lines = self._lines + (
                b"content-type: text/event-stream; charset=utf-8\r\ncache-control: no-cache\r\n"
            )
            self._reply.start(200, lines, length=None, body=comment, last=False)
        self._timer = self._call_later(_NEXT_SECONDS, self._tell)

    # The client's side of an exchange.

    @property
    def paused(self) -> bool:
        """Whether the client reads more slowly than data comes."""
        return self._reply.paused

    def start(
        self, status: int, lines: bytes, *, length: int | None, body: bytes, last: bool
    ) -> None:
        """Commit, or go on with what is committed."""
        self.stop_telling()
        if not self._told:
            self._reply.start(status, lines, length=length, body=body, last=last)
            return
        if status != 200 or b"text/event-stream" not in lines.lower():
            self._kept = bytearray()
        self.send(body)
        if last:
            self.end()

    def release(self) -> None:
        """The request's body is needed no more, or is counted elsewhere."""
        self._reply.release()

    def send(self, data: bytes) -> None:
        """More of the body."""
        if self._kept is None:
            self._reply.send(data)
        else:
            self._kept += data

    def end(self) -> None:
        """The body is whole."""
        if self._kept is not None:
            # Line breaks in JSON are white space; an event's data has none.
            content = bytes(self._kept).replace(b"\r", b" ").replace(b"\n", b" ")
            self._reply.send(b"data: " + content + b"\n\n" + _DONE)
        self._reply.end()

    def abort(self) -> None:
        """Cut the connection, so that the client sees that the reply is not whole."""
        self.stop_telling()
        self._reply.abort()


def progress_of(
    reply: ClientReply,
    request: RouteRequest,
    *,
    call_later: CallLater,
    standing: Callable[[], Standing | None],
) -> ProgressReply | None:
    """The reply to a client that asked to hear of its waiting; None where it did not."""
    if not wants_progress(request.headers, stream=request.stream):
        return None
    lines = routed_lines(request.request_id, None)
    return ProgressReply(reply, call_later=call_later, standing=standing, lines=lines)
