"""Asking a second replica for a first token that threatens to come too late."""

from __future__ import annotations

import math
from collections.abc import Collection

from pointsman_api.route_table import Rule
from pointsman_serving.gateway.budget import Budget
from pointsman_serving.gateway.leg import Leg
from pointsman_serving.gateway.legs import Legs
from pointsman_serving.gateway.plane import DataPlane
from pointsman_serving.routing.types import Decision, Outcome, ReplicaKey, RouteRequest

# A first token that is this many times later than predicted will probably not come soon.
_SURELY_LATE = 1.5


class Hedge:
    """When one request is sent a second time, and whether it may be.

    It is sent when a fresh attempt would just meet the objective, but not before the first one
    is late by its own prediction.

    Args:
        budget: of prompt tokens that are sent twice.
        ttft_seconds: the objective, from the request's arrival.
    """

    __slots__ = (
        "_armed",
        "_budget",
        "_plane",
        "_request",
        "_second",
        "_ttft_seconds",
        "due_at",
        "sends_twice",
    )

    def __init__(
        self, plane: DataPlane, budget: Budget, request: RouteRequest, ttft_seconds: float
    ) -> None:
        self._plane = plane
        self._budget = budget
        self._armed = False
        self._request = request
        self._ttft_seconds = ttft_seconds
        self._second: Leg | None = None
        self.due_at = math.inf
        """When a second replica is asked, by the plane's clock."""
        self.sends_twice = False
        """Whether the next attempt is the second."""

    @classmethod
    def of(
        cls, plane: DataPlane, rule: Rule, budget: Budget, request: RouteRequest
    ) -> Hedge | None:
        """The hedge of a request; None where its rule has none, or it is no stream."""
        if not rule.resilience.hedging.enabled or not request.stream:
            return None
        stated = request.ttft_slo_seconds
        ttft_seconds = rule.slo.ttft_seconds if stated is None else stated
        return None if ttft_seconds is None else cls(plane, budget, request, ttft_seconds)

    def sent(self, leg: Leg) -> None:
        """Note an attempt; only the first one is hedged."""
        if self.sends_twice:
            self.sends_twice = False
            self._second = leg
        if self._armed:
            return
        self._armed = True
        arrived_at = self._request.arrived_at
        now = self._plane.clock()
        predicted = leg.assignment.predicted_ttft_seconds
        objective = (now if arrived_at is None else arrived_at) + self._ttft_seconds
        self.due_at = max(now + _SURELY_LATE * predicted, objective - predicted, now)

    def decide(self, legs: Legs, excluded: Collection[ReplicaKey], now: float) -> Decision | None:
        """The second replica; None where there is none with room, or the budget is spent.

        Args:
            legs: the attempts under way.
        """
        self.due_at = math.inf
        if len(legs) != 1:
            return None
        plane, request = self._plane, self._request
        decision = plane.decide(request, now, {*excluded, legs.first.key})
        winner = decision.winner
        if decision.outcome is not Outcome.CHOSEN or winner is None:
            plane.metrics.trouble.hedges["no_room"] += 1
            return None
        tokens = max(1, request.prompt.estimated_tokens - winner.predicted_cached_tokens)
        if not self._budget.withdraw(tokens, now):
            plane.metrics.trouble.hedges["no_budget"] += 1
            return None
        plane.metrics.trouble.hedges["sent"] += 1
        self.sends_twice = True
        return decision

    def decided(self, leg: Leg) -> None:
        """Note which one answered."""
        self.due_at = math.inf
        if leg is self._second:
            self._plane.metrics.trouble.hedges["won"] += 1
        self._second = None
