from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointsman_api.conditions import Reason
from pointsman_operator.causes import Cause, find_cause, last_exception
from tests.unit.operator.scenes import ray_cluster, reading_of, serve_document, worker_pod

TRACEBACK = """\
Deploying app 'chat' failed with exception:
Traceback (most recent call last):
  File "/opt/ray/serve.py", line 1, in build
    raise ValueError("x")
ValueError: max_model_len 9 is larger than 8
The deployment failed to start 3 times in a row.
"""


def waiting(
    reason: str, message: str = "", *, last: Any = None, kind: str = "containerStatuses"
) -> Any:
    container: dict[str, Any] = {
        "name": "engine",
        "image": "engine:1",
        "state": {"waiting": {"reason": reason, "message": message}},
    }
    if last is not None:
        container["lastState"] = {"terminated": last}
    return worker_pod("pod-0", "10.0.0.1", status={kind: [container]})


def ended(**terminated: Any) -> Any:
    container = {"name": "engine", "state": {"terminated": terminated}}
    return worker_pod("pod-0", "10.0.0.1", status={"containerStatuses": [container]})


def unschedulable(name: str = "pod-9") -> Any:
    condition = {
        "type": "PodScheduled",
        "status": "False",
        "reason": "Unschedulable",
        "message": "0/3 nodes are available: 3 Insufficient nvidia.com/gpu.",
    }
    return worker_pod(name, "", status={"conditions": [condition]})


def failed(message: str, *, status: str = "DEPLOY_FAILED") -> Any:
    return reading_of(serve_document({}, status=status, message=message))


def cause_of(*pods: Any, readings: Any = (), lines: Any = None) -> Cause:
    cause = find_cause(pods, readings, last_log_lines=lines)
    assert cause is not None
    return cause


def test_nothing_is_wrong_when_pods_run_and_ray_is_content() -> None:
    reading = reading_of(serve_document({"a": ("10.0.0.1", 30000)}))

    assert None is find_cause([worker_pod("pod-0", "10.0.0.1")], [reading])


@pytest.mark.pain_16
def test_the_schedulers_words_are_told() -> None:
    cause = cause_of(unschedulable())

    assert Reason.UNSCHEDULABLE == cause.reason
    assert "3 Insufficient nvidia.com/gpu" in cause.message


def head(pod: Any) -> Any:
    pod["metadata"]["labels"]["ray.io/node-type"] = "head"
    return pod


def test_the_operators_own_settings_are_named_when_it_is_the_head_that_does_not_fit() -> None:
    for pod, ours, theirs in (
        (unschedulable(), "operator.rayHead", "container engine"),
        (ended(reason="OOMKilled", exitCode=137), "operator.rayHead.memoryLimit", "contextTokens"),
        (waiting("ErrImagePull"), "operator.rayHead.image", "no such setting"),
    ):
        assert ours not in cause_of(pod).message
        assert ours in cause_of(head(pod)).message
        assert theirs not in cause_of(head(pod)).message


def refused_by_kuberay(said: str, *, reason: str = "FailedCreateWorkerPod") -> Any:
    condition = {
        "type": "ReplicaFailure",
        "status": "True",
        "reason": reason,
        "message": f"{reason}\n{said}",
    }
    return {**ray_cluster("chat-x1"), "status": {"conditions": [condition]}}


def refusal_of(cluster: Any) -> Cause:
    cause = find_cause([], [], clusters=[cluster])
    assert cause is not None
    assert Reason.PODS_NOT_CREATED == cause.reason
    return cause


