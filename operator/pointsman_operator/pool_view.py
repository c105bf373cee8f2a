"""What a pool's conditions are made from, gathered once. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pointsman_api.compile import RouteProblem
from pointsman_api.conditions import ModelPoolCondition as Condition
from pointsman_api.conditions import Reason
from pointsman_api.endpoint_slices import ReplicaEndpoint
from pointsman_api.field_path import field_text
from pointsman_api.modelpool import ModelPool
from pointsman_operator.access import has_outdated_pods
from pointsman_operator.causes import Cause, find_cause
from pointsman_operator.observed import PoolObserved
from pointsman_operator.plan import PoolPlan
from pointsman_operator.problem import Problem
from pointsman_operator.reach import Reached, reach_of
from pointsman_operator.rollout import Rollout, rollout_of
from pointsman_operator.settings import OperatorSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """All that a pool's conditions are made from."""

    pool: ModelPool
    observed: PoolObserved
    before: Mapping[str, Any]
    wanted: int
    ready: int
    rollout: Rollout
    revision: str
    cause: Cause | None
    problems: tuple[Problem, ...]
    reached: Reached
    """How far the gateways get on their way to a replica."""
    renewed: bool
    """Pods run whose tokens are those of a lost Secret."""


def pool_rollout(
    pool: ModelPool,
    observed: PoolObserved,
    plan: PoolPlan,
    endpoints: Iterable[ReplicaEndpoint],
) -> Rollout:
    """Where the pool's roll-out is; scaling waits while it :data:`moves
    <pointsman_operator.rollout.MOVING>`."""
    return rollout_of(
        pool,
        observed,
        endpoints,
        revision=plan.revision,
        wanted_replicas=plan.wanted_replicas,
    )


def view_of(
    pool: ModelPool,
    observed: PoolObserved,
    plan: PoolPlan,
    endpoints: Sequence[ReplicaEndpoint],
    settings: OperatorSettings,
    before: Mapping[str, Any],
    route_problems: tuple[RouteProblem, ...],
) -> View:
    """Gather what the conditions of one round are made from."""
    problems = [
        Problem(condition=Condition.ACCEPTED, reason=item.reason, message=_route_message(item))
        for item in route_problems
    ]
    problems += plan.problems
    if observed.refused:
        problems.append(
            Problem(
                condition=Condition.ACCEPTED,
                reason=Reason.INVALID,
                message=f"the API server refuses what this pool asks for: {observed.refused}; "
                "correct spec.backend.rayServe",
            )
        )
    ready = sum(endpoint.ready for endpoint in endpoints)
    wanted = plan.wanted_replicas
    cause = None
    if pool.spec.backend.ray_serve is not None and wanted > 0:
        cause = find_cause(
            observed.pods,
            observed.serve.values(),
            clusters=observed.ray_clusters,
            service=observed.ray_service,
            last_log_lines=observed.last_log_lines,
        )
    return View(
        pool=pool,
        observed=observed,
        before=before,
        wanted=wanted,
        ready=ready,
        rollout=pool_rollout(pool, observed, plan, endpoints),
        revision=plan.revision,
        cause=cause,
        problems=tuple(problems),
        reached=reach_of(pool, observed, stale_seconds=settings.gateway_stale_seconds),
        renewed=has_outdated_pods(observed),
    )


def _route_message(problem: RouteProblem) -> str:
    return f"{field_text(problem.field)} is {problem.value!r}: {problem.message}"
