"""The rules that every load balancer has."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING, ClassVar

from pointsman_serving.simulator.arm import FleetView, ImmediateArm

if TYPE_CHECKING:
    from pointsman_serving.simulator.request import SimRequest


class RandomArm(ImmediateArm):
    """Any living instance, each as likely as any other."""

    name: ClassVar[str] = "random"

    def __init__(self, *, seed: int = 0) -> None:
        self._random = Random(seed)

    def choose(self, request: SimRequest, view: FleetView, now: float) -> int:
        """Draw one."""
        return self._random.choice(view.alive).index


class RoundRobin(ImmediateArm):
    """The next living instance after the last one that was used, by number."""

    name: ClassVar[str] = "round-robin"

    def __init__(self, *, seed: int = 0) -> None:
        self._last = -1

    def choose(self, request: SimRequest, view: FleetView, now: float) -> int:
        """Take the next."""
        indices = [instance.index for instance in view.alive]
        self._last = next((index for index in indices if index > self._last), indices[0])
        return self._last


class LeastRequests(ImmediateArm):
    """The fewest requests, running and waiting; any of equals."""

    name: ClassVar[str] = "least-requests"

    def __init__(self, *, seed: int = 0) -> None:
        self._random = Random(seed)

    def choose(self, request: SimRequest, view: FleetView, now: float) -> int:
        """Compare the counts that the instances report."""
        counts = [(each.running + each.waiting, each.index) for each in view.alive]
        return _any_smallest(counts, self._random)


class LeastPendingPrefill(ImmediateArm):
    """The fewest prompt tokens that are still to be computed; any of equals."""

    name: ClassVar[str] = "least-pending-prefill"

    def __init__(self, *, seed: int = 0) -> None:
        self._random = Random(seed)

    def choose(self, request: SimRequest, view: FleetView, now: float) -> int:
        """Compare the tokens that the instances report."""
        counts = [(each.pending_prefill_tokens, each.index) for each in view.alive]
        return _any_smallest(counts, self._random)


def _any_smallest(counts: list[tuple[int, int]], rng: Random) -> int:
    smallest = min(count for count, _ in counts)
    indices = [index for count, index in counts if count == smallest]
    return indices[0] if len(indices) == 1 else rng.choice(indices)
