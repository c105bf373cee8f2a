from __future__ import annotations

from dataclasses import replace
from typing import Any

from pointsman_api.labels import RESTARTED_AT_ANNOTATION
from pointsman_operator.endpoints import EndpointsMemory, join_endpoints
from pointsman_operator.observed import PoolObserved
from pointsman_operator.pool_view import pool_rollout
from pointsman_operator.rollout import Phase, Rollout
from tests.unit.operator.scenes import (
    NOW,
    made_pool,
    planned,
    ray_cluster,
    reading_of,
    replica_args_in,
    running,
    serve_document,
    service_status,
    with_applied,
)

BOTH = {"a": ("10.0.0.1", 30000), "b": ("10.0.0.2", 30000)}


def rollout(pool: Any, observed: PoolObserved, *, replicas: int = 2) -> Rollout:
    plan = planned(pool, observed, replicas=replicas)
    endpoints, _ = join_endpoints(pool, observed, EndpointsMemory())
    return pool_rollout(pool, observed, plan, endpoints)


def served(**spec: Any) -> Any:
    """A pool whose first revision was rolled out."""
    revision = planned(made_pool()).revision
    return made_pool(status={"currentRevision": revision, "updateRevision": revision}, **spec)


def changed(observed: PoolObserved, pool: Any, **serve: Any) -> PoolObserved:
    """The pool's change was applied and KubeRay has told Ray."""
    observed = with_applied(observed, planned(pool, observed))
    assert observed.ray_service is not None
    service = service_status(observed.ray_service, active="one")
    document = serve_document(BOTH, args=replica_args_in(service), **serve)
    return replace(observed, ray_service=service, serve={"one": reading_of(document)})


def test_a_pool_without_replicas_is_at_zero() -> None:
    assert Phase.AT_ZERO == rollout(made_pool(), PoolObserved(now=NOW), replicas=0).phase


def test_a_new_pool_is_applied_then_starts_then_is_done() -> None:
    pool = made_pool()
    empty = PoolObserved(now=NOW)
    applied = with_applied(empty, planned(pool))
    starting, _ = running(pool, ready=0, deployment="UPDATING", status="DEPLOYING")
    done, _ = running(pool)

    assert Phase.APPLYING == rollout(pool, empty).phase
    assert Phase.STARTING == rollout(pool, applied).phase
    assert Phase.STARTING == rollout(pool, starting).phase
    assert Phase.DONE == rollout(pool, done).phase


def test_a_roll_out_inside_the_cluster_counts_the_replicas_that_are_new() -> None:
    before, _ = running(served())
    pool = served(engine={"args": ["--seed=7"]})
    during = changed(
        before,
        pool,
        deployment="UPDATING",
        status="DEPLOYING",
        deployed_at=NOW - 10,
        started_at={"a": NOW - 500, "b": NOW - 5},
    )

    assert Rollout(phase=Phase.ROLLING, updated=frozenset({"b"})) == rollout(pool, during)


def test_a_roll_out_is_not_done_while_ray_works_on_the_old_arguments() -> None:
    before, _ = running(served())
    pool = served(engine={"args": ["--seed=7"]})
    told = with_applied(before, planned(pool, before))
    assert told.ray_service is not None
    seen = replace(told, ray_service=service_status(told.ray_service, active="one"))

    assert Phase.APPLYING == rollout(pool, seen).phase


def test_a_roll_out_is_done_when_ray_has_replaced_every_replica() -> None:
    before, _ = running(served())
    pool = served(engine={"args": ["--seed=7"]})

    assert Phase.DONE == rollout(pool, changed(before, pool)).phase


def test_a_change_of_hardware_is_not_done_before_kuberay_has_seen_it() -> None:
    before, _ = running(served())
    template = {"spec": {"nodeSelector": {"gpu": "h100"}}}
    pool = served(ray_serve={"template": template})
    told = with_applied(before, planned(pool, before))

    assert Phase.APPLYING == rollout(pool, told).phase


