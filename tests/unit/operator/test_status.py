from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from pointsman_api.compile import RouteProblem
from pointsman_api.conditions import Reason
from pointsman_api.modelpool import ModelPool, ModelPoolStatus
from pointsman_operator.access import STAMP_ANNOTATION
from pointsman_operator.endpoints import EndpointsMemory, join_endpoints
from pointsman_operator.observed import PoolObserved, PoolReport
from pointsman_operator.status import (
    is_fleeting,
    pool_events,
    pool_rollout,
    pool_status,
    rollout_moves,
)
from tests.unit.operator.scenes import (
    NOW,
    SETTINGS,
    external_pool,
    gateway,
    made_pool,
    planned,
    reading_of,
    replica_args_in,
    running,
    selector_pool,
    serve_document,
    service_status,
    with_applied,
    worker_pod,
)

CONFLICT = RouteProblem(
    kind="ModelPool",
    key="team/chat",
    field=("spec", "servedModelName"),
    value="chat",
    reason=Reason.MODEL_NAME_CONFLICT,
    message="the ModelPool older already serves this name",
)


def _endpoints(pool: ModelPool, observed: PoolObserved) -> Any:
    return join_endpoints(pool, observed, EndpointsMemory())[0]


def status_of(
    pool: ModelPool,
    observed: PoolObserved,
    *,
    replicas: int = 2,
    before: Mapping[str, Any] | None = None,
    problems: Sequence[RouteProblem] = (),
) -> dict[str, Any]:
    """The status of a pool that was settled; ``before`` is what the pool has, too."""
    if before is not None:
        pool = pool.model_copy(update={"status": ModelPoolStatus.model_validate(dict(before))})
    endpoints = _endpoints(pool, observed)
    status = pool_status(
        pool,
        observed,
        planned(pool, observed, replicas=replicas),
        endpoints,
        SETTINGS,
        before=before,
        route_problems=problems,
    )
    ModelPoolStatus.model_validate(status)
    return status


