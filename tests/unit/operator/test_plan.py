from __future__ import annotations

import base64
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointsman_api.conditions import ModelPoolCondition, Reason
from pointsman_api.labels import RESTARTED_AT_ANNOTATION
from pointsman_operator.objects import digest
from pointsman_operator.observed import PoolObserved
from pointsman_operator.plan import plan_gone
from pointsman_operator.settings import OperatorSettings
from tests.unit.operator.scenes import (
    NOW,
    external_pool,
    made_pool,
    planned,
    ray_cluster,
    running,
    selector_pool,
    with_applied,
)

HUGGING_FACE = {
    "engine": {"type": "VLLM"},
    "model": {
        "source": {
            "type": "HuggingFace",
            "huggingFace": {
                "repository": "org/name",
                "tokenSecretRef": {"name": "hf", "key": "token"},
            },
        }
    },
}
HOST_PATH = {
    "engine": {"type": "VLLM"},
    "model": {"source": {"type": "HostPath", "hostPath": {"path": "/models/a"}}},
}


def kinds(plan: Any) -> list[str]:
    return [item["kind"] for item in (*plan.create, *plan.apply)]


def test_a_new_pool_gets_its_secret_then_its_revision_then_its_ray_service() -> None:
    plan = planned(made_pool())

    assert ["Secret", "ControllerRevision", "RayService"] == kinds(plan)
    assert () == plan.problems
    assert plan.revision == plan.apply[0]["metadata"]["name"]


def test_every_object_is_owned_by_the_pool_and_says_whose_it_is() -> None:
    plan = planned(made_pool())

    for obj in (*plan.create, *plan.apply):
        assert "team" == obj["metadata"]["namespace"]
        assert "chat" == obj["metadata"]["labels"]["pointsman.dev/pool"]
        assert "team" == obj["metadata"]["labels"]["pointsman.dev/pool-namespace"]
        assert "uid-chat" == obj["metadata"]["ownerReferences"][0]["uid"]


def test_nothing_is_written_when_what_is_is_what_is_wanted() -> None:
    pool = made_pool()
    observed = with_applied(PoolObserved(now=NOW), planned(pool))

    assert planned(pool, observed).is_empty


def test_nothing_is_written_when_the_operator_has_other_settings_than_when_it_rendered() -> None:
    pool = made_pool()
    observed = with_applied(PoolObserved(now=NOW), planned(pool))
    newer = OperatorSettings(simulated_image="ray:newer", runtime_image="pointsman:newer")

    assert planned(pool, observed, settings=newer).is_empty


