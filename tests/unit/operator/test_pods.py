from __future__ import annotations

from typing import Any

import pytest

from pointsman_api.modelpool import ModelPool
from pointsman_operator.ray_service import render_spec
from pointsman_operator.settings import OperatorSettings
from tests.unit.operator.scenes import made_pool

SETTINGS = OperatorSettings(
    simulated_image="ray:1", runtime_image="pointsman:1", image_pull_policy="Never"
)


def worker(pool: ModelPool, settings: OperatorSettings = SETTINGS) -> dict[str, Any]:
    config = render_spec(pool, settings)["rayClusterConfig"]
    spec: dict[str, Any] = config["workerGroupSpecs"][0]["template"]["spec"]
    return spec


def head(pool: ModelPool, settings: OperatorSettings = SETTINGS) -> dict[str, Any]:
    config = render_spec(pool, settings)["rayClusterConfig"]
    spec: dict[str, Any] = config["headGroupSpec"]["template"]["spec"]
    return spec


def variables(container: dict[str, Any]) -> dict[str, Any]:
    return {item["name"]: item.get("value", item.get("valueFrom")) for item in container["env"]}


@pytest.mark.parametrize("pod", [worker(made_pool()), head(made_pool())])
def test_our_code_comes_from_an_init_container_and_not_from_the_engines_image(pod: Any) -> None:
    init = pod["initContainers"][0]

    assert "pointsman:1" == init["image"]
    assert "/opt/pointsman" == init["command"][-1]
    assert "ray:1" == pod["containers"][0]["image"]
    assert "/opt/pointsman" == variables(pod["containers"][0])["PYTHONPATH"]
    mounts = {item["mountPath"] for item in pod["containers"][0]["volumeMounts"]}
    assert "/opt/pointsman" in mounts


@pytest.mark.parametrize("pod", [worker(made_pool()), head(made_pool())])
def test_every_replica_listens_on_a_port_of_its_own(pod: Any) -> None:
    assert "1" == variables(pod["containers"][0])["RAY_SERVE_ENABLE_DIRECT_INGRESS"]


def test_the_pods_own_image_is_used_when_the_pool_names_one() -> None:
    pool = made_pool(engine={"image": "mine:2"})

    assert "mine:2" == worker(pool)["containers"][0]["image"]
    assert "mine:2" == head(pool)["containers"][0]["image"]


def test_the_head_has_an_image_of_its_own_when_one_is_set() -> None:
    settings = OperatorSettings(head_image="ray:small")

    assert (
        "ray:small"
        == head(made_pool(engine={"image": "mine:2"}), settings)["containers"][0]["image"]
    )


def test_a_pod_that_goes_has_time_for_its_requests_and_some_more() -> None:
    pool = made_pool(rollout={"drainTimeout": "1m500ms"})

    for pod, options in ((worker(pool), []), (head(pool), ["--head"])):
        hook = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
        assert ["pointsman_serving.engines.drain", *options, "--timeout", "61"] == hook[2:]
        assert 91 == pod["terminationGracePeriodSeconds"]


def test_a_head_goes_at_once_when_its_workers_do_without_it() -> None:
    pod = head(made_pool(), OperatorSettings(redis_address="redis:6379"))

    assert "lifecycle" not in pod["containers"][0]
    assert 10 == pod["terminationGracePeriodSeconds"]
    assert pod["shareProcessNamespace"] is True


def test_a_worker_is_ready_by_its_raylet_when_there_is_no_head_to_ask() -> None:
    probe = worker(made_pool())["containers"][0]["readinessProbe"]

    assert {"port": 52365} == probe["tcpSocket"]
    assert 1 < probe["timeoutSeconds"]


def test_a_replica_gets_its_pools_token() -> None:
    token = variables(worker(made_pool())["containers"][0])["POINTSMAN_REPLICA_TOKEN"]

    assert {"secretKeyRef": {"name": "chat-access", "key": "replica_token"}} == token
    assert "POINTSMAN_REPLICA_TOKEN" not in variables(head(made_pool())["containers"][0])


def test_no_container_may_gain_rights_and_workers_have_no_right_on_the_api() -> None:
    pod = worker(made_pool())

    for container in (*pod["containers"], *pod["initContainers"]):
        assert {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}.items() <= (
            container["securityContext"].items()
        )
    assert pod["automountServiceAccountToken"] is False


def test_the_template_reaches_the_workers_and_its_pull_secrets_the_head_too() -> None:
    template = {
        "spec": {
            "nodeSelector": {"gpu": "h100"},
            "imagePullSecrets": [{"name": "registry"}],
            "containers": [{"name": "engine", "env": [{"name": "A", "value": "1"}]}],
        }
    }
    pool = made_pool(ray_serve={"template": template})

    assert {"gpu": "h100"} == worker(pool)["nodeSelector"]
    assert "1" == variables(worker(pool)["containers"][0])["A"]
    assert "/opt/pointsman" == variables(worker(pool)["containers"][0])["PYTHONPATH"]
    assert "nodeSelector" not in head(pool)
    assert [{"name": "registry"}] == head(pool)["imagePullSecrets"]


def test_the_pods_of_the_replicas_are_those_that_the_selector_takes() -> None:
    config = render_spec(made_pool(), SETTINGS)["rayClusterConfig"]
    replica = config["workerGroupSpecs"][0]["template"]["metadata"]["labels"]
    controller = config["headGroupSpec"]["template"]["metadata"]["labels"]

    assert ("chat", "replica") == (
        replica["pointsman.dev/pool"],
        replica["app.kubernetes.io/component"],
    )
    assert "replica" != controller["app.kubernetes.io/component"]


def test_other_tolerations_are_other_pods_though_kuberay_does_not_compare_them() -> None:
    def annotations(tolerations: list[dict[str, str]]) -> Any:
        template = {"spec": {"tolerations": tolerations}}
        config = render_spec(made_pool(ray_serve={"template": template}), SETTINGS)
        group = config["rayClusterConfig"]["workerGroupSpecs"][0]
        return group["template"]["metadata"].get("annotations")

    one = annotations([{"key": "gpu", "operator": "Exists"}])

    assert None is annotations([])
    assert one == annotations([{"operator": "Exists", "key": "gpu"}])
    assert one != annotations([{"key": "tpu", "operator": "Exists"}])