@pytest.mark.pain_16
@pytest.mark.parametrize(
    ("said", "step"),
    [
        (
            (
                'pods "chat-x1-worker-abcde" is forbidden: exceeded quota: team, '
                "requested: pods=1, used: pods=4, limited: pods=4"
            ),
            "raise the ResourceQuota of the namespace team",
        ),
        (
            (
                'pods "chat-x1-worker-abcde" is forbidden: maximum memory usage per '
                "Container is 1Gi, but limit is 8Gi"
            ),
            "change the LimitRange of the namespace team",
        ),
        (
            (
                'pods "chat-x1-worker-abcde" is forbidden: violates PodSecurity '
                '"restricted:latest": allowPrivilegeEscalation != false'
            ),
            "pod-security.kubernetes.io/enforce",
        ),
        (
            'admission webhook "policy.example.com" denied the request: no team label',
            "ask those who run this admission check",
        ),
        ("something else", "kubectl describe raycluster chat-x1 -n team"),
    ],
)
def test_a_pod_that_cannot_be_made_is_told_with_the_servers_words_and_the_next_step(
    said: str, step: str
) -> None:
    cause = refusal_of(refused_by_kuberay(said))

    assert "a worker pod of the RayCluster chat-x1" in cause.message
    assert said.rpartition("forbidden: ")[2] in cause.message
    assert step in cause.message
    # Each try has another name, and the condition must stay the same.
    assert "abcde" not in cause.message


def test_the_heads_settings_are_named_when_it_is_the_head_that_cannot_be_made() -> None:
    cause = refusal_of(refused_by_kuberay("exceeded quota", reason="FailedCreateHeadPod"))

    assert "the head pod of the RayCluster" in cause.message
    assert "operator.rayHead" in cause.message


def test_nothing_is_wrong_when_a_pod_cannot_be_deleted_or_its_cluster_goes() -> None:
    kept = refused_by_kuberay("no", reason="FailedDeleteWorkerPod")
    going = refused_by_kuberay("exceeded quota")
    going["metadata"]["deletionTimestamp"] = "2026-11-01T00:00:00Z"
    ready = {"status": {"conditions": [{"type": "Ready", "reason": "Initializing"}]}}

    assert None is find_cause([], [], clusters=[kept, going], service=ready)


def test_what_kuberay_does_not_take_is_told_in_its_words() -> None:
    condition = {
        "type": "Ready",
        "status": "False",
        "reason": "ValidationFailed",
        "message": "the name is too long",
    }
    service = {"metadata": {"name": "chat"}, "status": {"conditions": [condition]}}

    cause = find_cause([], [], service=service)

    assert cause is not None
    assert Reason.DEPLOYMENT_FAILED == cause.reason
    assert "the name is too long" in cause.message


@pytest.mark.parametrize("reason", ["ErrImagePull", "ImagePullBackOff", "InvalidImageName"])
@pytest.mark.parametrize("kind", ["containerStatuses", "initContainerStatuses"])
def test_an_image_that_cannot_be_pulled_is_named(reason: str, kind: str) -> None:
    cause = cause_of(waiting(reason, "no such tag", kind=kind))

    assert Reason.IMAGE_PULL_FAILED == cause.reason
    assert "engine:1" in cause.message
    assert "no such tag" in cause.message


def test_a_secret_that_a_container_needs_is_named() -> None:
    cause = cause_of(waiting("CreateContainerConfigError", 'secret "hf" not found'))

    assert Reason.SECRET_NOT_FOUND == cause.reason
    assert 'secret "hf" not found' in cause.message


@pytest.mark.parametrize(
    "pod",
    [
        ended(reason="OOMKilled", exitCode=137),
        waiting("CrashLoopBackOff", last={"reason": "OOMKilled", "exitCode": 137}),
    ],
)
def test_a_container_that_took_too_much_memory_says_so(pod: Any) -> None:
    assert Reason.OUT_OF_MEMORY == cause_of(pod).reason
    assert "resources.limits.memory" in cause_of(pod).message


def test_a_crash_is_told_with_the_last_line_of_its_message() -> None:
    pod = waiting("CrashLoopBackOff", last={"exitCode": 1, "message": "a\nCUDA error 35\n\n"})

    assert Reason.CRASH_LOOP == cause_of(pod).reason
    assert "CUDA error 35" in cause_of(pod).message
    assert "kubectl logs pod-0 -c engine --previous" in cause_of(pod).message


