"""What users see of ModelPools and RoutePolicies through kubectl."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from pointsman_api.meta import GROUP, VERSION
from tests.cluster.cluster import MERGE_PATCH, Cluster, KubectlError
from tests.contract.samples import EXTERNAL, policy_document, pool_document, rule_document

if TYPE_CHECKING:
    from collections.abc import Callable

READY = {
    "type": "Ready",
    "status": "True",
    "reason": "ReplicasReady",
    "message": "2 of 2 replicas serve.",
    "lastTransitionTime": "2026-11-28T10:00:00Z",
    "observedGeneration": 1,
}


@pytest.fixture
def kubectl(api_server: Cluster, namespace: str) -> Callable[..., str]:
    """kubectl in the test's namespace."""

    def run(*arguments: str, **options: Any) -> str:
        return api_server.kubectl(f"--namespace={namespace}", *arguments, **options)

    return run


def without_namespace(document: dict[str, Any]) -> dict[str, Any]:
    return {**document, "metadata": {"name": document["metadata"]["name"]}}


def apply(kubectl: Callable[..., str], *documents: dict[str, Any]) -> None:
    for document in documents:
        kubectl("apply", "--filename=-", stdin=without_namespace(document))


def set_status(server: Cluster, namespace: str, plural: str, name: str, **status: Any) -> None:
    path = f"/apis/{GROUP}/{VERSION}/namespaces/{namespace}/{plural}/{name}/status"
    reply = server.request("PATCH", path, {"status": status}, content_type=MERGE_PATCH)
    assert 200 == reply.status, reply.body


def test_get_shows_the_truth_in_columns_when_short_names_are_used(
    api_server: Cluster, namespace: str, kubectl: Callable[..., str]
) -> None:
    apply(kubectl, pool_document("qwen", replicas=2), policy_document("route"))
    set_status(
        api_server,
        namespace,
        "modelpools",
        "qwen",
        readyReplicas=2,
        updatedReplicas=1,
        conditions=[READY],
    )
    table = kubectl("get", "mp,rp").split("\n\n")
    pools, policies = ([line.split() for line in part.splitlines() if line] for part in table)
    assert ["NAME", "READY", "REPLICAS", "UPDATED", "MODEL", "REASON", "AGE"] == pools[0]
    assert ["modelpool.pointsman.dev/qwen", "True", "2", "1", "qwen", "ReplicasReady"] == pools[1][
        :6
    ]
    assert ["NAME", "READY", "MODELS", "GATEWAY", "REASON", "AGE"] == policies[0]
    # Nobody has said anything of it yet: Ready and Reason stay empty.
    assert ["routepolicy.pointsman.dev/route", '["assistant"]', "default"] == policies[1][:3]


def test_get_finds_both_kinds_when_their_category_is_asked_for(
    kubectl: Callable[..., str],
) -> None:
    apply(kubectl, pool_document("a"), policy_document("b"))
    names = kubectl("get", "pointsman", "--output=name").split()
    assert ["modelpool.pointsman.dev/a", "routepolicy.pointsman.dev/b"] == names


def test_scale_sets_the_replicas_when_the_pool_runs_them(
    api_server: Cluster, namespace: str, kubectl: Callable[..., str]
) -> None:
    apply(kubectl, pool_document("x", replicas=1))
    kubectl("scale", "mp/x", "--replicas=3")
    assert "3" == kubectl("get", "mp/x", "--output=jsonpath={.spec.replicas}")
    set_status(api_server, namespace, "modelpools", "x", replicas=2, selector="app=x")
    path = f"/apis/{GROUP}/{VERSION}/namespaces/{namespace}/modelpools/x/scale"
    scale = api_server.request("GET", path).body
    assert ({"replicas": 3}, {"replicas": 2, "selector": "app=x"}) == (
        scale["spec"],
        scale["status"],
    )


def test_scale_is_refused_when_autoscaling_owns_the_number(kubectl: Callable[..., str]) -> None:
    apply(kubectl, pool_document("x", autoscaling={"maxReplicas": 4}))
    with pytest.raises(KubectlError, match="replicas must not be set together with autoscaling"):
        kubectl("scale", "mp/x", "--replicas=3")


def test_scale_is_refused_when_the_number_is_out_of_bounds(kubectl: Callable[..., str]) -> None:
    apply(kubectl, pool_document("x", replicas=1))
    with pytest.raises(KubectlError, match=r"spec\.replicas"):
        kubectl("scale", "mp/x", "--replicas=1000000")


