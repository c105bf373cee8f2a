"""A pool's status: what is, said truthfully. Pure; an unchanged state gives an equal document."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pointsman_api.compile import RouteProblem
from pointsman_api.conditions import ModelPoolCondition as Condition
from pointsman_api.conditions import Reason
from pointsman_api.endpoint_slices import ReplicaEndpoint
from pointsman_api.modelpool import ModelPool
from pointsman_operator.clusters import cluster_of
from pointsman_operator.conditions import (
    EventNote,
    condition_documents,
    condition_of,
    transition_events,
)
from pointsman_operator.objects import is_going, pool_selector
from pointsman_operator.observed import PoolObserved
from pointsman_operator.plan import PoolPlan
from pointsman_operator.pool_conditions import pool_conditions
from pointsman_operator.pool_view import View, pool_rollout, view_of
from pointsman_operator.ray_service import hosts_in
from pointsman_operator.rollout import MOVING, Phase, Rollout
from pointsman_operator.settings import OperatorSettings
from pointsman_operator.times import timestamp

__all__ = ["is_fleeting", "pool_events", "pool_rollout", "pool_status", "rollout_moves"]

_TOLD = (
    Condition.ACCEPTED,
    Condition.MODEL_READY,
    Condition.REPLICAS_READY,
    Condition.PROGRESSING,
    Condition.ACTIVE,
    Condition.READY,
)
_FLEETING = frozenset(
    {
        Reason.REPLICAS_NOT_READY,
        Reason.REPLICAS_READY,
        Reason.GATEWAYS_NOT_READY,
        Reason.PROGRESSING,
        Reason.ROLLING_OUT,
        Reason.ROLLED_OUT,
        Reason.SCALING,
    }
)
_GOOD_WHEN_FALSE = frozenset({Reason.ROLLED_OUT, Reason.SCALED_TO_ZERO})


def pool_status(
    pool: ModelPool,
    observed: PoolObserved,
    plan: PoolPlan,
    endpoints: Sequence[ReplicaEndpoint],
    settings: OperatorSettings,
    *,
    before: Mapping[str, Any] | None,
    route_problems: Iterable[RouteProblem] = (),
    last_scale_at: float | None = None,
) -> dict[str, Any]:
    """The status document to write; equal to ``before`` if nothing changed.

    Args:
        plan: of the same round.
        endpoints: of the same round, :func:`pointsman_operator.endpoints.join_endpoints`.
        before: the status that the pool has now.
        route_problems: what compiling the route tables found wrong with this pool.
        last_scale_at: when the number of replicas last changed, if that is known.
    """
    view = view_of(pool, observed, plan, endpoints, settings, before or {}, tuple(route_problems))
    generation = pool.metadata.generation or 0
    document: dict[str, Any] = {"observedGeneration": generation}
    if pool.spec.backend.ray_serve is not None:
        document |= _ray_serve_fields(view, endpoints, last_scale_at)
    else:
        document |= {"replicas": len(_counted(view, endpoints)), "readyReplicas": view.ready}
    document["conditions"] = condition_documents(
        pool_conditions(view),
        view.before.get("conditions") or (),
        generation=generation,
        now=observed.now,
    )
    return document


def rollout_moves(rollout: Rollout, status: Mapping[str, Any]) -> bool:
    """Whether replicas are being replaced and the progress deadline has not passed.

    Args:
        status: of the same round, made by :func:`pool_status`.
    """
    progressing = condition_of(status, Condition.PROGRESSING)
    return rollout.phase in MOVING and progressing.get("status") == "True"


def pool_events(
    before: Mapping[str, Any] | None, after: Mapping[str, Any]
) -> tuple[EventNote, ...]:
    """The Events to write when ``after`` replaces ``before``."""
    return transition_events(before, after, told=_TOLD, good_when_false=_GOOD_WHEN_FALSE)


def is_fleeting(before: Mapping[str, Any] | None, after: Mapping[str, Any]) -> bool:
    """Whether ``after`` says no more than how far the pool is, which the next moment may change.

    That the pool becomes Ready or stops being it is not fleeting, nor is anything that is wrong.
    """
    if before is None or before.get("observedGeneration") != after["observedGeneration"]:
        return False
    for item in after["conditions"]:
        old = condition_of(before, item["type"])
        if (old.get("status"), old.get("reason")) == (item["status"], item["reason"]):
            continue
        if item["type"] == Condition.READY and old.get("status") != item["status"]:
            return False
        if item["reason"] not in _FLEETING:
            return False
    return True


def _counted(view: View, endpoints: Iterable[ReplicaEndpoint]) -> Sequence[object]:
    external = view.pool.spec.backend.external
    if external is not None:
        return external.endpoints
    return [endpoint for endpoint in endpoints if not endpoint.terminating]


def _ray_serve_fields(
    view: View, endpoints: Iterable[ReplicaEndpoint], last_scale_at: float | None
) -> dict[str, Any]:
    workers = [pod for pod in view.observed.pods if cluster_of(pod) and not is_going(pod)]
    updated = [item for item in endpoints if item.ready and item.replica in view.rollout.updated]
    fields: dict[str, Any] = {
        # A replica counts as soon as the first of its pods is there.
        "replicas": -(-len(workers) // hosts_in(view.observed.ray_service)),
        "readyReplicas": view.ready,
        "updatedReplicas": len(updated),
        "selector": pool_selector(view.pool),
    }
    current = view.before.get("currentRevision")
    if view.revision and view.rollout.phase is Phase.DONE:
        current = view.revision
    scaled_at = (
        view.before.get("lastScaleTime") if last_scale_at is None else timestamp(last_scale_at)
    )
    optional = {
        "currentRevision": current,
        "updateRevision": view.revision or view.before.get("updateRevision"),
        "lastScaleTime": scaled_at,
    }
    return fields | {name: value for name, value in optional.items() if value}
