"""A fleet seen through one pool."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pointsman_serving.simulator.arm import FleetView, InstanceView

if TYPE_CHECKING:
    from pointsman_serving.simulator.request import SimRequest


class PoolView:
    """All instances by their numbers, but only those of one pool alive."""

    def __init__(self, view: FleetView, alive: Sequence[InstanceView]) -> None:
        self._view = view
        self._alive = alive

    @property
    def instances(self) -> Sequence[InstanceView]:
        """By index, those of other pools among them."""
        return self._view.instances

    @property
    def alive(self) -> Sequence[InstanceView]:
        """Those of the pool."""
        return self._alive

    def cached_tokens(self, request: SimRequest) -> Sequence[int]:
        """Of all instances."""
        return self._view.cached_tokens(request)


def alive_by_pool(view: FleetView) -> dict[str, list[InstanceView]]:
    """The living instances of each pool that has any."""
    pools: dict[str, list[InstanceView]] = {}
    for instance in view.alive:
        pools.setdefault(instance.pool, []).append(instance)
    return pools
