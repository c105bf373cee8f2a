"""What the operator remembers of a pool between its rounds. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pointsman_api.endpoint_slices import decode_slices
from pointsman_operator.clusters import cluster_of
from pointsman_operator.endpoints import EndpointsMemory
from pointsman_operator.objects import name_of
from pointsman_operator.observed import PoolObserved
from pointsman_operator.refusal import Refusal
from pointsman_operator.scaling import ScalingState
from pointsman_operator.status import is_fleeting
from pointsman_serving.engines.serve_listing import ServeTarget

_FLEETING_SECONDS = 3.0
"""How long a status that says only how far a pool is waits for the next: gateways answer in 1 s."""


@dataclass(slots=True)
class PoolMemory:
    """What is remembered of a pool between rounds; a restart begins with none of it."""

    uid: str = ""
    """Of the pool: its namesake that comes later has a memory of its own."""
    endpoints: EndpointsMemory = field(default_factory=EndpointsMemory)
    scaling: ScalingState | None = None
    rolling_out: bool = False
    """A roll-out moves: scaling waits."""
    moving: bool = False
    """The wanted revision is on its way, be it too slow."""
    refusal: Refusal | None = None
    waits_since: float | None = None
    """Since when the first replicas have waited for gateways to have their token."""
    last_scale_at: float | None = None
    untold_since: float | None = None
    """Since when the status has been another one than the one that was written."""


def recalled(observed: PoolObserved) -> EndpointsMemory:
    """What Ray said last about each RayCluster, as far as the EndpointSlices still tell."""
    clusters = {name_of(pod): cluster_of(pod) for pod in observed.pods}
    targets: dict[str, tuple[ServeTarget, ...]] = {}
    for pool in decode_slices(observed.slices).values():
        for endpoint in pool.endpoints:
            cluster = clusters.get(endpoint.pod)
            if cluster:
                target = ServeTarget(
                    replica=endpoint.replica, host=endpoint.host, port=endpoint.port
                )
                targets[cluster] = (*targets.get(cluster, ()), target)
    return EndpointsMemory(targets=targets)


def held_seconds(
    memory: PoolMemory, before: Mapping[str, Any] | None, status: Mapping[str, Any], now: float
) -> float:
    """For how long a status is kept back that the next moment may change; 0: it is written now."""
    if before == status or not is_fleeting(before, status):
        memory.untold_since = None
        return 0.0
    if memory.untold_since is None:
        memory.untold_since = now
    left = memory.untold_since + _FLEETING_SECONDS - now
    if not 0.0 < left <= _FLEETING_SECONDS:
        # The time is over, or the clock was set back.
        memory.untold_since = None
        return 0.0
    return left
