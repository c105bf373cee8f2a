"""One routed request, from its decision to the end of its reply.

A state machine on the event loop, driven by five sides: the scheduler's decisions, the attempts
(``leg.Leg``: one at a time, two where the second is a hedge), the client, the queue and one
timer. Nothing is committed to the client before the first byte that is worth it (a stream's
first data event), so until then every failure can be tried again on another replica; after it,
a stream goes on where it broke (``continuation.Continuation``).
"""

from __future__ import annotations

from pointsman_api.route_table import Rule
from pointsman_serving.gateway import openai
from pointsman_serving.gateway.account import Account
from pointsman_serving.gateway.answer import Answer
from pointsman_serving.gateway.attempts import Attempts
from pointsman_serving.gateway.body import RequestBody
from pointsman_serving.gateway.continuation import Continuation
from pointsman_serving.gateway.deadline import Deadline
from pointsman_serving.gateway.failure import Failure
from pointsman_serving.gateway.headers import RequestHeaders
from pointsman_serving.gateway.hedge import Hedge
from pointsman_serving.gateway.leg import Leg
from pointsman_serving.gateway.legs import Legs
from pointsman_serving.gateway.openai import ApiError
from pointsman_serving.gateway.phase import LegPhase, Phase
from pointsman_serving.gateway.plane import DataPlane
from pointsman_serving.gateway.progress import progress_of
from pointsman_serving.gateway.reading import Reading
from pointsman_serving.gateway.reply import ClientReply
from pointsman_serving.gateway.reply_head import ReplyHead
from pointsman_serving.routing.types import Decision, Outcome, RouteRequest, Usage

CLIENT_CLOSED = 499
"""The code under which requests are counted whose client left first."""


