"""What the client of one routed request gets: a reply, or an error in the form that fits."""

from __future__ import annotations

import structlog

from pointsman_serving.gateway.headers import reply_lines, routed_lines
from pointsman_serving.gateway.leg import Leg
from pointsman_serving.gateway.openai import ApiError
from pointsman_serving.gateway.progress import ProgressReply
from pointsman_serving.gateway.reply import ClientReply, send_error
from pointsman_serving.routing.types import ReplicaKey

log = structlog.get_logger(__name__)


class Answer:
    """The client's side of one request.

    Args:
        reply: the connection to the client.
        progress: the same, where the client wants to hear of its waiting.
    """

    __slots__ = ("_progress", "_reply", "_request_id", "committed")

    def __init__(
        self, reply: ClientReply, request_id: str, *, progress: ProgressReply | None
    ) -> None:
        self._reply = reply if progress is None else progress
        self._progress = progress
        self._request_id = request_id
        self.committed = False
        """Whether a replica's reply has begun."""

    @property
    def paused(self) -> bool:
        """Whether the client reads more slowly than data comes."""
        return self._reply.paused

    def waits(self) -> None:
        """The request waits: tell the client of it now and then, if it wants to hear."""
        if self._progress is not None and not self.committed:
            self._progress.start_telling()

    def waits_no_more(self) -> None:
        """The request was sent, or has ended."""
        if self._progress is not None:
            self._progress.stop_telling()

    def begin(self, leg: Leg, data: bytes, *, last: bool) -> None:
        """Commit to a replica's reply.

        Raises:
            RuntimeError: it has no head yet.
        """
        head, reading = leg.reply, leg.reading
        if head is None or reading is None:
            raise RuntimeError("an attempt brought data before its head")
        self.committed = True
        self._reply.release()
        lines = reply_lines(head.headers, external=leg.external)
        lines += routed_lines(self._request_id, leg.key)
        self._reply.start(head.status, lines, length=reading.length, body=data, last=last)

    def go_on(self, data: bytes, *, last: bool) -> None:
        """More of what has begun."""
        self._reply.send(data)
        if last:
            self._reply.end()

    def refuse(self, error: ApiError, key: ReplicaKey | None) -> None:
        """Answer with an error object; nothing has begun.

        Args:
            key: the replica that it was sent to last.
        """
        send_error(self._reply, error, routed_lines(self._request_id, key))

    def break_off(self, error: ApiError, leg: Leg | None, *, resumed: bool) -> None:
        """End what has begun so that the client sees that it is not whole.

        Args:
            leg: the attempt that was passed on last.
            resumed: what is passed on are whole events.
        """
        reading = None if leg is None else leg.reading
        ending = error.event() if resumed or reading is None else reading.ending(error)
        if ending is None:
            self._reply.abort()
        else:
            self.go_on(ending, last=True)
        log.warning(
            "reply broke",
            request_id=self._request_id,
            replica="" if leg is None else "/".join(leg.key),
            reason=error.message,
        )
