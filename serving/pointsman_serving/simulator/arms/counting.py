"""What a router knows of its own traffic, without any metrics."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from pointsman_serving.simulator.arm import (
    Action,
    Dispatch,
    Event,
    Failed,
    Finished,
    FirstToken,
    FleetView,
    ImmediateArm,
    InstanceRemoved,
    InstanceView,
    Reject,
)

if TYPE_CHECKING:
    from random import Random

    from pointsman_serving.simulator.request import SimRequest


class CountingArm(ImmediateArm):
    """Counts the requests that it has sent and that are not finished, for each instance."""

    def __init__(self) -> None:
        self._in_flight: dict[int, int] = {}

    def in_flight(self, instance: int) -> int:
        """Requests of this arm on an instance."""
        return self._in_flight.get(instance, 0)

    def arrive(self, request: SimRequest, view: FleetView, now: float) -> Sequence[Action]:
        """Dispatch to the chosen instance and count it; reject where there is none."""
        if not view.alive:
            return (Reject(request),)
        instance = self.choose(request, view, now)
        self._in_flight[instance] = self._in_flight.get(instance, 0) + 1
        self.sent(request, instance, view, now)
        return (Dispatch(request, instance),)

    def event(self, event: Event, view: FleetView, now: float) -> Sequence[Action]:
        """Count what ended, and pass on what a rule may want to know."""
        if isinstance(event, Finished | Failed):
            left = self._in_flight.get(event.instance, 0) - 1
            if left > 0:
                self._in_flight[event.instance] = left
            else:
                self._in_flight.pop(event.instance, None)
            self.ended(event, now)
        elif isinstance(event, FirstToken):
            self.first_token(event, now)
        elif isinstance(event, InstanceRemoved):
            self.removed(event.instance)
        return ()

    def sent(self, request: SimRequest, instance: int, view: FleetView, now: float) -> None:
        """A request was dispatched."""

    def first_token(self, event: FirstToken, now: float) -> None:
        """A prefill is done."""

    def ended(self, event: Finished | Failed, now: float) -> None:
        """A request has left its instance."""

    def removed(self, instance: int) -> None:
        """Nothing may be dispatched to an instance any more; what it cached may be gone."""


def least(
    instances: Iterable[InstanceView], counts: dict[int, int], rng: Random | None = None
) -> int:
    """The index with the smallest count; the first of equals, or any where ``rng`` is given."""
    best: list[int] = []
    smallest = 0
    for instance in instances:
        count = counts.get(instance.index, 0)
        if not best or count < smallest:
            best, smallest = [instance.index], count
        elif count == smallest and rng is not None:
            best.append(instance.index)
    return best[0] if rng is None or len(best) == 1 else rng.choice(best)