class Relay:
    """One request. Implements ``leg.LegOwner`` and ``dispatcher.Routed``."""

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
        self.rule = rule
        self.rule_key = (policy, rule.name)
        self.phase = Phase.NEW
        self._plane = plane
        progress = progress_of(
            reply,
            request,
            call_later=plane.loop.call_later,
            standing=lambda: plane.dispatcher.standing(self),
        )
        self._answer = Answer(reply, request.request_id, progress=progress)
        self._headers = headers
        self._body = body
        self._account = Account(plane, request, started)
        latest = started + rule.resilience.request_timeout_seconds
        self._deadline = Deadline(plane.loop.call_later, plane.clock, self._late, latest=latest)
        budgets = plane.budgets_of(self.rule_key, rule)
        budgets.retries.deposit(1.0)
        budgets.hedges.deposit(request.prompt.estimated_tokens)
        self._attempts = Attempts(plane, rule, budgets.retries)
        self._legs = Legs()
        self._leg: Leg | None = None
        """The one whose answer the client gets; before that, the latest."""
        self._continuation, self._why_not = Continuation.of(plane, policy, rule, request, body)
        self._hedge = Hedge.of(plane, rule, budgets.hedges, request)

    # Choosing and waiting.

    def begin(self) -> None:
        """Start: behind those who wait for the same room already, else at once."""
        self._plane.relays.add(self)
        now = self._plane.clock()
        if self._plane.dispatcher.may_go_first(self):
            self.take(self.decide(now), now)
        else:
            self._queue(now)

    def decide(self, now: float) -> Decision:
        """Ask the scheduler what to do with it now."""
        resuming, excluded = self._resuming, self._attempts.excluded
        if resuming is None:
            return self._plane.decide(self.request, now, excluded)
        excluded = excluded | resuming.others()
        return self._plane.decide(resuming.request, now, excluded, within=resuming.within)

    @property
    def _resuming(self) -> Continuation | None:
        """The continuation of a stream that has broken."""
        continuation = self._continuation
        return continuation if continuation is not None and continuation.begun else None

    def take(self, decision: Decision, now: float) -> None:
        """Act on a decision."""
        if decision.outcome is Outcome.CHOSEN:
            self._dispatch(decision)
        elif self.waits(decision):
            self._queue(now, cold=decision.outcome is Outcome.NO_REPLICA)
        else:
            self._fail(self._attempts.error or self._plane.refusal(decision, self.request.model))

    def waits(self, decision: Decision) -> bool:
        """Whether a decision means that it waits: for room, or for a replica to come."""
        if decision.outcome is not Outcome.NO_REPLICA:
            return decision.outcome is Outcome.WAIT
        # The replicas of a stream that has begun may come back.
        may_wait = self._attempts.may_wait or self._answer.committed
        return may_wait and self._plane.may_come(self.pools)

    def _queue(self, now: float, *, cold: bool = False) -> None:
        if cold:
            # A replica that is gone comes back only when it is healthy.
            self._attempts.excluded.clear()
        again = self._attempts.begun > 0
        refused = self._plane.dispatcher.join(self, now=now, again=again, cold=cold)
        if refused is not None:
            self._fail(refused)
            return
        self.phase = Phase.QUEUED
        self._answer.waits()

    def wait_until(self, at: float) -> None:
        """Its time in the queue ends then; until it hears otherwise."""
        self._deadline.set_at(at)

    @property
    def pools(self) -> list[str]:
        """The pools that may be chosen for it."""
        if self._resuming is not None:
            return [self._resuming.pool]
        return [target.pool for target in self.rule.targets]

    @property
    def bound(self) -> bool:
        """Whether its reply has begun, so that only the pool it came from can go on with it."""
        return self._resuming is not None

    @property
    def pool(self) -> str:
        """The pool that it was sent to last; empty before that."""
        return "" if self._leg is None else self._leg.key.pool

    # Attempts.

    def _dispatch(self, decision: Decision) -> None:
        self._answer.waits_no_more()
        resuming = self._resuming
        request = self.request if resuming is None else resuming.request
        leg = self._attempts.begin(self, request, decision, resumes=resuming is not None)
        if leg is None:
            self._fail(self._attempts.unanswered("the chosen replica left"))
            return
        self.phase = Phase.SENT
        leg.notes = self._continuation is not None and self._continuation.covers(leg.key.pool)
        self._leg = leg
        self._legs.add(leg)
        if self._hedge is not None and resuming is None:
            self._hedge.sent(leg)
        leg.start()
        if leg.phase is LegPhase.CONNECTING:
            self._arm()

    def request_bytes(self, leg: Leg) -> bytes:
        """See :class:`~pointsman_serving.gateway.leg.LegOwner`."""
        return self._plane.upstream_request(
            leg.endpoint,
            self.request,
            self._headers,
            self._body,
            self.rule,
            external=leg.external,
            continuation=self._continuation if leg.notes else None,
        )

    def reading_of(self, leg: Leg, head: ReplyHead) -> Reading:
        """See :class:`~pointsman_serving.gateway.leg.LegOwner`."""
        continuation = self._continuation
        said = continuation.notes() if continuation is not None and leg.notes else None
        return head.reading(hide_usage=self._body.can_add_usage, said=said)

    def leg_sent(self, leg: Leg) -> None:
        """See :class:`~pointsman_serving.gateway.leg.LegOwner`."""
        self._arm()

    def leg_failed(self, leg: Leg, failure: Failure) -> None:
        """This replica did not answer: another one, or say so."""
        self._legs.remove(leg)
        error = self._attempts.failed(leg, failure, request_id=self.request.request_id)
        if self._legs:
            # The other attempt goes on.
            self._leg = self._legs.first
            self._arm()
            return
        committed = self._answer.committed
        why = self._attempts.refusal(failure, resumes=committed)
        if not why:
            now = self._plane.clock()
            self.take(self.decide(now), now)
        elif committed:
            self._tell(failure.in_stream(why))
        else:
            self._fail(error)

    def leg_refused(self, leg: Leg, error: ApiError) -> None:
        """See :class:`~pointsman_serving.gateway.leg.LegOwner`."""
        self._fail(error)

    def leg_brought(self, leg: Leg, data: bytes, *, last: bool) -> None:
        """Pass on what a replica has sent; the first one to send something leads."""
        if self.phase is not Phase.REPLYING:
            self._lead(leg)
        self._deadline.set_at(leg.late_at)
        if self._answer.committed:
            self._answer.go_on(data, last=last)
        else:
            self._commit(leg, data, last=last)

    def _lead(self, leg: Leg) -> None:
        """From here on the client gets this one's answer."""
        self.phase = Phase.REPLYING
        self._leg = leg
        if self._legs.leave_others(leg):
            self._plane.dispatcher.wake_soon()
        if self._hedge is not None:
            self._hedge.decided(leg)
        if self._resuming is not None:
            self._resuming.goes_on(leg)
        if self._answer.committed and self._answer.paused:
            leg.pause()

    def _commit(self, leg: Leg, data: bytes, *, last: bool) -> None:
        self._account.committed(leg)
        if self._continuation is None or last or not self._continuation.keep(leg):
            self._continuation = None
            self._body.release()
        self._answer.begin(leg, data, last=last)
        if self._answer.paused:
            self.client_paused()

    def leg_ended(self, leg: Leg) -> None:
        """All that the replica had to say is passed on."""
        reading = leg.reading
        status = 200 if leg.reply is None or (self._resuming is not None) else leg.reply.status
        if reading is not None and reading.error is not None:
            self._end(reading.error.status, ok=False)
        else:
            usage = None if reading is None else reading.usage()
            self._end(status, ok=status < 400, usage=usage)

    def leg_broke(self, leg: Leg, failure: Failure) -> None:
        """A committed reply broke: another replica goes on, or the client is told."""
        self._legs.remove(leg)
        self._account.broke(leg)
        continuation = self._continuation
        if continuation is None:
            if failure.eject and not leg.error_told:
                leg.assignment.eject()
            leg.finish(ok=False)
            self._tell(failure.in_stream(self._why_not))
            return
        if continuation.got_on(failure):
            self._attempts.got_on()
        self._attempts.failed(leg, failure, request_id=self.request.request_id)
        if continuation.finished:
            # Only the end of the stream is missing.
            end, usage = continuation.closing(leg)
            self._answer.go_on(end, last=True)
            self._end(200, ok=True, usage=usage)
            return
        why = continuation.flaw or self._attempts.refusal(failure, broke=True, resumes=True)
        if why:
            self._tell(failure.in_stream(why))
            return
        now = self._plane.clock()
        continuation.begin(now)
        self._plane.metrics.trouble.continuations[failure.label] += 1
        self.take(self.decide(now), now)

    def _tell(self, error: ApiError) -> None:
        """End a committed reply so that the client sees that it is not whole."""
        reading = None if self._leg is None else self._leg.reading
        if reading is not None and reading.ended:
            # Only the connection's end is missing.
            self._answer.go_on(b"", last=True)
            self._end(200, ok=True, usage=reading.usage())
            return
        self._answer.break_off(error, self._leg, resumed=(self._resuming is not None))
        self._plane.metrics.trouble.broken_replies += 1
        self._end(error.status, ok=False)

    def _fail(self, error: ApiError) -> None:
        """Answer with an error object, or end with it what has begun."""
        if self.phase is Phase.ENDED:
            return
        if self._answer.committed:
            self._tell(openai.stream_broken(error.message, status=error.status))
            return
        self._answer.refuse(error, None if self._leg is None else self._leg.key)
        self._end(error.status, ok=False)

    # The client.

    def client_paused(self) -> None:
        """The client reads slowly: stop reading from the replica."""
        if self._answer.committed and self._leg is not None:
            self._leg.pause()

    def client_resumed(self) -> None:
        """The client reads again."""
        if self.phase is Phase.REPLYING and self._leg is not None:
            self._leg.expect_more()
            self._arm()
        if self._leg is not None:
            self._leg.resume()

    def client_gone(self) -> None:
        """The client left: stop the replica's work at once."""
        self._end(CLIENT_CLOSED, ok=False)

    def stop(self, error: ApiError) -> None:
        """The gateway ends, or failed on this request: end it with ``error``."""
        if self._answer.committed:
            self._tell(error)
        else:
            self._fail(error)

    # Time.

    def _arm(self) -> None:
        """Set the timer to what is due next."""
        due = self._legs.late_at
        if self._hedge is not None and self.phase is Phase.SENT:
            due = min(due, self._hedge.due_at)
        self._deadline.set_at(due)

    def _late(self) -> None:
        """Something is due."""
        now = self._plane.clock()
        if self._deadline.final:
            limit = self.rule.resilience.request_timeout_seconds
            reason = f"the request took longer than {limit:g} s"
            if self._answer.committed:
                self._tell(openai.stream_broken(reason, status=504))
            else:
                self._fail(openai.upstream_timeout(reason, attempts=self._attempts.begun))
        elif self.phase is Phase.QUEUED:
            self._fail(self._attempts.error or self._plane.dispatcher.late(self))
        elif self.phase is Phase.REPLYING and self._answer.paused:
            # The replica is not late: the client is.
            if self._leg is not None:
                self._leg.expect_more()
            self._arm()
        else:
            hedge = self._hedge
            if hedge is not None and self.phase is Phase.SENT and now >= hedge.due_at:
                second = hedge.decide(self._legs, self._attempts.excluded, now)
                if second is not None:
                    self._dispatch(second)
            self._legs.tell_late(now)
            if self._legs and self.phase in (Phase.SENT, Phase.REPLYING):
                self._arm()

    # The end.

    def _end(self, code: int, *, ok: bool, usage: Usage | None = None) -> None:
        """Give everything back; every path ends here, and only the first time counts."""
        if self.phase is Phase.ENDED:
            return
        plane = self._plane
        if self.phase is Phase.QUEUED:
            plane.dispatcher.leave(self)
        self.phase = Phase.ENDED
        self._deadline.cancel()
        self._answer.waits_no_more()
        plane.relays.discard(self)
        resumed = self._resuming is not None
        if self._legs.end(self._leg, ok=ok, usage=usage, learn=not resumed):
            plane.dispatcher.wake_soon()
        if self._continuation is not None:
            usage = usage or self._continuation.counted
            self._continuation.end()
        self._body.release()
        self._account.ended(code, self._leg, usage, resumed=resumed)
