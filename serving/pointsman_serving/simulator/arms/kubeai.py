"""KubeAI's consistent hashing with bounded loads."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pointsman_serving.simulator.arm import FleetView
from pointsman_serving.simulator.arms.counting import CountingArm
from pointsman_serving.simulator.arms.hash_ring import HashRing

if TYPE_CHECKING:
    from pointsman_serving.simulator.request import SimRequest


class KubeAiPrefixHash(CountingArm):
    """The first endpoint on the ring from the prompt's hash on that is not overloaded.

    An endpoint may hold the mean of the requests in flight, this one among them, times the load
    factor; where none may take more, the first one does. The hash is of the prompt's first 100
    characters: of its first block, and of nothing shared where it has none.

    Source: substratusai/kubeai, ``balance_chwbl.go``.
    """

    name: ClassVar[str] = "kubeai"

    def __init__(
        self, *, seed: int = 0, mean_load_factor: float = 1.25, replication: int = 256
    ) -> None:
        super().__init__()
        self._factor = mean_load_factor
        self._ring = HashRing(points=replication, salt=seed)

    def choose(self, request: SimRequest, view: FleetView, now: float) -> int:
        """Walk the ring."""
        self._ring.set_members([each.index for each in view.alive])
        key = f"block {request.blocks[0]}" if request.blocks else f"request {request.request_id}"
        # What is in flight on instances that are gone counts for the total, as in the source.
        total = sum(self._in_flight.values())
        most = (total + 1) / len(view.alive) * self._factor
        first = -1
        for index in self._ring.walk(key):
            if not total or self.in_flight(index) <= most:
                return index
            if first < 0:
                first = index
        return first