def test_a_second_cluster_is_switched_to_and_only_its_replicas_count() -> None:
    before, _ = running(served())
    pool = served(ray_serve={"template": {"spec": {"nodeSelector": {"gpu": "h100"}}}})
    told = with_applied(before, planned(pool, before))
    assert told.ray_service is not None
    service = service_status(told.ray_service, active="one", pending="two")
    args = replica_args_in(service)
    new = serve_document({"c": ("10.0.1.1", 30000)}, args=args, deployed_at=NOW - 1000)
    during = replace(
        told,
        ray_service=service,
        ray_clusters=(ray_cluster("one"), ray_cluster("two")),
        serve={**told.serve, "two": reading_of(new, cluster="two")},
    )

    assert Rollout(phase=Phase.SWITCHING, updated=frozenset({"c"})) == rollout(pool, during)


def test_a_roll_out_that_ray_gives_up_has_failed() -> None:
    before, _ = running(served())
    pool = served(engine={"args": ["--seed=7"]})
    failed = changed(before, pool, status="DEPLOY_FAILED", deployment="UNHEALTHY")

    assert Phase.FAILED == rollout(pool, failed).phase


def test_scaling_is_no_roll_out() -> None:
    pool = served()
    before, _ = running(pool)
    scaled = with_applied(before, planned(pool, before, replicas=3))
    document = serve_document(
        BOTH,
        args=replica_args_in(scaled.ray_service or {}),
        deployment="UPSCALING",
        deployed_at=NOW,
        total=3,
    )

    observed = replace(scaled, serve={"one": reading_of(document)})
    assert Phase.DONE == rollout(pool, observed, replicas=3).phase


def test_a_replica_that_died_and_is_replaced_is_no_roll_out() -> None:
    pool = served()
    observed, _ = running(
        pool, ready=1, status="UNHEALTHY", deployment="UNHEALTHY", deployed_at=NOW - 1000
    )

    assert Phase.DONE == rollout(pool, observed).phase


def test_a_pool_that_was_rolled_out_stays_so_while_ray_cannot_be_asked() -> None:
    pool = served()
    observed, _ = running(pool)

    assert Phase.DONE == rollout(pool, replace(observed, serve={})).phase


def test_a_pool_that_comes_back_from_zero_is_not_rolled_out_again() -> None:
    pool = served()
    observed = with_applied(PoolObserved(now=NOW), planned(pool))

    assert Phase.DONE == rollout(pool, observed).phase


def test_a_restart_that_was_asked_for_is_a_roll_out_until_ray_has_been_told() -> None:
    before, _ = running(served())
    pool = served(annotations={RESTARTED_AT_ANNOTATION: "2026-11-28T10:00:00Z"})
    env = {"POINTSMAN_RESTARTED_AT": "2026-11-28T10:00:00Z"}

    assert Phase.APPLYING == rollout(pool, changed(before, pool)).phase
    assert (
        Phase.ROLLING
        == rollout(
            pool, changed(before, pool, env=env, deployment="UPDATING", deployed_at=NOW)
        ).phase
    )
    assert Phase.DONE == rollout(pool, changed(before, pool, env=env)).phase


def test_replicas_that_come_back_after_the_head_lost_its_state_are_no_roll_out() -> None:
    pool = served()
    observed, _ = running(
        pool,
        status="DEPLOYING",
        deployment="UPDATING",
        deployed_at=NOW - 9,
        started_at={"replica0": NOW - 5, "replica1": NOW - 5},
    )

    assert Phase.DONE == rollout(pool, observed).phase


def test_going_back_in_the_middle_of_a_roll_out_is_one_too() -> None:
    pool = served()
    observed, _ = running(
        pool,
        status="DEPLOYING",
        deployment="UPDATING",
        deployed_at=NOW - 9,
        started_at={"replica0": NOW - 500, "replica1": NOW - 5},
    )

    assert Phase.ROLLING == rollout(pool, observed).phase
