"""One routed request, from its decision to the end of its reply.

A state machine on the event loop, driven by four sides: the scheduler's decisions, the
connection to the replica, the client and one timer. Nothing is committed to the client before
the first byte that is worth it (a stream's first data event), so until then every failure can
be tried again on another replica.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import structlog

from pointsman_api.route_table import Rule
from pointsman_serving.gateway import openai
from pointsman_serving.gateway.assignment import Assignment
from pointsman_serving.gateway.body import RequestBody
from pointsman_serving.gateway.connection import UpstreamConnection
from pointsman_serving.gateway.deadline import Deadline
from pointsman_serving.gateway.endpoint import Endpoint
from pointsman_serving.gateway.headers import Header, RequestHeaders, reply_lines, routed_lines
from pointsman_serving.gateway.openai import ApiError
from pointsman_serving.gateway.phase import Phase
from pointsman_serving.gateway.reading import Reading
from pointsman_serving.gateway.reply import ClientReply, send_error
from pointsman_serving.gateway.reply_head import ReplyHead
from pointsman_serving.gateway.sse import StreamError
from pointsman_serving.routing.types import Decision, Outcome, ReplicaKey, RouteRequest, Usage

if TYPE_CHECKING:
    from pointsman_serving.gateway.plane import DataPlane

log = structlog.get_logger(__name__)

CLIENT_CLOSED = 499
"""The code under which requests are counted whose client left first."""

_NO_LIMIT = 1 << 62
_MOST_UNREACHED = 8
"""Replicas that could not be connected to and do not count as attempts."""

# Characters of a replica's own message that are passed on.
_ERROR_SHOWN = 2000


class Relay:
    """One request and its attempts. Implements ``connection.Exchange``."""

    def __init__(
        self,
        plane: DataPlane,
        reply: ClientReply,
        *,
        request: RouteRequest,
        headers: RequestHeaders,
        body: RequestBody,
        rule: Rule,
        policy: str,
        started: float,
    ) -> None:
        self.request = request
        self.rule_key = (policy, rule.name)
        self.phase = Phase.NEW
        self._plane = plane
        self._reply = reply
        self._headers = headers
        self._body = body
        self._rule = rule
        self._started = started
        latest = started + rule.resilience.request_timeout_seconds
        self._deadline = Deadline(plane.loop.call_later, plane.clock, self._late, latest=latest)
        self._attempts = 0
        self._unreached = 0
        self.excluded: set[ReplicaKey] = set()
        """The replicas that have failed this request."""
        self._failure: ApiError | None = None
        self._failure_label = ""
        self._assignment: Assignment | None = None
        self._external = False
        """Whether it was sent to somebody else's endpoint last."""
        self._error_told = False
        self._endpoint: Endpoint | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._connection: UpstreamConnection | None = None
        self._head: ReplyHead | None = None
        self._reading: Reading | None = None

    # Choosing and waiting.

    def begin(self) -> None:
        """Start: behind those who wait for the same room already, else at once."""
        self._plane.relays.add(self)
        if self._plane.admission.depth(self.rule_key) and not self._plane.may_go_first(self):
            self._queue(self._plane.clock())
        else:
            self._choose()

    def _choose(self) -> None:
        now = self._plane.clock()
        self.take(self._plane.decide(self.request, now, self.excluded), now)

    def take(self, decision: Decision, now: float) -> None:
        """Act on a decision."""
        if decision.outcome is Outcome.CHOSEN:
            self._dispatch(decision)
        elif decision.outcome is Outcome.WAIT:
            self._queue(now)
        else:
            self._fail(self._failure or self._plane.refusal(decision, self.request.model))

    def _queue(self, now: float) -> None:
        overload = self._rule.overload
        # Who was let through once is not turned away for being many, and waits in front.
        again = self._attempts > 0
        limit = _NO_LIMIT if again else overload.max_queued_requests
        if not self._plane.admission.join(self.rule_key, self, limit=limit, now=now, front=again):
            self._fail(self._plane.queue_full(self.rule_key, self._rule))
            return
        self.phase = Phase.QUEUED
        limit_seconds = overload.max_queue_seconds
        if again:
            # Nor for waiting: it would have its answer, had its replica not failed.
            limit_seconds = max(limit_seconds, self._rule.resilience.first_token_timeout_seconds)
        self._deadline.set(limit_seconds, now)

    # Attempts.

    def _dispatch(self, decision: Decision) -> None:
        winner = decision.winner
        address = None if winner is None else self._plane.scheduler.address(winner.key)
        if address is None:
            self._fail(self._plane.upstream_failed("the chosen replica left", self._attempts))
            return
        if self._attempts:
            self._plane.metrics.retried(self._failure_label)
        self._attempts += 1
        self._external = self._plane.is_external(address.key.pool)
        self._assignment = Assignment(
            self._plane.scheduler, self.request, decision, self._plane.clock
        )
        self._endpoint = self._plane.upstreams.endpoint(address)
        self._connect(self._endpoint, fresh=False)

    def _connect(self, endpoint: Endpoint, *, fresh: bool) -> None:
        self.phase = Phase.CONNECTING
        limit = self._rule.resilience.connect_timeout_seconds
        # The task keeps the limit; the deadline is there for the whole request's.
        self._deadline.set(limit + 1.0, self._plane.clock())
        self._connecting = self._plane.upstreams.connect(
            endpoint, self, timeout_seconds=limit, fresh=fresh
        )

    def connected(self, connection: UpstreamConnection) -> None:
        """Send the request."""
        self._connecting = None
        if self.phase is not Phase.CONNECTING:
            connection.abandon()
            return
        self.phase = Phase.WAITING
        if not connection.usable:
            self.lost("the connection closed at once", untouched=False)
            return
        self._connection = connection
        limits = self._rule.resilience
        # A whole answer begins when it ends: only the whole request's limit says that it is late.
        limit = (
            limits.first_token_timeout_seconds
            if self.request.stream
            else limits.request_timeout_seconds
        )
        self._deadline.set(limit, self._plane.clock())
        try:
            request = self._plane.upstream_request(
                connection.endpoint,
                self.request,
                self._headers,
                self._body,
                self._rule,
                external=self._external,
            )
        except RecursionError:
            self._fail(openai.nested_too_deeply())
            return
        connection.send(self, request)

    def connect_failed(self, reason: str) -> None:
        """No connection: the next replica."""
        self._connecting = None
        if self.phase is Phase.CONNECTING:
            self._attempt_failed("connect", reason)

    def _attempt_failed(
        self, label: str, reason: str, *, eject: bool = True, error: ApiError | None = None
    ) -> None:
        """This replica did not answer, and nothing is committed: try another, or say so."""
        key = self._key
        self._detach()
        if eject:
            # Who cannot be connected to is gone; who answers badly may recover. Told before the
            # end: an attempt that merely ends says nothing about the replica.
            self._eject(hard=label == "connect")
        self._finish(ok=False)
        self._reading = None
        if key is not None:
            self.excluded.add(key)
        log.info(
            "attempt failed",
            request_id=self.request.request_id,
            replica=key,
            attempt=self._attempts,
            reason=reason,
        )
        self._failure_label = label
        self._failure = error or self._plane.upstream_failed(reason, self._attempts)
        if label == "connect" and self._unreached < _MOST_UNREACHED:
            # The request was sent to nobody: that is no attempt at answering it.
            self._unreached += 1
        if self._attempts - self._unreached < self._rule.resilience.attempts:
            self._choose()
        else:
            self._fail(self._failure)

    def _eject(self, *, hard: bool = False) -> None:
        if self._assignment is not None:
            self._assignment.eject(hard=hard)

    @property
    def pools(self) -> list[str]:
        """The pools that its rule may choose."""
        return [target.pool for target in self._rule.targets]

    @property
    def _key(self) -> ReplicaKey | None:
        return None if self._assignment is None else self._assignment.key

    @property
    def pool(self) -> str:
        """The pool that it was sent to last; empty before that."""
        key = self._key
        return "" if key is None else key.pool

    # The replica's reply.

    def head(self, status: int, headers: list[Header]) -> None:
        """Look at the reply's beginning; a failed one is tried again elsewhere."""
        head = self._head = ReplyHead(status, headers)
        if head.load_report is not None and self._assignment is not None:
            self._assignment.report(head.load_report)
        if not self._refused(status, head.retry_after_seconds):
            if head.failed:
                self._attempt_failed(f"status_{status}", f"the replica answered {status}")
            else:
                self._reading = head.reading(hide_usage=self._body.can_add_usage)

    def _refused(self, status: int, retry_after_seconds: int | None) -> bool:
        """Try elsewhere where the replica would not answer and the client is not the reason."""
        if status == 429:
            wait = retry_after_seconds or self._plane.settings.retry_after_seconds
            busy = openai.upstream_busy(attempts=self._attempts, retry_after_seconds=wait)
            self._attempt_failed("status_429", "it answered 429", eject=False, error=busy)
        elif self._external and status in (401, 403):
            refused = openai.key_refused(self.pool, status)
            log.error("a provider refused the gateway's key", pool=self.pool, status=status)
            self._attempt_failed(f"status_{status}", refused.message, error=refused)
        else:
            return False
        return True

    def _failed_in_stream(self, error: StreamError) -> None:
        """An error came under status 200, and nothing is committed."""
        status = error.status
        if self._refused(status, None):
            return
        message = str(error.message)[:_ERROR_SHOWN]
        if status >= 500:
            self._attempt_failed("error_event", f"the replica failed ({message})")
            return
        kind = error.type if isinstance(error.type, str) else "invalid_request_error"
        code = error.code if isinstance(error.code, str) else None
        self._fail(openai.upstream_refusal(status, message, kind=kind, code=code))

    def received(self, data: bytes, *, done: bool) -> None:
        """A piece of the reply's body."""
        head, reading = self._head, self._reading
        if done:
            # A whole reply has given its connection back.
            self._connection = None
        if head is None or reading is None:
            return
        before = reading.events
        passed = reading.feed(data, done=done)
        if reading.error is not None:
            if not self._committed:
                self._failed_in_stream(reading.error)
                return
            self._tell_error(reading.error)
        if reading.events > before and self._assignment is not None:
            self._assignment.events(reading.events - before)
        flaw = reading.flaw() if done else ""
        if flaw and not self._committed and not reading.events:
            self._attempt_failed("empty_stream", "the stream ended before its first event")
            return
        last = done and not flaw
        if passed is not None or last:
            self._pass_on(head, reading, passed or b"", last=last)
        if flaw:
            self._break(openai.stream_broken(flaw))
        elif done:
            self._end_whole(head.status, reading)

    def _tell_error(self, error: StreamError) -> None:
        """An error came in a committed stream: the client gets it, the scheduler hears of it."""
        if not self._error_told and error.status >= 500:
            self._eject()
        self._error_told = True

    def _end_whole(self, status: int, reading: Reading) -> None:
        """All that the replica had to say is passed on."""
        if reading.error is not None:
            self._end(reading.error.status, ok=False)
        else:
            self._end(status, ok=status < 400, usage=reading.usage())

    def _pass_on(self, head: ReplyHead, reading: Reading, data: bytes, *, last: bool) -> None:
        self._expect_more()
        if self._committed:
            self._reply.send(data)
            if last:
                self._reply.end()
            return
        self.phase = Phase.REPLYING
        self._body.release()
        lines = reply_lines(head.headers, external=self._external)
        lines += routed_lines(self.request.request_id, self._key)
        self._reply.start(head.status, lines, length=reading.length, body=data, last=last)
        if self._reply.paused:
            self.client_paused()

    @property
    def _committed(self) -> bool:
        return self.phase is Phase.REPLYING

    def lost(self, reason: str, *, untouched: bool) -> None:
        """The connection broke: connect anew, try another replica, or tell the client."""
        self._connection = None
        if self._committed:
            self._break(openai.stream_broken(reason))
        elif untouched and self._endpoint is not None:
            # The replica closed a kept connection before it can have read the request.
            self._connect(self._endpoint, fresh=True)
        else:
            self._attempt_failed("reset", reason)

    def _break(self, error: ApiError, *, eject: bool = True) -> None:
        """End a committed reply that cannot be whole, so that the client sees it."""
        reading = self._reading
        if reading is not None and reading.ended:
            # Only the connection's end is missing.
            self._reply.end()
            self._end_whole(200, reading)
            return
        if eject and not self._error_told:
            self._eject()
        ending = None if reading is None else reading.ending(error)
        if ending is None:
            self._reply.abort()
        else:
            self._reply.send(ending)
            self._reply.end()
        log.warning(
            "reply broke",
            request_id=self.request.request_id,
            replica=self._key,
            reason=error.message,
        )
        self._end(error.status, ok=False)

    # The client.

    def client_paused(self) -> None:
        """The client reads slowly: stop reading from the replica."""
        if self._connection is not None:
            self._connection.pause()

    def client_resumed(self) -> None:
        """The client reads again."""
        if self._committed:
            self._expect_more()
        if self._connection is not None:
            self._connection.resume()

    def client_gone(self) -> None:
        """The client left: stop the replica's work at once."""
        self._end(CLIENT_CLOSED, ok=False)

    def stop(self, error: ApiError) -> None:
        """The gateway ends, or failed on this request: end it with ``error``."""
        if self._committed:
            self._break(error, eject=False)
        else:
            self._fail(error)

    # Time.

    def _expect_more(self) -> None:
        limits = self._rule.resilience
        limit = (
            limits.between_tokens_timeout_seconds
            if self.request.stream
            else limits.request_timeout_seconds
        )
        self._deadline.set(limit, self._plane.clock())

    def _late(self) -> None:
        """The deadline has passed."""
        limits = self._rule.resilience
        if self._deadline.final:
            reason = f"the request took longer than {limits.request_timeout_seconds:g} s"
            if self._committed:
                self._break(openai.stream_broken(reason, status=504), eject=False)
            else:
                self._fail(openai.upstream_timeout(reason, attempts=self._attempts))
        elif self.phase is Phase.QUEUED:
            self._fail(self._failure or self._plane.queue_timeout(self.rule_key, self._rule))
        elif self.phase is Phase.CONNECTING:
            self._attempt_failed("connect", "no connection in time")
        elif self.phase is Phase.WAITING:
            reason = f"no first token within {limits.first_token_timeout_seconds:g} s"
            error = openai.upstream_timeout(reason, attempts=self._attempts)
            self._attempt_failed("first_token_timeout", reason, error=error)
        elif self._reply.paused:
            # The replica is not late: the client is.
            self._expect_more()
        else:
            reason = f"nothing came for {limits.between_tokens_timeout_seconds:g} s"
            self._break(openai.stream_broken(reason, status=504))

    # The end.

    def _fail(self, error: ApiError) -> None:
        """Answer with an error object; nothing is committed yet."""
        if self.phase is not Phase.ENDED:
            send_error(self._reply, error, routed_lines(self.request.request_id, self._key))
            self._end(error.status, ok=False)

    def _detach(self) -> None:
        if self._connecting is not None:
            self._connecting.cancel()
            self._connecting = None
        if self._connection is not None:
            self._connection.abandon()
            self._connection = None

    def _finish(self, *, ok: bool, usage: Usage | None = None) -> None:
        if self._assignment is not None:
            self._assignment.finish(ok=ok, usage=usage)
            self._plane.wake_soon()

    def _end(self, code: int, *, ok: bool, usage: Usage | None = None) -> None:
        """Give everything back; every path ends here, and only the first time counts."""
        if self.phase is Phase.ENDED:
            return
        if self.phase is Phase.QUEUED:
            self._plane.admission.leave(self.rule_key, self)
        self.phase = Phase.ENDED
        self._deadline.cancel()
        self._plane.relays.discard(self)
        self._detach()
        self._finish(ok=ok, usage=usage)
        self._count(code, usage)

    def _count(self, code: int, usage: Usage | None) -> None:
        series = self._plane.metrics.series(self.request.model, self.pool, self.request.api)
        series.ended(code, self._plane.clock() - self._started)
        sent = self._assignment
        if sent is None:
            return
        first, last = sent.first_event_at, sent.last_event_at
        if first is not None and last is not None and self._reading is not None:
            series.streamed(first - self._started, last - first, self._reading.events)
        if usage is not None:
            series.used(usage, sent.predicted_cached_tokens)
