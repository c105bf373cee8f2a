"""The attempts at one request: where it is, where it has been, and what came of it."""

from __future__ import annotations

import structlog

from pointsman_api.route_table import Rule
from pointsman_serving.gateway import openai
from pointsman_serving.gateway.assignment import Assignment
from pointsman_serving.gateway.endpoint import Endpoint
from pointsman_serving.gateway.failure import Failure, error_event
from pointsman_serving.gateway.openai import ApiError
from pointsman_serving.gateway.plane import DataPlane
from pointsman_serving.gateway.reply_head import ReplyHead
from pointsman_serving.gateway.sse import StreamError
from pointsman_serving.routing.types import Decision, ReplicaKey, RouteRequest, Usage

log = structlog.get_logger(__name__)

_MOST_UNREACHED = 8
"""Replicas that could not be connected to and do not count as attempts."""


class Attempts:
    """The attempts at one request, one after another."""

    __slots__ = (
        "_failure_label",
        "_most",
        "_plane",
        "_request",
        "_unreached",
        "begun",
        "endpoint",
        "error",
        "excluded",
        "external",
        "latest",
    )

    def __init__(self, plane: DataPlane, request: RouteRequest, rule: Rule) -> None:
        self._plane = plane
        self._request = request
        self._most = rule.resilience.attempts
        self._unreached = 0
        self._failure_label = ""
        self.begun = 0
        """How many there have been, with the one under way."""
        self.excluded: set[ReplicaKey] = set()
        """The replicas that have failed this request."""
        self.error: ApiError | None = None
        """What the client gets if the last one that failed was the last of all."""
        self.latest: Assignment | None = None
        """The one under way, or else the last."""
        self.endpoint: Endpoint | None = None
        """Where it is sent to."""
        self.external = False
        """Whether that is somebody else's endpoint."""

    @property
    def key(self) -> ReplicaKey | None:
        """The replica that it was sent to last."""
        return None if self.latest is None else self.latest.key

    @property
    def pool(self) -> str:
        """The pool that it was sent to last; empty before that."""
        key = self.key
        return "" if key is None else key.pool

    @property
    def may_go_on(self) -> bool:
        """Whether the rule allows another."""
        return self.begun - self._unreached < self._most

    def begin(self, decision: Decision) -> Endpoint | None:
        """Assign the request to the chosen replica; None where that has left."""
        plane = self._plane
        winner = decision.winner
        address = None if winner is None else plane.scheduler.address(winner.key)
        if address is None:
            return None
        if self.begun:
            plane.metrics.retried(self._failure_label)
        self.begun += 1
        self.external = plane.is_external(address.key.pool)
        self.latest = Assignment(plane.scheduler, self._request, decision, plane.clock)
        self.endpoint = plane.upstreams.endpoint(address)
        return self.endpoint

    def failure_of(self, head: ReplyHead) -> Failure | None:
        """The failure that a reply is by its beginning."""
        if head.status < 300:
            return None
        refused = self._refused(head.status, head.retry_after_seconds)
        if refused is None and head.failed:
            reason = f"the replica answered {head.status}"
            return Failure(label=f"status_{head.status}", reason=reason)
        return refused

    def failure_in_stream(self, error: StreamError) -> Failure | None:
        """The failure that an error under status 200 is; None where it is the client's."""
        refused = self._refused(error.status, None)
        if refused is None and error.status >= 500:
            return error_event(error)
        return refused

    def _refused(self, status: int, retry_after_seconds: int | None) -> Failure | None:
        """The failure where the replica would not answer and the client is not the reason."""
        if status == 429:
            wait = retry_after_seconds or self._plane.settings.retry_after_seconds
            busy = openai.upstream_busy(attempts=self.begun, retry_after_seconds=wait)
            return Failure(label="status_429", reason="it answered 429", error=busy, eject=False)
        if self.external and status in (401, 403):
            refused = openai.key_refused(self.pool, status)
            log.error("a provider refused the gateway's key", pool=self.pool, status=status)
            return Failure(label=f"status_{status}", reason=refused.message, error=refused)
        return None

    def failed(self, failure: Failure) -> ApiError:
        """Note how the one under way failed; returns what to tell the client if it was the last."""
        key = self.key
        if failure.eject:
            # Who cannot be connected to is gone; who answers badly may recover. Told before the
            # end: an attempt that merely ends says nothing about the replica.
            self.eject(hard=failure.unconnected)
        self.finish(ok=False)
        if key is not None:
            self.excluded.add(key)
        tell = log.warning if self._plane.news.is_new(key, failure.label) else log.info
        tell(
            "attempt failed",
            request_id=self._request.request_id,
            replica="" if key is None else "/".join(key),
            attempt=self.begun,
            reason=failure.reason,
        )
        self._failure_label = failure.label
        if failure.unconnected and self._unreached < _MOST_UNREACHED:
            # The request was sent to nobody: that is no attempt at answering it.
            self._unreached += 1
        self.error = failure.error or self.unanswered(failure.reason)
        return self.error

    def unanswered(self, reason: str) -> ApiError:
        """The answer to a request that no replica could answer."""
        return openai.upstream_failed(
            reason,
            attempts=self.begun,
            retry_after_seconds=self._plane.settings.retry_after_seconds,
        )

    def eject(self, *, hard: bool = False) -> None:
        """Tell the scheduler that the replica failed; ``hard``: it is not there at all."""
        if self.latest is not None:
            self.latest.eject(hard=hard)

    def finish(self, *, ok: bool, usage: Usage | None = None) -> None:
        """Give the replica's place back, to those who wait for it; only the first time counts."""
        if self.latest is not None:
            self.latest.finish(ok=ok, usage=usage)
            self._plane.dispatcher.wake_soon()

    def count(self, code: int, usage: Usage | None, *, started: float, events: int) -> None:
        """Count the request, which has ended with ``code``.

        Args:
            started: by the plane's clock.
            events: data events of the last one's stream.
        """
        request, sent = self._request, self.latest
        series = self._plane.metrics.series(request.model, self.pool, request.api)
        series.ended(code, self._plane.clock() - started)
        if sent is None:
            return
        first, last = sent.first_event_at, sent.last_event_at
        if first is not None and last is not None and events:
            series.streamed(first - started, last - first, events)
        if usage is not None:
            series.used(usage, sent.predicted_cached_tokens)
