"""One attempt at a request: one replica, one connection, one reply."""

from __future__ import annotations

import asyncio
from typing import Protocol

from pointsman_api.route_table import Rule
from pointsman_serving.gateway.assignment import Assignment
from pointsman_serving.gateway.connection import UpstreamConnection
from pointsman_serving.gateway.endpoint import Endpoint
from pointsman_serving.gateway.failure import (
    STALLED,
    Failure,
    Judge,
    no_connection,
    no_descriptor,
    refusal_in_stream,
)
from pointsman_serving.gateway.headers import Header
from pointsman_serving.gateway.limits import (
    first_token_seconds,
    next_token_seconds,
    resumed_token_seconds,
)
from pointsman_serving.gateway.openai import ApiError, nested_too_deeply, stream_broken
from pointsman_serving.gateway.phase import LegPhase
from pointsman_serving.gateway.reading import Reading
from pointsman_serving.gateway.reply_head import ReplyHead
from pointsman_serving.gateway.upstream import Upstreams
from pointsman_serving.routing.types import ReplicaKey, Usage


class LegOwner(Protocol):
    """Whose attempt it is. Every method is called on the event loop."""

    def request_bytes(self, leg: Leg) -> bytes:
        """The bytes of the request.

        Raises:
            RecursionError: the body is nested too deeply to be written anew.
        """

    def reading_of(self, leg: Leg, head: ReplyHead) -> Reading:
        """How to read the body of a reply that is no failure."""

    def leg_sent(self, leg: Leg) -> None:
        """The request goes out now."""

    def leg_failed(self, leg: Leg, failure: Failure) -> None:
        """It has come to nothing."""

    def leg_refused(self, leg: Leg, error: ApiError) -> None:
        """The request itself is at fault: another replica would say the same."""

    def leg_brought(self, leg: Leg, data: bytes, *, last: bool) -> None:
        """Bytes for the client; ``last``: the body is whole with them."""

    def leg_broke(self, leg: Leg, failure: Failure) -> None:
        """It has brought something and will bring no more."""

    def leg_ended(self, leg: Leg) -> None:
        """All that the replica had to say is passed on."""


