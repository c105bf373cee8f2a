"""One routed request, from its decision to the end of its reply.

A state machine on the event loop, driven by four sides: the scheduler's decisions, the
connection to the replica, the client and one timer. Nothing is committed to the client before
the first byte that is worth it (a stream's first data event), so until then every failure can
be tried again on another replica.
"""

from __future__ import annotations

import asyncio

import structlog

from pointsman_api.route_table import Rule
from pointsman_serving.gateway import openai
from pointsman_serving.gateway.attempts import Attempts
from pointsman_serving.gateway.body import RequestBody
from pointsman_serving.gateway.connection import UpstreamConnection
from pointsman_serving.gateway.deadline import Deadline
from pointsman_serving.gateway.endpoint import Endpoint
from pointsman_serving.gateway.failure import Failure, no_connection, refusal_in_stream
from pointsman_serving.gateway.headers import Header, RequestHeaders, reply_lines, routed_lines
from pointsman_serving.gateway.limits import first_token_seconds, next_token_seconds, queue_seconds
from pointsman_serving.gateway.openai import ApiError
from pointsman_serving.gateway.phase import Phase
from pointsman_serving.gateway.plane import DataPlane
from pointsman_serving.gateway.reading import Reading
from pointsman_serving.gateway.reply import ClientReply, send_error
from pointsman_serving.gateway.reply_head import ReplyHead
from pointsman_serving.gateway.sse import StreamError
from pointsman_serving.routing.types import Decision, Outcome, RouteRequest, Usage

log = structlog.get_logger(__name__)

