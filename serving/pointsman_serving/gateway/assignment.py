"""A request on the replica that it was sent to, and what the scheduler is told of it."""

from __future__ import annotations

from collections.abc import Callable

from pointsman_serving.gateway.load_report import parse_load_report
from pointsman_serving.routing.scheduler import Scheduler
from pointsman_serving.routing.types import Decision, ReplicaKey, RouteRequest, Usage


class Assignment:
    """One attempt. Counts as load from here on, until ``finish``, which acts once.

    Args:
        decision: one that chose a replica.
        clock: seconds; the scheduler's.

    Raises:
        ValueError: the decision chose nothing, or its replica has gone since.
    """

    __slots__ = (
        "_clock",
        "_finished",
        "_scheduler",
        "_ticket",
        "first_event_at",
        "last_event_at",
        "predicted_cached_tokens",
        "predicted_ttft_seconds",
    )

    def __init__(
        self,
        scheduler: Scheduler,
        request: RouteRequest,
        decision: Decision,
        clock: Callable[[], float],
    ) -> None:
        self._scheduler = scheduler
        self._clock = clock
        self._ticket = scheduler.dispatch(request, decision, now=clock())
        self._finished = False
        winner = decision.winner
        self.predicted_cached_tokens = 0 if winner is None else winner.predicted_cached_tokens
        self.predicted_ttft_seconds = 0.0 if winner is None else winner.predicted_ttft_seconds
        self.first_event_at: float | None = None
        self.last_event_at: float | None = None

    def now(self) -> float:
        """The time by the scheduler's clock."""
        return self._clock()

    @property
    def key(self) -> ReplicaKey:
        """Which replica."""
        return self._ticket.key

    def events(self, new: int) -> None:
        """Note data events of a stream."""
        now = self._clock()
        self.last_event_at = now
        if self.first_event_at is None:
            self.first_event_at = now
            self._scheduler.first_token(self._ticket, now=now)
        self._scheduler.tokens(self._ticket, new, now=now)

    def report(self, value: bytes) -> None:
        """Note what the replica says of its load; what cannot be read says nothing."""
        report = parse_load_report(value)
        if report is not None:
            self._scheduler.report(self.key, report, now=self._clock())

    def instance(self, value: str) -> None:
        """Note which life of the replica answers; what the one before knew is forgotten."""
        self._scheduler.instance(self.key, value, now=self._clock())

    def paused(self, paused: bool) -> None:
        """Note that the client does not read, or reads again."""
        self._scheduler.paused(self._ticket, paused, now=self._clock())

    def eject(self, *, hard: bool = False) -> None:
        """Note that the replica failed; ``hard``: it is not there at all."""
        self._scheduler.failed(self.key, now=self._clock(), hard=hard)

    def finish(self, *, ok: bool, usage: Usage | None = None, learn: bool = True) -> None:
        """Give its place back.

        Args:
            learn: it was a whole answer to the request, from which latencies and lengths can
                be learned; False for the part of one.
        """
        if not self._finished:
            self._finished = True
            self._scheduler.finish(self._ticket, now=self._clock(), ok=ok, usage=usage, learn=learn)
