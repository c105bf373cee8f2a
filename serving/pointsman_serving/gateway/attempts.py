"""The attempts at one request: where it has been, what came of it, and how many may follow."""

from __future__ import annotations

import structlog

from pointsman_api.route_table import Rule
from pointsman_serving.gateway import openai
from pointsman_serving.gateway.assignment import Assignment
from pointsman_serving.gateway.budget import Budget
from pointsman_serving.gateway.failure import REVISION, Failure, Judge
from pointsman_serving.gateway.leg import Leg, LegOwner
from pointsman_serving.gateway.openai import ApiError
from pointsman_serving.gateway.plane import DataPlane
from pointsman_serving.routing.types import Decision, ReplicaKey, RouteRequest

log = structlog.get_logger(__name__)

_DEATHS_BORNE = 2
"""Replicas that may die under a stream in a row beside its attempts."""

_MOST_UNREACHED = 8
"""Replicas that could not be connected to and do not count as attempts."""


class Attempts:
    """The attempts at one request.

    They count until one gets on: a stream that has come further by then may be continued as
    often again, one that stops at the same place each time (its prompt may be what kills the
    engines) may not.
    """

    __slots__ = (
        "_budget",
        "_failure_label",
        "_gone",
        "_most",
        "_plane",
        "_rule",
        "_tried",
        "_unreached",
        "begun",
        "error",
        "excluded",
    )

    def __init__(self, plane: DataPlane, rule: Rule, budget: Budget) -> None:
        self._plane = plane
        self._rule = rule
        self._budget = budget
        self._most = rule.resilience.attempts
        self._tried = 0
        self._unreached = 0
        self._failure_label = ""
        self._gone = False
        self.begun = 0
        """How many there have been, with those under way."""
        self.excluded: set[ReplicaKey] = set()
        """The replicas that have failed this request."""
        self.error: ApiError | None = None
        """What the client gets if the last one that failed was the last of all."""

    def begin(
        self, owner: LegOwner, request: RouteRequest, decision: Decision, *, resumes: bool
    ) -> Leg | None:
        """Assign the request to the chosen replica; None where that has left."""
        plane = self._plane
        winner = decision.winner
        address = None if winner is None else plane.scheduler.address(winner.key)
        if address is None:
            return None
        if self._failure_label and not resumes:
            plane.metrics.trouble.retries[self._failure_label] += 1
        self.begun += 1
        self._tried += 1
        pool = address.key.pool
        judge = Judge(
            pool=pool,
            external=plane.is_external(pool),
            number=self.begun,
            retry_after_seconds=plane.settings.retry_after_seconds,
            resumes=resumes,
            last=self._tried >= self._allowed(resumes=resumes),
        )
        return Leg(
            owner,
            plane.upstreams,
            Assignment(plane.scheduler, request, decision, plane.clock),
            plane.upstreams.endpoint(address),
            self._rule,
            judge,
            stream=request.stream,
        )

    def failed(self, leg: Leg, failure: Failure, *, request_id: str) -> ApiError:
        """Note how one failed; returns what to tell the client if it was the last."""
        if failure.eject:
            # Who cannot be connected to is gone; who answers badly may recover. Told before the
            # end: an attempt that merely ends says nothing about the replica.
            leg.assignment.eject(hard=failure.unconnected)
        leg.finish(ok=False)
        if leg.reply is not None and leg.reply.revision:
            self._plane.note_revision(leg.key, leg.reply.revision)
        self._plane.dispatcher.wake_soon()
        self.excluded.add(leg.key)
        tell = log.warning if self._plane.news.is_new(leg.key, failure.label) else log.info
        tell(
            "attempt failed",
            request_id=request_id,
            replica="/".join(leg.key),
            attempt=self.begun,
            reason=failure.reason,
        )
        self._failure_label = failure.label
        self._gone = failure.gone
        if failure.label == REVISION or (failure.unconnected and self._unreached < _MOST_UNREACHED):
            self._unreached += 1
            self._tried -= 1
        self.error = failure.error or self.unanswered(failure.reason)
        return self.error

    def refusal(self, failure: Failure, *, broke: bool = False, resumes: bool = False) -> str:
        """Why there is no other one after ``failure``; empty where there may be.

        Args:
            broke: it had brought a part of the answer, so that it has left the replica: to go on
                adds no load, and where a replica hangs, all its streams come at once.
            resumes: the client has the beginning of the answer.
        """
        allowed = self._allowed(resumes=resumes)
        if resumes and failure.gone:
            # Where a node is lost its replicas die one after another, and this one had got on.
            allowed += _DEATHS_BORNE
        if self._tried >= allowed:
            return "it broke again without having got on"
        if failure.gone or broke or self._budget.withdraw(1.0, self._plane.clock()):
            return ""
        self._plane.metrics.trouble.retries_refused += 1
        return "the retry budget is spent"

    def _allowed(self, *, resumes: bool) -> int:
        # Who allows to continue allows one more attempt than the first.
        return max(self._most, 2) if resumes else self._most

    @property
    def may_wait(self) -> bool:
        """Whether it may wait for a replica to come: it has met none but such as died."""
        return not self._failure_label or self._gone

    def got_on(self) -> None:
        """A replica has brought the answer further: what was before it does not count."""
        self._tried = 0
        self._unreached = 0
        self.excluded.clear()

    def unanswered(self, reason: str) -> ApiError:
        """The answer to a request that no replica could answer."""
        return openai.upstream_failed(
            reason,
            attempts=self.begun,
            retry_after_seconds=self._plane.settings.retry_after_seconds,
        )
