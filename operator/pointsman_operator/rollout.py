"""Where a pool's roll-out is: from what Ray and KubeRay say to one of a few phases. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from pointsman_api.endpoint_slices import ReplicaEndpoint
from pointsman_api.labels import REVISION_ANNOTATION
from pointsman_api.modelpool import ModelPool
from pointsman_operator.clusters import (
    active_cluster,
    has_seen_latest,
    pending_cluster,
)
from pointsman_operator.objects import annotation_of
from pointsman_operator.observed import PoolObserved, ServeReading
from pointsman_operator.revision import application_in, replica_env
from pointsman_serving.engines.serve_listing import PoolState

_CLOCKS_APART_SECONDS = 2.0
"""By how much the clocks of Ray's machines may differ."""


class Phase(StrEnum):
    """Where the wanted revision is on its way to the replicas."""

    AT_ZERO = "AtZero"
    """No replica is wanted."""
    APPLYING = "Applying"
    """It is written, or about to be; KubeRay has not acted on it."""
    STARTING = "Starting"
    """The first replicas come up; there are no others."""
    ROLLING = "Rolling"
    """Replicas are replaced inside the cluster."""
    SWITCHING = "Switching"
    """A second RayCluster comes up beside the one that serves."""
    FAILED = "Failed"
    """Ray has given it up; what served before serves on."""
    DONE = "Done"
    """Every replica is of the wanted revision."""


MOVING = frozenset({Phase.APPLYING, Phase.STARTING, Phase.ROLLING, Phase.SWITCHING})
"""Phases that end by themselves, or in the progress deadline."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """The state of a roll-out."""

    phase: Phase
    updated: frozenset[str] = frozenset()
    """Replicas of the wanted revision, by name."""


def rollout_of(
    pool: ModelPool,
    observed: PoolObserved,
    endpoints: Iterable[ReplicaEndpoint],
    *,
    revision: str,
    wanted_replicas: int,
) -> Rollout:
    """Where the roll-out of a revision is.

    What is not known counts as it was: while Ray cannot be asked, a pool that was rolled out is.

    Args:
        revision: the wanted one.
    """
    names = frozenset(endpoint.replica for endpoint in endpoints)
    if wanted_replicas == 0:
        return Rollout(phase=Phase.AT_ZERO, updated=names)
    status = pool.status
    served = "" if status is None else status.current_revision or ""
    service = observed.ray_service
    if service is None or annotation_of(service, REVISION_ANNOTATION) != revision:
        return Rollout(phase=Phase.APPLYING)
    active, pending = active_cluster(service), pending_cluster(service)
    reading = observed.serve.get(pending or active)
    if active and pending:
        if _failed(reading):
            return Rollout(phase=Phase.FAILED)
        return Rollout(phase=Phase.SWITCHING, updated=_updated(reading, service))
    if reading is None or reading.status is None:
        unknown = Phase.DONE if served == revision else Phase.STARTING
        return Rollout(phase=unknown, updated=names if served == revision else frozenset())
    # Its wanted arguments tell the revision that Ray works on; a change of the cluster alone is
    # told by KubeRay.
    if not _taken(reading, service) or (served != revision and not has_seen_latest(service)):
        return Rollout(phase=Phase.APPLYING)
    if _failed(reading):
        return Rollout(phase=Phase.FAILED, updated=_updated(reading, service))
    if reading.updating:
        first = not served or not names
        phase = Phase.STARTING if first else Phase.ROLLING
        if served == revision and not _old_replicas(reading):
            # Replicas of the revision that died are being replaced by their like.
            return Rollout(phase=Phase.DONE, updated=names)
        return Rollout(phase=phase, updated=_updated(reading, service))
    if served != revision and reading.status.state is PoolState.STARTING and not names:
        return Rollout(phase=Phase.STARTING)
    return Rollout(phase=Phase.DONE, updated=names)


def _taken(reading: ServeReading, service: Mapping[str, Any]) -> bool:
    """Whether Ray works on what the RayService asks for."""
    wanted = application_in(service.get("spec") or {})
    return dict(reading.deployed_args) == dict(wanted.get("args") or {}) and dict(
        reading.deployed_env
    ) == replica_env(wanted)


def _failed(reading: ServeReading | None) -> bool:
    return (
        reading is not None
        and reading.status is not None
        and reading.status.state is PoolState.FAILED
    )


def _updated(reading: ServeReading | None, service: Mapping[str, Any]) -> frozenset[str]:
    """The replicas that were started after Ray was told the wanted arguments."""
    if reading is None or not _taken(reading, service):
        return frozenset()
    since = reading.deployed_at - _CLOCKS_APART_SECONDS
    return frozenset(name for name, at in reading.started_at.items() if at >= since)


def _old_replicas(reading: ServeReading) -> bool:
    since = reading.deployed_at - _CLOCKS_APART_SECONDS
    return any(at < since for at in reading.started_at.values())