def said(status: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    return {item["type"]: (item["status"], item["reason"]) for item in status["conditions"]}


def message(status: Mapping[str, Any], kind: str) -> str:
    return next(str(item["message"]) for item in status["conditions"] if item["type"] == kind)


def rolled_out(pool: ModelPool | None = None, **more: Any) -> tuple[PoolObserved, dict[str, Any]]:
    pool = pool or made_pool()
    observed, _ = running(pool, **more)
    return observed, status_of(pool, observed)


def test_a_pool_that_serves_says_so_in_every_condition() -> None:
    _, status = rolled_out()

    assert {
        "Accepted": ("True", "Accepted"),
        "ModelReady": ("True", "ModelReady"),
        "ReplicasReady": ("True", "ReplicasReady"),
        "Progressing": ("False", "RolledOut"),
        "Active": ("True", "Active"),
        "Ready": ("True", "Ready"),
    } == said(status)
    assert (2, 2, 2) == (
        status["replicas"],
        status["readyReplicas"],
        status["updatedReplicas"],
    )
    assert status["currentRevision"] == status["updateRevision"]
    assert "pointsman.dev/pool=chat" in status["selector"]


def test_an_unchanged_state_gives_an_equal_status_at_any_later_time() -> None:
    observed, status = rolled_out()

    later = replace(observed, now=NOW + 86_400)
    assert status == status_of(made_pool(), later, before=status)


def test_only_the_condition_that_changed_gets_a_new_time() -> None:
    observed, before = rolled_out()
    sick = tuple(worker_pod(f"pod-{n}", f"10.0.0.{n + 1}", ready=n > 0) for n in range(2))

    after = status_of(made_pool(), replace(observed, now=NOW + 60, pods=sick), before=before)

    old = {item["type"]: item["lastTransitionTime"] for item in before["conditions"]}
    new = {item["type"]: item["lastTransitionTime"] for item in after["conditions"]}
    assert {"ReplicasReady"} == {kind for kind in new if new[kind] != old[kind]}
    assert ("False", "ReplicasNotReady") == said(after)["ReplicasReady"]
    assert "1 of 2 replicas are ready" in message(after, "ReplicasReady")


def test_a_pool_serves_as_long_as_one_replica_does() -> None:
    observed, _ = rolled_out()

    assert ("True", "Ready") == said(
        status_of(made_pool(), replace(observed, pods=observed.pods[:1]))
    )["Ready"]


def test_a_new_pool_is_not_ready_and_moves() -> None:
    status = status_of(made_pool(engine={"type": "Simulated"}), PoolObserved(now=NOW))

    assert ("False", "ReplicasNotReady") == said(status)["Ready"]
    assert ("True", "RollingOut") == said(status)["Progressing"]
    assert "currentRevision" not in status
    assert status["updateRevision"].startswith("chat-")


def test_a_pool_at_zero_by_design_is_ready_and_not_active() -> None:
    pool = made_pool(autoscaling={"minReplicas": 0, "maxReplicas": 2})
    observed, before = rolled_out(pool)
    gone = with_applied(observed, planned(pool, observed, replicas=0))
    gone = replace(gone, pods=(), ray_clusters=(), serve={})

    status = status_of(pool, gone, replicas=0, before=before)

    assert ("True", "ScaledToZero") == said(status)["Ready"]
    assert ("False", "ScaledToZero") == said(status)["Active"]
    assert ("True", "ModelReady") == said(status)["ModelReady"]
    assert (0, 0) == (status["replicas"], status["readyReplicas"])
    assert before["currentRevision"] == status["currentRevision"]


def test_a_pool_that_comes_back_from_zero_says_that_it_scales() -> None:
    pool = made_pool()
    _, before = rolled_out(pool)
    observed = with_applied(PoolObserved(now=NOW), planned(pool))

    assert ("True", "Scaling") == said(status_of(pool, observed, before=before))["Progressing"]


def test_kuberay_missing_is_told_and_clears_itself() -> None:
    pool = made_pool()
    missing = status_of(pool, PoolObserved(now=NOW, kuberay_served=False))
    _, found = rolled_out(pool)

    assert ("False", "KubeRayNotInstalled") == said(missing)["ReplicasReady"]
    assert ("False", "KubeRayNotInstalled") == said(missing)["Ready"]
    assert ("True", "Ready") == said(found)["Ready"]


def test_a_bad_edit_is_told_and_the_pool_still_serves() -> None:
    observed, before = rolled_out()
    bad = made_pool(engine={"args": ["--no-such-flag=1"]}, generation=2)

    status = status_of(bad, observed, before=before)

    assert ("False", "Invalid") == said(status)["Accepted"]
    assert "--no-such-flag" in message(status, "Accepted")
    assert "stays in force" in message(status, "Accepted")
    assert ("True", "Ready") == said(status)["Ready"]
    assert 2 == status["observedGeneration"]
    assert before["currentRevision"] == status["currentRevision"]


def test_what_the_api_server_refuses_is_told_in_its_words() -> None:
    observed, _ = rolled_out()

    status = status_of(made_pool(), replace(observed, refused='unknown field "nodeSelektor"'))

    assert ("False", "Invalid") == said(status)["Accepted"]
    assert "nodeSelektor" in message(status, "Accepted")


def test_a_name_that_an_older_pool_has_is_told() -> None:
    observed, _ = rolled_out()

    status = status_of(made_pool(), observed, problems=[CONFLICT])

    assert ("False", "ModelNameConflict") == said(status)["Accepted"]
    assert "spec.servedModelName is 'chat'" in message(status, "Accepted")


def test_a_missing_secret_is_told_as_the_models_trouble() -> None:
    model = {
        "source": {
            "type": "HuggingFace",
            "huggingFace": {
                "repository": "org/name",
                "tokenSecretRef": {"name": "hf", "key": "token"},
            },
        }
    }
    pool = made_pool(engine={"type": "VLLM"}, ray_serve={"model": model})

    status = status_of(pool, PoolObserved(now=NOW, secrets={"hf": None}))

    assert ("False", "SecretNotFound") == said(status)["ModelReady"]
    assert (
        "SecretNotFound" in said(status)["Ready"]
        or ("False", "ReplicasNotReady") == said(status)["Ready"]
    )


def test_the_cause_of_a_pod_that_does_not_start_is_lifted_into_the_conditions() -> None:
    pool = made_pool()
    observed, _ = running(pool, ready=0)
    condition = {"type": "PodScheduled", "status": "False", "message": "0/3 nodes: no GPU"}
    waiting = worker_pod("pod-0", "", status={"conditions": [condition]})

    status = status_of(pool, replace(observed, pods=(waiting,)))

    assert ("False", "Unschedulable") == said(status)["ReplicasReady"]
    assert "0/3 nodes: no GPU" in message(status, "ReplicasReady")
    assert ("False", "Unschedulable") == said(status)["Ready"]


def test_a_crash_stays_told_while_the_next_pod_is_only_starting() -> None:
    pool = made_pool()
    observed, _ = running(pool, ready=0)
    container = {"name": "engine", "state": {"terminated": {"reason": "OOMKilled"}}}
    killed = worker_pod("pod-0", "", status={"containerStatuses": [container]})

    before = status_of(pool, replace(observed, pods=(killed,)))
    after = status_of(pool, replace(observed, pods=()), before=before)
    _, healed = rolled_out(pool)

    assert ("False", "OutOfMemory") == said(after)["ReplicasReady"]
    assert message(before, "ReplicasReady") == message(after, "ReplicasReady")
    assert ("True", "ReplicasReady") == said(healed)["ReplicasReady"]


def test_a_crash_of_the_old_revision_is_told_no_more_after_an_edit() -> None:
    pool = made_pool()
    observed, _ = running(pool, ready=0)
    container = {"name": "engine", "state": {"terminated": {"reason": "OOMKilled"}}}
    killed = worker_pod("pod-0", "", status={"containerStatuses": [container]})
    before = status_of(pool, replace(observed, pods=(killed,)))
    edited = made_pool(engine={"maxSequences": 3})

    after = status_of(edited, with_applied(observed, planned(edited, observed)), before=before)

    assert ("False", "ReplicasNotReady") == said(after)["ReplicasReady"]


def rolling(**serve: Any) -> tuple[ModelPool, PoolObserved, dict[str, Any]]:
    """A pool in the middle of a roll-out that began at NOW."""
    observed, before = rolled_out()
    pool = made_pool(engine={"args": ["--seed=7"]}, rollout={"progressDeadline": "10m"})
    observed = with_applied(observed, planned(pool, observed))
    assert observed.ray_service is not None
    service = service_status(observed.ray_service, active="one")
    moving: dict[str, Any] = {
        "deployment": "UPDATING",
        "status": "DEPLOYING",
        "deployed_at": NOW,
        "started_at": {"a": NOW - 500, "b": NOW + 5},
    }
    document = serve_document(
        {"a": ("10.0.0.1", 30000), "b": ("10.0.0.2", 30000)},
        args=replica_args_in(service),
        **(moving | serve),
    )
    observed = replace(
        observed, now=NOW + 20, ray_service=service, serve={"one": reading_of(document)}
    )
    return pool, observed, status_of(pool, observed, before=before)


def test_a_roll_out_is_told_with_its_numbers_and_the_pool_stays_ready() -> None:
    _, _, status = rolling()

    assert ("True", "RollingOut") == said(status)["Progressing"]
    assert "1 of 2" in message(status, "Progressing")
    assert 1 == status["updatedReplicas"]
    assert status["currentRevision"] != status["updateRevision"]
    assert ("True", "Ready") == said(status)["Ready"]


def test_a_roll_out_that_takes_too_long_is_told_and_stays_told() -> None:
    pool, observed, before = rolling()

    in_time = status_of(pool, replace(observed, now=NOW + 600), before=before)
    late = status_of(pool, replace(observed, now=NOW + 700), before=in_time)
    later = status_of(pool, replace(observed, now=NOW + 900), before=late)

    assert ("True", "RollingOut") == said(in_time)["Progressing"]
    assert ("False", "ProgressDeadlineExceeded") == said(late)["Progressing"]
    rollout = pool_rollout(pool, observed, planned(pool, observed), _endpoints(pool, observed))
    assert [True, False] == [rollout_moves(rollout, status) for status in (in_time, late)]
    assert late == later
    assert "serve on" in message(late, "Progressing")
    assert ("True", "Ready") == said(late)["Ready"]


def test_a_new_edit_has_its_own_time_when_the_last_roll_out_took_too_long() -> None:
    pool, observed, before = rolling()
    late = status_of(pool, replace(observed, now=NOW + 700), before=before)
    edited = made_pool(engine={"args": ["--seed=8"]}, rollout={"progressDeadline": "10m"})
    observed = with_applied(replace(observed, now=NOW + 800), planned(edited, observed))

    assert ("True", "RollingOut") == said(status_of(edited, observed, before=late))["Progressing"]


def test_a_roll_out_that_ray_gives_up_is_told_with_rays_words_and_the_old_serve_on() -> None:
    _, _, status = rolling(status="DEPLOY_FAILED", message="Traceback\nValueError: no such seed\n")

    assert ("False", "DeploymentFailed") == said(status)["Progressing"]
    assert "ValueError: no such seed" in message(status, "Progressing")
    assert "serve on" in message(status, "Progressing")
    assert ("True", "Ready") == said(status)["Ready"]


ROUTED = frozenset({"default"})
UNREACHED = gateway(pools={"team/chat": PoolReport(serving_replicas=0)})
REACHED = gateway(pools={"team/chat": PoolReport(serving_replicas=1)})


def test_a_pool_is_not_ready_while_no_gateway_reaches_a_replica() -> None:
    observed = replace(rolled_out()[0], routed_by=ROUTED)

    lost = status_of(made_pool(), replace(observed, gateways=(UNREACHED,)))

    assert ("False", "GatewaysNotReady") == said(lost)["Ready"]
    assert "NetworkPolicies between them and the replicas" in message(lost, "Ready")
    assert ("True", "Ready") == said(
        status_of(made_pool(), replace(observed, gateways=(UNREACHED, REACHED)))
    )["Ready"]


@pytest.mark.parametrize("gateways", [(gateway(hashes=()),), (gateway(ages=(60, 60)),)])
def test_a_pool_is_not_ready_when_no_gateway_with_a_route_to_it_reports(gateways: Any) -> None:
    ready = replace(rolled_out()[0], routed_by=ROUTED, gateways=gateways)
    external = PoolObserved(now=NOW, routed_by=ROUTED, gateways=ready.gateways)

    for status in (status_of(made_pool(), ready), status_of(external_pool(), external)):
        assert ("False", "GatewaysNotReady") == said(status)["Ready"]
        assert "the gateway default" in message(status, "Ready")
    assert ("True", "ReplicasReady") == said(status_of(made_pool(), ready))["ReplicasReady"]


def test_a_pool_without_a_route_would_serve_and_says_what_is_missing() -> None:
    observed = replace(rolled_out()[0], routed_by=frozenset(), gateways=(gateway(),))

    status = status_of(made_pool(), observed)

    assert ("True", "Ready") == said(status)["Ready"]
    assert "no gateway has a route to this pool" in message(status, "Ready")


def test_pods_that_cannot_be_made_are_told_with_the_next_step() -> None:
    pool = made_pool()
    observed, _ = running(pool, ready=1)
    failure = {
        "type": "ReplicaFailure",
        "status": "True",
        "reason": "FailedCreateWorkerPod",
        "message": 'FailedCreateWorkerPod\npods "a" is forbidden: exceeded quota: small',
    }
    clusters = ({**observed.ray_clusters[0], "status": {"conditions": [failure]}},)

    status = status_of(pool, replace(observed, ray_clusters=clusters))

    told = message(status, "ReplicasReady")
    assert "1 of 2 replicas are ready: the API server refuses a worker pod" in told
    assert "raise the ResourceQuota" in told
    assert ("True", "Ready") == said(status)["Ready"]


@pytest.mark.parametrize(("pods", "replicas"), [(4, 2), (3, 2), (2, 1), (0, 0)])
def test_a_replica_over_several_pods_counts_once(pods: int, replicas: int) -> None:
    pool = made_pool(ray_serve={"parallelism": {"hosts": 2}})
    observed, _ = running(pool)
    workers = tuple(worker_pod(f"pod-{n}", f"10.0.0.{n + 1}") for n in range(pods))

    status = status_of(pool, replace(observed, pods=workers))

    assert replicas == status["replicas"]


def test_what_is_in_the_way_of_a_pool_keeps_it_from_starting_and_is_told() -> None:
    stranger = {"kind": "Secret", "metadata": {"name": "chat-access", "namespace": "team"}}

    status = status_of(made_pool(), PoolObserved(now=NOW, in_the_way=(stranger,)))

    assert ("False", "NameTaken") == said(status)["ReplicasReady"]
    assert ("False", "Pending") == said(status)["Progressing"]
    assert "The Secret chat-access" in message(status, "Ready")


def test_a_roll_out_says_that_the_pools_secret_was_lost_when_its_tokens_are_new() -> None:
    pool, observed, before = rolling()
    assert "chat-access" not in message(before, "Progressing")
    secret = {**(observed.access_secret or {})}
    secret["metadata"] = {**secret["metadata"], "annotations": {STAMP_ANNOTATION: "1800000000"}}

    status = status_of(pool, replace(observed, access_secret=secret), before=before)

    assert "the Secret chat-access was lost and has new values" in message(status, "Progressing")


@pytest.mark.parametrize(
    ("pods", "expected"),
    [
        ((worker_pod("a", "10.0.0.1"),), ("True", "Ready")),
        ((worker_pod("a", "10.0.0.1", ready=False),), ("False", "ReplicasNotReady")),
        ((), ("False", "NoReplicas")),
    ],
)
def test_a_pool_of_selected_pods_is_ready_when_one_of_them_is(
    pods: Any, expected: tuple[str, str]
) -> None:
    status = status_of(selector_pool(), PoolObserved(now=NOW, pods=pods))

    assert expected == said(status)["Ready"]
    assert {"Accepted", "ReplicasReady", "Active", "Ready"} == set(said(status))


def test_an_external_pool_is_ready_when_its_key_is_there() -> None:
    pool = external_pool(credentialSecretRef={"name": "key", "key": "api"})

    good = status_of(pool, PoolObserved(now=NOW, secrets={"key": frozenset({"api"})}))
    bad = status_of(pool, PoolObserved(now=NOW, secrets={"key": None}))

    assert ("True", "Ready") == said(good)["Ready"]
    assert 1 == good["replicas"]
    assert ("False", "SecretNotFound") == said(bad)["Ready"]


def test_transitions_are_told_as_events() -> None:
    observed, before = rolled_out()
    after = status_of(made_pool(), replace(observed, pods=()), before=before)

    lost = pool_events(before, after)
    back = pool_events(after, before)

    assert [("Warning", "ReplicasNotReady")] * 2 == [(note.type, note.reason) for note in lost]
    assert [("Normal", "ReplicasReady"), ("Normal", "Ready")] == [
        (note.type, note.reason) for note in back
    ]
    assert () == pool_events(before, before)


def test_the_end_of_a_roll_out_is_good_news() -> None:
    _, _, during = rolling()
    _, done = rolled_out()

    assert [("Normal", "RolledOut")] == [
        (note.type, note.reason) for note in pool_events(during, done)
    ]


def test_how_far_a_pool_is_is_fleeting_when_it_neither_becomes_ready_nor_fails() -> None:
    pool = made_pool(replicas=2)
    none, one, both = (
        status_of(pool, running(pool, ready=ready)[0], before={}) for ready in (0, 1, 2)
    )

    assert is_fleeting(one, both)
    assert is_fleeting(one, {**one, "replicas": 9})
    assert not is_fleeting(None, none)
    assert not is_fleeting(none, one)
    assert not is_fleeting(one, none)
    assert not is_fleeting(one, {**both, "observedGeneration": 9})


def test_a_status_is_not_fleeting_when_it_says_what_is_wrong() -> None:
    pool = made_pool()
    observed, _ = running(pool, ready=0)
    before = status_of(pool, observed, before={})
    container = {"name": "engine", "state": {"terminated": {"reason": "OOMKilled"}}}
    broken = worker_pod("pod-0", "", status={"containerStatuses": [container]})

    after = status_of(pool, replace(observed, pods=(broken,)), before=before)

    assert not is_fleeting(before, after)


def test_no_event_tells_that_a_pool_still_waits_when_only_the_reason_is_another() -> None:
    pool = made_pool()
    starting = status_of(pool, running(pool, ready=0)[0], before={})
    unreached = replace(running(pool)[0], gateways=(UNREACHED,), routed_by=ROUTED)
    waiting = status_of(pool, unreached, before=starting)

    told = [note.message.partition(":")[0] for note in pool_events(starting, waiting)]

    assert "Ready is False" not in told
    assert "ReplicasReady is True" in told
