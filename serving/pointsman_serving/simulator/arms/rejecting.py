"""Early rejection in front of any rule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from pointsman_serving.simulator.arm import Action, Arm, Event, FleetView, Reject
from pointsman_serving.simulator.estimate import iteration_seconds, ttft_seconds

if TYPE_CHECKING:
    from pointsman_serving.simulator.request import SimRequest


class Rejecting(Arm):
    """Rejects what no instance could answer within its SLO; the rest goes to another rule.

    A request is rejected if its age and ``margin`` times the least TTFT that any living instance
    is estimated to give it exceed the TTFT SLO, or if the iterations of all of them last longer
    than the TPOT SLO. The rule behind is not told of it.

    Source: Mooncake (FAST 2025), early rejection.
    """

    name: ClassVar[str] = "rejecting"

    def __init__(
        self,
        arm: Arm,
        *,
        ttft_slo_seconds: float = 5.0,
        tpot_slo_seconds: float | None = None,
        margin: float = 1.0,
    ) -> None:
        self._arm = arm
        self._ttft_seconds = ttft_slo_seconds
        self._tpot_seconds = tpot_slo_seconds
        self._margin = margin
        self.tokens_every_seconds = arm.tokens_every_seconds
        self.wake_at = arm.wake_at

    def arrive(self, request: SimRequest, view: FleetView, now: float) -> Sequence[Action]:
        """Reject, or ask the rule."""
        if not view.alive or self._hopeless(request, view, now):
            return (Reject(request),)
        actions = self._arm.arrive(request, view, now)
        self.wake_at = self._arm.wake_at
        return actions

    def event(self, event: Event, view: FleetView, now: float) -> Sequence[Action]:
        """Pass it on."""
        actions = self._arm.event(event, view, now)
        self.wake_at = self._arm.wake_at
        return actions

    def wake(self, view: FleetView, now: float) -> Sequence[Action]:
        """Pass it on."""
        actions = self._arm.wake(view, now)
        self.wake_at = self._arm.wake_at
        return actions

    def _hopeless(self, request: SimRequest, view: FleetView, now: float) -> bool:
        cached = view.cached_tokens(request)
        prompt = request.prompt_tokens
        soonest = min(ttft_seconds(each, prompt, cached[each.index]) for each in view.alive)
        if now - request.arrival_seconds + self._margin * soonest > self._ttft_seconds:
            return True
        return self._tpot_seconds is not None and self._tpot_seconds < min(
            iteration_seconds(each) for each in view.alive
        )