CLIENT_CLOSED = 499
"""The code under which requests are counted whose client left first."""


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
        # Set for every token, so looked up once.
        self._next_token_seconds = next_token_seconds(rule, stream=request.stream)
        self._attempts = Attempts(plane, request, rule)
        self._error_told = False
        self._connecting: asyncio.Task[None] | None = None
        self._connection: UpstreamConnection | None = None
        self._head: ReplyHead | None = None
        self._reading: Reading | None = None

    # Choosing and waiting.

    def begin(self) -> None:
        """Start: behind those who wait for the same room already, else at once."""
        plane = self._plane
        plane.relays.add(self)
        if plane.admission.depth(self.rule_key) and not plane.dispatcher.may_go_first(self):
            self._queue(plane.clock())
        else:
            now = plane.clock()
            self.take(self.decide(now), now)

    def decide(self, now: float) -> Decision:
        """Ask the scheduler what to do with it now."""
        return self._plane.decide(self.request, now, self._attempts.excluded)

    def take(self, decision: Decision, now: float) -> None:
        """Act on a decision."""
        if decision.outcome is Outcome.CHOSEN:
            self._dispatch(decision)
        elif decision.outcome is Outcome.WAIT:
            self._queue(now)
        else:
            self._fail(self._attempts.error or self._plane.refusal(decision, self.request.model))

    def _queue(self, now: float) -> None:
        again = self._attempts.begun > 0
        full = self._plane.dispatcher.join(self, self._rule, now=now, again=again)
        if full is not None:
            self._fail(full)
            return
        self.phase = Phase.QUEUED
        self._deadline.set(queue_seconds(self._rule, again=again), now)

    # Attempts.

    def _dispatch(self, decision: Decision) -> None:
        endpoint = self._attempts.begin(decision)
        if endpoint is None:
            self._fail(self._attempts.unanswered("the chosen replica left"))
        else:
            self._connect(endpoint, fresh=False)

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
        limit = first_token_seconds(self._rule, stream=self.request.stream)
        self._deadline.set(limit, self._plane.clock())
        try:
            request = self._plane.upstream_request(
                connection.endpoint,
                self.request,
                self._headers,
                self._body,
                self._rule,
                external=self._attempts.external,
            )
        except RecursionError:
            self._fail(openai.nested_too_deeply())
            return
        connection.send(self, request)

    def connect_failed(self, reason: str) -> None:
        """No connection: the next replica."""
        self._connecting = None
        if self.phase is Phase.CONNECTING:
            self._attempt_failed(no_connection(reason))

    def _attempt_failed(self, failure: Failure) -> None:
        """This replica did not answer, and nothing is committed: try another, or say so."""
        self._detach()
        error = self._attempts.failed(failure)
        self._reading = None
        if self._attempts.may_go_on:
            now = self._plane.clock()
            self.take(self.decide(now), now)
        else:
            self._fail(error)

    @property
    def pools(self) -> list[str]:
        """The pools that its rule may choose."""
        return [target.pool for target in self._rule.targets]

    @property
    def pool(self) -> str:
        """The pool that it was sent to last; empty before that."""
        return self._attempts.pool

    # The replica's reply.

    def head(self, status: int, headers: list[Header]) -> None:
        """Look at the reply's beginning; a failed one is tried again elsewhere."""
        head = self._head = ReplyHead(status, headers)
        attempt = self._attempts.latest
        if head.load_report is not None and attempt is not None:
            attempt.report(head.load_report)
        failure = self._attempts.failure_of(head)
        if failure is not None:
            self._attempt_failed(failure)
        else:
            self._reading = head.reading(hide_usage=self._body.can_add_usage)

    def _failed_in_stream(self, error: StreamError) -> None:
        """An error came under status 200, and nothing is committed."""
        failure = self._attempts.failure_in_stream(error)
        if failure is not None:
            self._attempt_failed(failure)
        else:
            self._fail(refusal_in_stream(error))

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
        attempt = self._attempts.latest
        if reading.events > before and attempt is not None:
            attempt.events(reading.events - before)
        flaw = reading.flaw() if done else ""
        if flaw and not self._committed and not reading.events:
            reason = "the stream ended before its first event"
            self._attempt_failed(Failure(label="empty_stream", reason=reason))
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
            self._attempts.eject()
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
        lines = reply_lines(head.headers, external=self._attempts.external)
        lines += routed_lines(self.request.request_id, self._attempts.key)
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
        elif untouched and self._attempts.endpoint is not None:
            # The replica closed a kept connection before it can have read the request.
            self._connect(self._attempts.endpoint, fresh=True)
        else:
            self._attempt_failed(Failure(label="reset", reason=reason))

    def _break(self, error: ApiError, *, eject: bool = True) -> None:
        """End a committed reply that cannot be whole, so that the client sees it."""
        reading = self._reading
        if reading is not None and reading.ended:
            # Only the connection's end is missing.
            self._reply.end()
            self._end_whole(200, reading)
            return
        if eject and not self._error_told:
            self._attempts.eject()
        ending = None if reading is None else reading.ending(error)
        if ending is None:
            self._reply.abort()
        else:
            self._reply.send(ending)
            self._reply.end()
        log.warning(
            "reply broke",
            request_id=self.request.request_id,
            replica=self._attempts.key,
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
        self._deadline.set(self._next_token_seconds, self._plane.clock())

    def _late(self) -> None:
        """The deadline has passed."""
        limits = self._rule.resilience
        if self._deadline.final:
            reason = f"the request took longer than {limits.request_timeout_seconds:g} s"
            if self._committed:
                self._break(openai.stream_broken(reason, status=504), eject=False)
            else:
                self._fail(openai.upstream_timeout(reason, attempts=self._attempts.begun))
        elif self.phase is Phase.QUEUED:
            late = self._plane.dispatcher.queue_timeout(self.rule_key, self._rule)
            self._fail(self._attempts.error or late)
        elif self.phase is Phase.CONNECTING:
            self._attempt_failed(no_connection("no connection in time"))
        elif self.phase is Phase.WAITING:
            reason = f"no first token within {limits.first_token_timeout_seconds:g} s"
            error = openai.upstream_timeout(reason, attempts=self._attempts.begun)
            self._attempt_failed(Failure(label="first_token_timeout", reason=reason, error=error))
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
            send_error(
                self._reply, error, routed_lines(self.request.request_id, self._attempts.key)
            )
            self._end(error.status, ok=False)

    def _detach(self) -> None:
        if self._connecting is not None:
            self._connecting.cancel()
            self._connecting = None
        if self._connection is not None:
            self._connection.abandon()
            self._connection = None

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
        self._attempts.finish(ok=ok, usage=usage)
        events = 0 if self._reading is None else self._reading.events
        self._attempts.count(code, usage, started=self._started, events=events)