def test_new_settings_reach_a_pool_when_a_roll_out_is_asked_for() -> None:
    observed = with_applied(PoolObserved(now=NOW), planned(made_pool()))
    newer = OperatorSettings(simulated_image="ray:newer")
    asked = made_pool(annotations={RESTARTED_AT_ANNOTATION: "2026-11-28T10:00:00Z"})

    plan = planned(asked, observed, settings=newer)

    assert ["ControllerRevision", "RayService"] == kinds(plan)
    cluster = plan.apply[1]["spec"]["rayClusterConfig"]
    engine = cluster["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]
    assert "ray:newer" == engine["image"]


@pytest.mark.parametrize(
    "change",
    [
        {"pricing": {"perMillionTokens": {"input": "1", "output": "2"}}},
        {"quality": [{"task": "Default", "score": "0.5"}]},
        {"allowedRoutes": {"namespaces": {"from": "All"}}},
        {"rollout": {"progressDeadline": "5m"}},
        {"replicas": 2},
    ],
)
def test_nothing_is_written_when_a_change_concerns_no_pod(change: dict[str, Any]) -> None:
    observed = with_applied(PoolObserved(now=NOW), planned(made_pool()))

    assert planned(made_pool(**change), observed).is_empty


def test_the_ray_service_alone_is_written_when_the_number_of_replicas_changes() -> None:
    pool = made_pool()
    observed = with_applied(PoolObserved(now=NOW), planned(pool))

    plan = planned(pool, observed, replicas=5)

    assert ["RayService"] == kinds(plan)
    assert "num_replicas: 5" in plan.apply[0]["spec"]["serveConfigV2"]
    assert 5 == plan.apply[0]["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]["replicas"]


def test_the_ray_service_is_deleted_and_its_revision_stays_when_no_replica_is_wanted() -> None:
    pool = made_pool()
    observed = with_applied(PoolObserved(now=NOW), planned(pool))

    plan = planned(pool, observed, replicas=0)

    assert [] == kinds(plan)
    assert ["RayService"] == [ref.kind.name for ref in plan.delete]
    assert planned(pool, with_applied(observed, plan), replicas=0).is_empty


def test_a_ray_service_that_is_going_is_left_alone_when_replicas_are_wanted_again() -> None:
    pool = made_pool()
    observed = with_applied(PoolObserved(now=NOW), planned(pool))
    service = dict(observed.ray_service or {})
    service["metadata"] = {**service["metadata"], "deletionTimestamp": "2026-11-01T00:00:00Z"}

    assert planned(pool, replace(observed, ray_service=service), replicas=3).is_empty


def test_the_field_that_somebody_changed_is_put_back() -> None:
    pool = made_pool()
    observed = with_applied(PoolObserved(now=NOW), planned(pool))
    service = dict(observed.ray_service or {})
    service["spec"] = {**service["spec"], "rayClusterDeletionDelaySeconds": 1}

    plan = planned(pool, replace(observed, ray_service=service))

    assert ["RayService"] == kinds(plan)


def test_the_tokens_of_a_pool_stay_for_good() -> None:
    pool = made_pool()
    observed = with_applied(PoolObserved(now=NOW), planned(pool))

    assert () == planned(pool, observed).create
    assert b"r" * 32 == base64.b64decode((observed.access_secret or {})["data"]["replica_token"])


def test_a_token_that_was_taken_out_is_put_back_and_the_other_stays() -> None:
    pool = made_pool()
    observed = with_applied(PoolObserved(now=NOW), planned(pool))
    secret = {**(observed.access_secret or {}), "data": {"auth_token": "a2VwdA=="}}

    plan = planned(pool, replace(observed, access_secret=secret))

    assert ["Secret"] == kinds(plan)
    # Whole, for an apply takes away what an earlier one has set.
    assert "a2VwdA==" == plan.apply[0]["data"]["auth_token"]
    assert b"r" * 32 == base64.b64decode(plan.apply[0]["data"]["replica_token"])


def test_the_redis_password_follows_the_setting() -> None:
    pool = made_pool()
    observed = with_applied(PoolObserved(now=NOW), planned(pool))
    settings = OperatorSettings(redis_address="redis:6379", redis_password="new")

    plan = planned(pool, observed, settings=settings)

    assert b"new" == base64.b64decode(plan.apply[0]["data"]["redis_password"])
    assert planned(pool, with_applied(observed, plan), settings=settings).is_empty


def test_the_password_outlives_the_pool_when_a_cluster_has_keys_in_redis() -> None:
    pool = made_pool()
    settings = OperatorSettings(redis_address="redis:6379", redis_password="secret")
    observed = with_applied(PoolObserved(now=NOW), planned(pool, settings=settings))
    observed = replace(
        observed, ray_clusters=(ray_cluster("two", uid="2"), ray_cluster("one", uid="1"))
    )

    plan = planned(pool, observed, settings=settings)

    (secret,) = plan.apply
    owners = secret["metadata"]["ownerReferences"]
    assert ["ModelPool", "RayCluster", "RayCluster"] == [owner["kind"] for owner in owners]
    assert ["chat", "one", "two"] == [owner["name"] for owner in owners]
    assert [True, False, False] == [owner["controller"] for owner in owners]
    assert planned(pool, with_applied(observed, plan), settings=settings).is_empty
    # Without a password nothing of the Secret is needed later.
    assert [] == [item for item in planned(pool, observed).apply if item["kind"] == "Secret"]


@pytest.mark.parametrize("pool", [external_pool(), selector_pool()])
def test_nothing_is_written_when_the_replicas_are_somebody_elses(pool: Any) -> None:
    assert planned(pool).is_empty


def test_nothing_is_written_and_the_reason_told_when_kuberay_is_missing() -> None:
    plan = planned(made_pool(), PoolObserved(now=NOW, kuberay_served=False))

    assert plan.is_empty
    assert [Reason.KUBERAY_NOT_INSTALLED] == [item.reason for item in plan.problems]
    assert ModelPoolCondition.REPLICAS_READY == plan.problems[0].condition


def test_the_last_good_ray_service_stays_when_an_edit_cannot_be_run() -> None:
    observed = with_applied(PoolObserved(now=NOW), planned(made_pool()))
    bad = made_pool(engine={"args": ["--no-such-flag=1"]})

    plan = planned(bad, observed)

    assert plan.is_empty
    assert [Reason.INVALID] == [item.reason for item in plan.problems]
    assert "--no-such-flag" in plan.problems[0].message


def test_scaling_goes_on_with_the_last_good_revision_when_an_edit_cannot_be_run() -> None:
    observed = with_applied(PoolObserved(now=NOW), planned(made_pool()))
    bad = made_pool(engine={"args": ["--no-such-flag=1"]})

    plan = planned(bad, observed, replicas=4)

    assert ["RayService"] == kinds(plan)
    assert "no-such-flag" not in plan.apply[0]["spec"]["serveConfigV2"]


def test_a_folder_of_the_node_is_refused_unless_the_operator_allows_it() -> None:
    pool = made_pool(ray_serve=HOST_PATH)

    refused = planned(pool)
    allowed = planned(pool, settings=OperatorSettings(allow_host_path=True))

    assert [Reason.HOST_PATH_NOT_ALLOWED] == [item.reason for item in refused.problems]
    assert "RayService" not in kinds(refused)
    assert "RayService" in kinds(allowed)


def test_a_folder_of_the_node_gets_no_more_pods_when_the_operator_allows_it_no_more() -> None:
    pool = made_pool(ray_serve=HOST_PATH)
    allowing = OperatorSettings(allow_host_path=True)
    observed = with_applied(PoolObserved(now=NOW), planned(pool, settings=allowing))

    plan = planned(pool, observed, replicas=5)

    assert plan.is_empty
    assert [Reason.HOST_PATH_NOT_ALLOWED] == [item.reason for item in plan.problems]


def test_a_folder_of_the_node_in_the_template_is_refused_too() -> None:
    template = {"spec": {"volumes": [{"name": "etc", "hostPath": {"path": "/etc"}}]}}
    plan = planned(made_pool(ray_serve={"template": template}))

    assert [Reason.HOST_PATH_NOT_ALLOWED] == [item.reason for item in plan.problems]
    assert "/etc" in plan.problems[0].message


@pytest.mark.parametrize(
    ("secrets", "said"),
    [
        ({"hf": None}, "there is no Secret hf"),
        ({"hf": frozenset({"tokn"})}, "has no key token (it has tokn)"),
    ],
)
def test_a_missing_secret_is_told_and_the_pods_wait_for_it(
    secrets: dict[str, Any], said: str
) -> None:
    plan = planned(made_pool(ray_serve=HUGGING_FACE), PoolObserved(now=NOW, secrets=secrets))

    assert "RayService" in kinds(plan)
    assert [Reason.SECRET_NOT_FOUND] == [item.reason for item in plan.problems]
    assert said in plan.problems[0].message


@pytest.mark.parametrize("secrets", [{}, {"hf": frozenset({"token", "more"})}])
def test_a_secret_that_is_there_or_was_not_looked_up_is_no_problem(
    secrets: dict[str, Any],
) -> None:
    plan = planned(made_pool(ray_serve=HUGGING_FACE), PoolObserved(now=NOW, secrets=secrets))

    assert () == plan.problems


def test_the_revision_that_is_wanted_again_is_used_again_and_becomes_the_newest() -> None:
    first, second = made_pool(), made_pool(engine={"maxSequences": 7})
    observed = with_applied(PoolObserved(now=NOW), planned(first))
    observed = with_applied(observed, planned(second, observed))

    plan = planned(first, observed)

    assert ["ControllerRevision", "RayService"] == kinds(plan)
    assert 3 == plan.apply[0]["revision"]
    assert planned(first, with_applied(observed, plan)).is_empty


def test_the_oldest_revisions_go_when_there_are_more_than_three() -> None:
    observed = PoolObserved(now=NOW)
    names = []
    for sequences in range(1, 7):
        plan = planned(made_pool(engine={"maxSequences": sequences}), observed)
        observed = with_applied(observed, plan)
        names.append(plan.revision)
    plan = planned(made_pool(engine={"maxSequences": 6}), observed)
    observed = with_applied(observed, plan)

    assert set(names[-3:]) == {item["metadata"]["name"] for item in observed.revisions}


def test_the_revision_that_is_still_served_stays_whatever_its_age() -> None:
    observed = with_applied(PoolObserved(now=NOW), planned(made_pool()))
    served = planned(made_pool(), observed).revision
    for sequences in range(1, 7):
        pool = made_pool(engine={"maxSequences": sequences}, status={"currentRevision": served})
        observed = with_applied(observed, planned(pool, observed))

    assert served in {item["metadata"]["name"] for item in observed.revisions}


def test_a_revision_that_somebody_changed_is_made_anew_and_not_used() -> None:
    pool = made_pool()
    observed = with_applied(PoolObserved(now=NOW), planned(pool))
    damaged = dict(observed.revisions[0])
    stolen = {**damaged["data"]["rayServiceSpec"], "rayClusterDeletionDelaySeconds": 0}
    damaged["data"] = {**damaged["data"], "rayServiceSpec": stolen}
    observed = replace(observed, revisions=(damaged,))

    plan = planned(pool, observed)

    assert [] == kinds(plan)
    assert ["ControllerRevision"] == [ref.kind.name for ref in plan.delete]
    again = planned(pool, with_applied(observed, plan))
    assert ["ControllerRevision"] == kinds(again)


def foreign_revision(*, labelled: bool) -> Any:
    """A ControllerRevision of the name that the pool's own needs, with another spec in it."""
    document = dict(planned(made_pool()).apply[0])
    spec = {**document["data"]["rayServiceSpec"], "rayClusterDeletionDelaySeconds": 0}
    labels = document["metadata"]["labels"] if labelled else {"pointsman.dev/pool": "chat"}
    document["metadata"] = {
        **document["metadata"],
        "labels": labels,
        "ownerReferences": [{"uid": "somebody"}],
    }
    document["data"] = {**document["data"], "rayServiceSpec": spec, "checksum": digest(spec)}
    return document


def test_a_revision_that_is_not_the_pools_own_is_made_anew_and_not_used() -> None:
    """Its deleted namesake left it: adopted, its data could never be changed."""
    pool = made_pool()

    plan = planned(pool, PoolObserved(now=NOW, revisions=(foreign_revision(labelled=True),)))

    assert ["Secret", "RayService"] == kinds(plan)
    assert planned(pool).apply[-1] == plan.apply[-1]
    assert ["ControllerRevision"] == [ref.kind.name for ref in plan.delete]


def test_a_strangers_revision_is_left_alone_and_told() -> None:
    pool = made_pool()

    plan = planned(pool, PoolObserved(now=NOW, revisions=(foreign_revision(labelled=False),)))

    assert plan.is_empty
    (problem,) = plan.problems
    assert f"the ControllerRevision {planned(pool).revision}" in problem.message


STRANGERS = [
    {"kind": "Secret", "metadata": {"name": "chat-access", "namespace": "team"}},
    {"kind": "RayService", "metadata": {"name": "chat", "namespace": "team"}},
]


@pytest.mark.parametrize("stranger", STRANGERS)
def test_a_strangers_object_is_left_alone_and_told_when_it_has_a_name_of_the_pools(
    stranger: Any,
) -> None:
    pool = made_pool()

    plan = planned(pool, PoolObserved(now=NOW, in_the_way=(stranger,)))

    assert plan.is_empty
    (problem,) = plan.problems
    assert ModelPoolCondition.REPLICAS_READY == problem.condition
    name = stranger["metadata"]["name"]
    assert f"the {stranger['kind']} {name} of the namespace team" in problem.message
    assert "delete it or give it another name" in problem.message
    # As soon as it is gone.
    assert () == planned(pool, PoolObserved(now=NOW)).problems


def test_a_running_pool_scales_on_when_a_stranger_has_put_its_own_secret_there() -> None:
    pool = made_pool()
    observed = with_applied(PoolObserved(now=NOW), planned(pool))
    observed = replace(observed, access_secret=None, in_the_way=(STRANGERS[0],))

    plan = planned(pool, observed, replicas=5)

    assert ["RayService"] == kinds(plan)
    assert 1 == len(plan.problems)


def test_what_a_deleted_namesake_left_is_waited_for() -> None:
    owner = {"apiVersion": "pointsman.dev/v1alpha1", "kind": "ModelPool", "name": "chat"}
    left = {
        "kind": "RayService",
        "metadata": {"name": "chat", "ownerReferences": [{**owner, "uid": "uid-old"}]},
    }

    plan = planned(made_pool(), PoolObserved(now=NOW, in_the_way=(left,)))

    assert plan.is_empty
    assert "belongs to a deleted ModelPool" in plan.problems[0].message


def test_the_slices_of_a_deleted_pool_are_swept() -> None:
    slices = [
        {"kind": "EndpointSlice", "metadata": {"name": "a", "namespace": "system"}},
        {
            "kind": "EndpointSlice",
            "metadata": {"name": "b", "namespace": "system", "deletionTimestamp": "now"},
        },
    ]

    assert ["endpointslices.discovery.k8s.io system/a"] == [
        str(ref) for ref in plan_gone(slices).delete
    ]


pools = st.builds(
    made_pool,
    engine=st.fixed_dictionaries(
        {
            "maxSequences": st.integers(1, 64),
            "env": st.lists(st.sampled_from(("A", "B", "C")), unique=True).map(
                lambda names: [{"name": name, "value": "1"} for name in names]
            ),
        }
    ),
    rollout=st.fixed_dictionaries(
        {"maxSurge": st.sampled_from((0, 1, "25%")), "drainTimeout": st.sampled_from(("5s", "2m"))}
    ),
    contextTokens=st.integers(1, 4096),
)


@given(pool=pools, replicas=st.integers(0, 9))
def test_the_plan_of_the_applied_state_is_empty(pool: Any, replicas: int) -> None:
    observed = with_applied(PoolObserved(now=NOW), planned(pool, replicas=replicas))

    assert planned(pool, observed, replicas=replicas).is_empty


@given(pool=pools, replicas=st.integers(0, 9))
def test_the_plan_is_the_same_for_the_same_arguments(pool: Any, replicas: int) -> None:
    assert planned(pool, replicas=replicas) == planned(pool, replicas=replicas)


@given(order=st.permutations(range(4)))
def test_the_order_of_the_revisions_makes_no_difference(order: list[int]) -> None:
    observed = PoolObserved(now=NOW)
    for sequences in range(1, 5):
        plan = planned(made_pool(engine={"maxSequences": sequences}), observed)
        observed = with_applied(observed, replace(plan, delete=()))
    pool = made_pool(engine={"maxSequences": 4})
    shuffled = replace(observed, revisions=tuple(observed.revisions[place] for place in order))

    assert planned(pool, observed) == planned(pool, shuffled)


def test_the_plan_is_empty_while_a_rolled_out_pool_runs() -> None:
    _, plan = running(made_pool())

    assert plan.is_empty


def test_a_folder_of_the_node_is_refused_when_kuberay_is_missing_too() -> None:
    source = {"type": "HostPath", "hostPath": {"path": "/models/chat"}}
    pool = made_pool(engine={"type": "VLLM"}, ray_serve={"model": {"source": source}})

    plan = planned(pool, PoolObserved(now=NOW, kuberay_served=False))

    assert ["HostPathNotAllowed", "KubeRayNotInstalled"] == [each.reason for each in plan.problems]