def test_status_and_spec_are_written_apart_when_both_are_sent(
    api_server: Cluster, namespace: str, kubectl: Callable[..., str]
) -> None:
    apply(kubectl, {**pool_document("x", replicas=1), "status": {"readyReplicas": 5}})
    assert "" == kubectl("get", "mp/x", "--output=jsonpath={.status}")
    path = f"/apis/{GROUP}/{VERSION}/namespaces/{namespace}/modelpools/x/status"
    change = {"spec": {"replicas": 9}, "status": {"readyReplicas": 1}}
    stored = api_server.request("PATCH", path, change, content_type=MERGE_PATCH).body
    assert (1, 1) == (stored["spec"]["replicas"], stored["status"]["readyReplicas"])
    # A status is no new generation: observedGeneration would never catch up.
    assert 1 == stored["metadata"]["generation"]


def test_defaults_are_stored_when_fields_are_absent(kubectl: Callable[..., str]) -> None:
    apply(kubectl, pool_document("x", rollout={}), policy_document("y"))
    assert "600s" == kubectl("get", "mp/x", "--output=jsonpath={.spec.rollout.drainTimeout}")
    assert "64" == kubectl(
        "get", "mp/x", "--output=jsonpath={.spec.backend.rayServe.engine.maxSequences}"
    )
    assert "default" == kubectl("get", "rp/y", "--output=jsonpath={.spec.gatewayRef.name}")


def test_unknown_field_is_named_when_validation_is_strict(kubectl: Callable[..., str]) -> None:
    document = without_namespace(pool_document("x", replica=2))
    with pytest.raises(KubectlError, match=r'unknown field "spec\.replica"'):
        kubectl("apply", "--validate=strict", "--filename=-", stdin=document)


def test_unknown_field_is_pruned_and_told_when_validation_only_warns(
    kubectl: Callable[..., str],
) -> None:
    document = without_namespace(pool_document("x", replica=2))
    said = kubectl("apply", "--validate=warn", "--filename=-", stdin=document, check=False)
    assert 'unknown field "spec.replica"' in said
    assert "" == kubectl("get", "mp/x", "--output=jsonpath={.spec.replica}")


def test_pod_template_keeps_what_only_pods_know_when_stored(kubectl: Callable[..., str]) -> None:
    backend = pool_document()["spec"]["backend"]
    template = {"spec": {"nodeSelector": {"disk": "fast"}, "runtimeClassName": "nvidia"}}
    backend = {**backend, "rayServe": {**backend["rayServe"], "template": template}}
    apply(kubectl, pool_document("x", backend=backend))
    path = "{.spec.backend.rayServe.template.spec.nodeSelector.disk}"
    assert "fast" == kubectl("get", "mp/x", f"--output=jsonpath={path}")


def test_a_bad_edit_changes_nothing_when_refused(kubectl: Callable[..., str]) -> None:
    apply(kubectl, pool_document("x", replicas=2))
    before = kubectl("get", "mp/x", "--output=json")
    with pytest.raises(KubectlError, match="servedModelName is immutable"):
        apply(kubectl, pool_document("x", servedModelName="other", replicas=5))
    assert before == kubectl("get", "mp/x", "--output=json")


def test_other_manager_of_the_same_field_is_told_when_applied_server_side(
    kubectl: Callable[..., str],
) -> None:
    pool = without_namespace(pool_document("x", replicas=2))
    kubectl("apply", "--server-side", "--field-manager=one", "--filename=-", stdin=pool)
    pool["spec"]["replicas"] = 3
    with pytest.raises(KubectlError, match=r"conflict with \"one\".*\n?.*\.spec\.replicas"):
        kubectl("apply", "--server-side", "--field-manager=two", "--filename=-", stdin=pool)


def test_rules_of_two_managers_are_merged_by_name_when_applied_server_side(
    kubectl: Callable[..., str],
) -> None:
    policy = without_namespace(policy_document("x", rule_document("a", name="one")))
    kubectl("apply", "--server-side", "--field-manager=one", "--filename=-", stdin=policy)
    policy = without_namespace(policy_document("x", rule_document("b", name="two")))
    kubectl("apply", "--server-side", "--field-manager=two", "--filename=-", stdin=policy)
    assert "one two" == kubectl("get", "rp/x", "--output=jsonpath={.spec.rules[*].name}")


@pytest.mark.parametrize(
    "path",
    [
        "modelpools",
        "mp.spec.backend.rayServe.engine",
        "mp.spec.autoscaling",
        "mp.status.conditions",
        "rp.spec.rules.strategy.fused",
        "rp.spec.rules.resilience",
    ],
)
def test_explain_describes_every_field_when_asked(kubectl: Callable[..., str], path: str) -> None:
    text = kubectl("explain", path)
    assert "<no description>" not in text
    assert f"GROUP:      {GROUP}" in text


def test_external_pool_cannot_be_scaled_when_somebody_tries(kubectl: Callable[..., str]) -> None:
    apply(kubectl, pool_document("x", backend=EXTERNAL))
    with pytest.raises(KubectlError, match=r"only when backend\.type is RayServe"):
        kubectl("scale", "mp/x", "--replicas=3")
