"""What is counted of one request: when it came, its tokens, and how it ended."""

from __future__ import annotations

from pointsman_serving.gateway.leg import Leg
from pointsman_serving.gateway.plane import DataPlane
from pointsman_serving.routing.types import RouteRequest, Usage


class Account:
    """One request.

    Args:
        started: by the plane's clock.
    """

    __slots__ = ("_broken", "_events_before", "_first_event_at", "_plane", "_request", "_started")

    def __init__(self, plane: DataPlane, request: RouteRequest, started: float) -> None:
        self._plane = plane
        self._request = request
        self._started = started
        self._first_event_at: float | None = None
        self._events_before = 0
        self._broken: Leg | None = None

    def committed(self, leg: Leg) -> None:
        """The client has got the first bytes."""
        self._first_event_at = leg.assignment.first_event_at

    def broke(self, leg: Leg) -> None:
        """A replica has sent the last of what it will, and another one may go on."""
        self._events_before += leg.events
        self._broken = leg

    def ended(self, code: int, leg: Leg | None, usage: Usage | None, *, resumed: bool) -> None:
        """Count the request, which has ended with ``code``.

        Args:
            leg: the attempt that answered it, or the last one.
            resumed: more than one replica had a part in the answer.
        """
        plane, request = self._plane, self._request
        pool = "" if leg is None else leg.key.pool
        series = plane.metrics.series(request.model, pool, request.api)
        series.ended(code, plane.clock() - self._started)
        if leg is None:
            return
        events = self._events_before + (0 if leg is self._broken else leg.events)
        first, last = self._first_event_at, leg.assignment.last_event_at
        if first is not None and last is not None and events:
            series.streamed(first - self._started, last - first, events)
        if usage is not None:
            # What the rest's replica had cached was not what was predicted for the whole.
            series.used(usage, None if resumed else leg.assignment.predicted_cached_tokens)