class Leg:
    """One attempt. Implements ``connection.Exchange``.

    Args:
        judge: tells failures from answers.
        stream: the request is for a stream.
        clock: seconds; monotonic.
    """

    __slots__ = (
        "_connecting",
        "_connection",
        "_judge",
        "_next_token_seconds",
        "_owner",
        "_rule",
        "_stream",
        "_upstreams",
        "assignment",
        "endpoint",
        "error_told",
        "late_at",
        "notes",
        "phase",
        "reading",
        "reply",
    )

    def __init__(
        self,
        owner: LegOwner,
        upstreams: Upstreams,
        assignment: Assignment,
        endpoint: Endpoint,
        rule: Rule,
        judge: Judge,
        *,
        stream: bool,
    ) -> None:
        self._owner = owner
        self._upstreams = upstreams
        self._rule = rule
        self._judge = judge
        self._stream = stream
        # Set for every token, so looked up once.
        self._next_token_seconds = next_token_seconds(rule, stream=stream)
        self._connecting: asyncio.Task[None] | None = None
        self._connection: UpstreamConnection | None = None
        self.assignment = assignment
        self.endpoint = endpoint
        self.phase = LegPhase.CONNECTING
        self.late_at = 0.0
        """When something should have come, by the plane's clock."""
        self.notes = False
        """Whether what it brings is noted, and token ids are asked for, to go on elsewhere."""
        self.error_told = False
        """Whether the client has got an error of the replica in its stream."""
        self.reply: ReplyHead | None = None
        self.reading: Reading | None = None

    @property
    def key(self) -> ReplicaKey:
        """Which replica."""
        return self.assignment.key

    @property
    def external(self) -> bool:
        """Whether the replica is somebody else's endpoint."""
        return self._judge.external

    @property
    def over(self) -> bool:
        """Whether nothing more will come of it."""
        return self.phase is LegPhase.ENDED

    @property
    def events(self) -> int:
        """Data events that were passed on."""
        return 0 if self.reading is None else self.reading.events

    # Sending.

    def start(self, *, fresh: bool = False) -> None:
        """Connect and send.

        Args:
            fresh: not on a connection that was kept.
        """
        limit = self._rule.resilience.connect_timeout_seconds
        self.phase = LegPhase.CONNECTING
        # The task keeps the limit; this is behind it.
        self.late_at = self.assignment.now() + limit + 1.0
        self._connecting = self._upstreams.connect(
            self.endpoint, self, timeout_seconds=limit, fresh=fresh
        )

    def connected(self, connection: UpstreamConnection) -> None:
        """Send the request."""
        self._connecting = None
        if self.phase is not LegPhase.CONNECTING:
            connection.abandon()
            return
        self.phase = LegPhase.WAITING
        if not connection.usable:
            self.lost("the connection closed at once", untouched=False)
            return
        self._connection = connection
        self.late_at = self.assignment.now() + self._first_token_seconds()
        self._owner.leg_sent(self)
        try:
            request = self._owner.request_bytes(self)
        except RecursionError:
            self._owner.leg_refused(self, nested_too_deeply())
            return
        connection.send(self, request)

    def _first_token_seconds(self) -> float:
        if self._judge.hurries:
            predicted_seconds = self.assignment.predicted_ttft_seconds
            return resumed_token_seconds(self._rule, predicted_seconds=predicted_seconds)
        return first_token_seconds(self._rule, stream=self._stream)

    def connect_failed(self, reason: str, *, lacking: bool) -> None:
        """No connection: the next replica."""
        self._connecting = None
        if self.phase is LegPhase.CONNECTING:
            self._fail(no_descriptor(reason) if lacking else no_connection(reason))

    # The replica's reply.

    def head(self, status: int, headers: list[Header]) -> None:
        """Look at the reply's beginning."""
        head = self.reply = ReplyHead(status, headers)
        if head.load_report is not None:
            self.assignment.report(head.load_report)
        if head.instance and not head.failed and not self.external:
            self.assignment.instance(head.instance)
        if head.kv_events:
            self._upstreams.announced(self.endpoint.address, head.kv_events)
        failure = self._judge.of_head(head)
        if failure is not None:
            self._fail(failure)
        else:
            self.reading = self._owner.reading_of(self, head)

    def received(self, data: bytes, *, done: bool) -> None:
        """A piece of the reply's body."""
        reading = self.reading
        if done:
            # A whole reply has given its connection back.
            self._connection = None
        if reading is None or self.phase is LegPhase.ENDED:
            return
        before = reading.events
        passed = reading.feed(data, done=done)
        waiting = self.phase is LegPhase.WAITING
        if waiting and reading.error is not None and not (reading.error_held and reading.events):
            self._failed_in_stream(reading)
            return
        if reading.events > before:
            self.assignment.events(reading.events - before)
        flaw = reading.flaw() if done else ""
        if flaw and waiting and not reading.events:
            reason = "the stream ended before its first event"
            self._fail(Failure(label="empty_stream", reason=reason))
            return
        if reading.seam and waiting and not reading.events:
            self._fail(Failure(label="seam", reason=reading.seam, eject=False))
            return
        last = done and not flaw and not reading.error_held and not reading.seam
        if passed is not None or last:
            self.phase = LegPhase.REPLYING
            self.late_at = self.assignment.now() + self._next_token_seconds
            self._owner.leg_brought(self, passed or b"", last=last)
            if self.over:
                return
        if reading.seam:
            self._break(Failure(label="seam", reason=reading.seam, eject=False))
            return
        if reading.error is not None:
            self._error_in_reply(reading)
            if self.over:
                return
        if flaw:
            self._break(Failure(label="truncated", reason=flaw))
        elif done:
            self._owner.leg_ended(self)

    def _failed_in_stream(self, reading: Reading) -> None:
        """An error came under status 200, and nothing is committed."""
        if reading.error is None:
            return
        failure = self._judge.of_stream(reading.error)
        if failure is not None:
            self._fail(failure)
        else:
            self._owner.leg_refused(self, refusal_in_stream(reading.error))

    def _error_in_reply(self, reading: Reading) -> None:
        """An error came in a committed stream: the client has got it, or it is held back."""
        if reading.error is None:
            return
        if reading.error_held:
            failure = self._judge.of_stream(reading.error)
            self._break(failure or Failure(label="error_event", reason="the replica failed"))
            return
        if not self.error_told and reading.error.status >= 500:
            self.assignment.eject()
        self.error_told = True

    def lost(self, reason: str, *, untouched: bool) -> None:
        """The connection broke: connect anew, or this attempt is over."""
        self._connection = None
        if self.phase is LegPhase.ENDED:
            return
        if self.phase is LegPhase.REPLYING:
            self._break(Failure(label="reset", reason=reason, gone=True))
        elif untouched:
            # The replica closed a kept connection before it can have read the request.
            self.start(fresh=True)
        else:
            self._fail(Failure(label="reset", reason=reason, gone=True))

    def _fail(self, failure: Failure) -> None:
        self.end()
        self._owner.leg_failed(self, failure)

    def _break(self, failure: Failure) -> None:
        reading = self.reading
        if reading is not None and reading.ended:
            # Only the connection's end is missing.
            self._owner.leg_brought(self, b"", last=True)
            self._owner.leg_ended(self)
            return
        self.end()
        self._owner.leg_broke(self, failure)

    # Its owner's side.

    def late(self) -> None:
        """Its time is over."""
        limits = self._rule.resilience
        if self.phase is LegPhase.CONNECTING:
            self._fail(no_connection("no connection in time"))
        elif self.phase is LegPhase.WAITING:
            self._fail(self._judge.late(self._first_token_seconds()))
        elif self.phase is LegPhase.REPLYING:
            reason = f"nothing came for {limits.between_tokens_timeout_seconds:g} s"
            self._break(
                Failure(label=STALLED, reason=reason, error=stream_broken(reason, status=504))
            )

    def expect_more(self) -> None:
        """Begin anew to wait for the next token."""
        self.late_at = self.assignment.now() + self._next_token_seconds

    def pause(self) -> None:
        """Stop reading."""
        if self._connection is not None:
            self._connection.pause()
            self.assignment.paused(True)

    def resume(self) -> None:
        """Read on."""
        if self._connection is not None:
            self._connection.resume()
            self.assignment.paused(False)

    def end(self) -> None:
        """Leave the replica; the owner hears no more."""
        self.phase = LegPhase.ENDED
        if self._connecting is not None:
            self._connecting.cancel()
            self._connecting = None
        if self._connection is not None:
            self._connection.abandon()
            self._connection = None

    def finish(self, *, ok: bool, usage: Usage | None = None, learn: bool = True) -> None:
        """Give the replica's place back; only the first time counts."""
        self.assignment.finish(ok=ok, usage=usage, learn=learn)