def test_a_crash_is_told_with_the_last_line_of_its_log_when_it_left_no_message() -> None:
    pod = ended(reason="Error", exitCode=1)

    assert "no module ray" in cause_of(pod, lines={"pod-0": "no module ray"}).message


@pytest.mark.parametrize(
    "pod",
    [
        ended(reason="Completed", exitCode=0),
        waiting("PodInitializing"),
        worker_pod(
            "pod-0",
            "10.0.0.1",
            going=True,
            status={"containerStatuses": [{"state": {"terminated": {"exitCode": 1}}}]},
        ),
        worker_pod(
            "pod-0",
            "10.0.0.1",
            status={
                "containerStatuses": [
                    {"state": {"running": {}}, "lastState": {"terminated": {"exitCode": 1}}}
                ]
            },
        ),
    ],
)
def test_a_container_that_starts_ends_well_or_runs_again_is_no_cause(pod: Any) -> None:
    assert None is find_cause([pod], [])


def test_rays_last_exception_is_told() -> None:
    cause = cause_of(readings=[failed(TRACEBACK)])

    assert Reason.DEPLOYMENT_FAILED == cause.reason
    assert "ValueError: max_model_len 9 is larger than 8" in cause.message
    assert "Traceback" not in cause.message


def test_a_replica_that_ray_replaces_is_no_deployment_that_failed() -> None:
    document = serve_document(
        {"a": ("10.0.0.1", 30000)}, status="UNHEALTHY", message="A replica's health check failed."
    )

    cause = cause_of(readings=[reading_of(document)])

    assert Reason.REPLICAS_NOT_READY == cause.reason
    assert "replaces a replica that failed: A replica's health check failed;" in cause.message


@pytest.mark.parametrize(
    "said",
    [
        "huggingface_hub.errors.RepositoryNotFoundError: 401 Client Error",
        "OSError: org/name is not a valid model identifier",
        "OSError: /models/a does not appear to have a file named config.json",
    ],
)
def test_a_model_that_is_not_there_is_told_as_such(said: str) -> None:
    assert Reason.MODEL_NOT_FOUND == cause_of(readings=[failed(f"Traceback\n{said}\n")]).reason


def test_what_ray_says_while_it_deploys_is_no_cause() -> None:
    assert None is find_cause([], [failed("Deploying", status="DEPLOYING")])


def test_the_pods_trouble_comes_before_rays_and_both_before_the_scheduler() -> None:
    crash, deploy = ended(reason="OOMKilled", exitCode=137), failed(TRACEBACK)

    first = cause_of(unschedulable(), crash, readings=[deploy])
    second = cause_of(unschedulable(), readings=[deploy])

    assert Reason.OUT_OF_MEMORY == first.reason
    assert Reason.DEPLOYMENT_FAILED == second.reason


def test_a_long_message_is_cut() -> None:
    assert 1000 > len(cause_of(readings=[failed("ValueError: " + "x" * 9000)]).message)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", ""),
        ("one\ntwo\n\n", "two"),
        ("a.b.SomeError: why\nmore", "a.b.SomeError: why"),
        ("RayTaskError(ValueError): x\n  File y", "RayTaskError(ValueError): x"),
    ],
)
def test_the_last_exception_is_found(text: str, line: str) -> None:
    assert line == last_exception(text)


@given(order=st.permutations(range(4)))
def test_the_order_of_the_pods_makes_no_difference(order: list[int]) -> None:
    pods = [
        unschedulable("a"),
        unschedulable("b"),
        ended(reason="Error", exitCode=1),
        worker_pod("c", "10.0.0.3"),
    ]

    assert find_cause(pods, []) == find_cause([pods[n] for n in order], [])
