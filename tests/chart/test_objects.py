"""What the chart installs, for the values that people install it with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from charts.tools.generate import CHART
from tests.chart.chart import (
    WORKLOADS,
    Object,
    container,
    environment,
    helm,
    kinds,
    one,
    pod_template,
    pods,
    render,
    selects,
)
from tests.chart.schemas import faults
from tests.chart.value_sets import PRODUCTION, QUICKSTART, SECOND_GATEWAY, VALUE_SETS

EVERY_SET = pytest.mark.parametrize("values", VALUE_SETS.values(), ids=VALUE_SETS.keys())


@EVERY_SET
@pytest.mark.parametrize("kubernetes", ["1.29", "1.34", "1.37"])
def test_objects_fit_the_schemas_of_kubernetes(values: dict[str, Any], kubernetes: str) -> None:
    assert [] == faults(render(values), kubernetes)


def test_schemas_find_a_fault_when_there_is_one() -> None:
    deployment = one(render(), "Deployment", "gateway")
    container(deployment)["imagePolicy"] = "Always"
    assert ["imagePolicy" in each for each in faults([deployment], "1.34")] == [True]


@EVERY_SET
def test_lint_finds_nothing(values: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "values.json"
    file.write_text(json.dumps(values))
    assert "0 chart(s) failed" in helm("lint", "--strict", CHART, f"--values={file}")


def test_defaults_install_an_operator_and_a_gateway() -> None:
    assert [
        "ClusterRole/operator",
        "ClusterRoleBinding/operator",
        "CustomResourceDefinition/crds",
        "CustomResourceDefinition/crds",
        "Deployment/gateway",
        "Deployment/operator",
        "NetworkPolicy/gateway",
        "NetworkPolicy/operator",
        "Pod/test",
        "PodDisruptionBudget/gateway",
        "PodDisruptionBudget/operator",
        "Role/gateway",
        "Role/operator",
        "RoleBinding/gateway",
        "RoleBinding/operator",
        "Service/gateway",
        "Service/gateway",
        "Service/operator",
        "ServiceAccount/gateway",
        "ServiceAccount/operator",
    ] == kinds(render())


def test_everything_on_adds_the_optional_objects() -> None:
    added = set(kinds(render(PRODUCTION))) - set(kinds(render()))
    assert {
        "HTTPRoute/gateway",
        "HorizontalPodAutoscaler/gateway",
        "Ingress/gateway",
        "NetworkPolicy/redis",
        "Service/redis",
        "ServiceMonitor/gateway",
        "ServiceMonitor/operator",
        "StatefulSet/redis",
    } == added


def test_a_second_gateway_brings_nothing_of_the_operator() -> None:
    assert {"gateway", "test"} == {each.partition("/")[2] for each in kinds(render(SECOND_GATEWAY))}


@EVERY_SET
def test_containers_are_as_restricted_as_pod_security_asks(values: dict[str, Any]) -> None:
    for pod in pods(render(values)):
        security = pod["spec"]["securityContext"]
        assert security["runAsNonRoot"] is True
        assert {"type": "RuntimeDefault"} == security["seccompProfile"]
        assert "hostNetwork" not in pod["spec"]
        assert not [each for each in pod["spec"].get("volumes", []) if "hostPath" in each]
        for each in pod["spec"]["containers"] + pod["spec"].get("initContainers", []):
            assert {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            } == each["securityContext"]
            assert {"cpu", "memory"} == set(each["resources"]["requests"])
            assert "memory" in each["resources"]["limits"]


@EVERY_SET
def test_only_pods_that_call_the_api_hold_a_token(values: dict[str, Any]) -> None:
    for each in render(values):
        if each["kind"] in WORKLOADS:
            component = each["metadata"]["labels"]["app.kubernetes.io/component"]
            spec = pod_template(each)["spec"]
            assert (component in ("operator", "gateway")) == spec["automountServiceAccountToken"]


@EVERY_SET
def test_selectors_find_the_pods_of_one_component(values: dict[str, Any]) -> None:
    objects = render(values)
    labels = {
        each["metadata"]["labels"]["app.kubernetes.io/component"]: pod_template(each)["metadata"][
            "labels"
        ]
        for each in objects
        if each["kind"] in WORKLOADS
    }
    for each in objects:
        spec = each.get("spec", {})
        selector = {
            "Service": lambda spec: spec["selector"],
            "Deployment": lambda spec: spec["selector"]["matchLabels"],
            "StatefulSet": lambda spec: spec["selector"]["matchLabels"],
            "PodDisruptionBudget": lambda spec: spec["selector"]["matchLabels"],
            "NetworkPolicy": lambda spec: spec["podSelector"]["matchLabels"],
        }.get(each["kind"])
        if selector is not None:
            own = each["metadata"]["labels"]["app.kubernetes.io/component"]
            assert [own] == [name for name in labels if selects(selector(spec), labels[name])]


@EVERY_SET
def test_ports_of_services_and_policies_are_those_of_containers(values: dict[str, Any]) -> None:
    objects = render(values)
    for each in objects:
        if each["kind"] == "Service":
            component = each["metadata"]["labels"]["app.kubernetes.io/component"]
            kind = "StatefulSet" if component == "redis" else "Deployment"
            named = {port["name"] for port in container(one(objects, kind, component))["ports"]}
            assert {port["targetPort"] for port in each["spec"]["ports"]} <= named


@pytest.mark.parametrize("component", ["operator", "gateway"])
def test_probes_ask_the_admin_port(component: str) -> None:
    found = container(one(render(), "Deployment", component))
    assert {
        "startupProbe": "/healthz",
        "livenessProbe": "/healthz",
        "readinessProbe": "/readyz",
    } == {name: probe["httpGet"]["path"] for name, probe in found.items() if name.endswith("Probe")}
    ports = {each["name"]: each["containerPort"] for each in found["ports"]}
    assert 9090 == ports["admin"]
    assert {"admin"} == {
        probe["httpGet"]["port"] for name, probe in found.items() if name.endswith("Probe")
    }


def test_a_gateway_has_time_to_drain_when_it_is_told_to_end() -> None:
    deployment = one(
        render({"gateway": {"lameDuckSeconds": 7, "drainSeconds": 90}}), "Deployment", "gateway"
    )
    assert 7 + 90 < pod_template(deployment)["spec"]["terminationGracePeriodSeconds"]


def test_a_gateway_goes_after_its_successor_serves() -> None:
    strategy = one(render(), "Deployment", "gateway")["spec"]["strategy"]
    assert {"maxUnavailable": 0, "maxSurge": 1} == strategy["rollingUpdate"]


def test_the_autoscaler_alone_sets_the_number_of_gateways_when_it_is_on() -> None:
    objects = render(PRODUCTION)
    deployment = one(objects, "Deployment", "gateway")
    autoscaler = one(objects, "HorizontalPodAutoscaler", "gateway")
    assert "replicas" not in deployment["spec"]
    assert deployment["metadata"]["name"] == autoscaler["spec"]["scaleTargetRef"]["name"]


def test_pods_keep_their_labels_when_the_chart_gets_a_new_version() -> None:
    for pod in pods(render()):
        if pod.get("kind") != "Pod":
            assert "0.1.0" not in str(pod["metadata"]["labels"])


def test_labels_of_the_chart_win_when_values_name_them_too() -> None:
    taken = {"app.kubernetes.io/name": "mine", "pointsman.dev/gateway": "mine", "team": "serving"}
    deployment = one(
        render({"commonLabels": taken, "gateway": {"podLabels": taken}}), "Deployment", "gateway"
    )
    for labels in (
        deployment["metadata"]["labels"],
        pod_template(deployment)["metadata"]["labels"],
    ):
        assert ("pointsman", "default", "serving") == (
            labels["app.kubernetes.io/name"],
            labels["pointsman.dev/gateway"],
            labels["team"],
        )


def test_every_object_is_labelled_as_the_releases_own() -> None:
    for each in render(PRODUCTION):
        labels = each["metadata"]["labels"]
        assert ("pointsman", "pointsman", "Helm", "pointsman", "serving") == (
            labels["app.kubernetes.io/name"],
            labels["app.kubernetes.io/instance"],
            labels["app.kubernetes.io/managed-by"],
            labels["app.kubernetes.io/part-of"],
            labels["team"],
        )


LONG = "a-very-long-name-that-people-give-to-their-releases-x"


@pytest.mark.parametrize("release", ["pointsman", "p", LONG, "pointsman-" + "9" * 43])
def test_names_are_short_enough_when_the_release_has_a_long_one(release: str) -> None:
    assert len(release) <= 53
    for each in render(PRODUCTION, release=release, namespace="n" * 63):
        name = each["metadata"]["name"]
        if each["kind"] != "CustomResourceDefinition":
            assert len(name) <= 63
        if each["kind"] == "StatefulSet":
            # The label controller-revision-hash has the name and a hash.
            assert len(name) <= 52
        assert all(len(value) <= 63 for value in each["metadata"]["labels"].values())


def _identities(objects: list[Object]) -> set[tuple[str, str, str]]:
    return {
        (each["kind"], each["metadata"].get("namespace", ""), each["metadata"]["name"])
        for each in objects
        if each["kind"] != "CustomResourceDefinition"
    }


@pytest.mark.parametrize(
    ("one_release", "other_release"),
    [
        (("pointsman", "east"), ("pointsman", "west")),
        (("llm", "east"), ("chat", "east")),
        ((LONG, "east"), (LONG[:-1] + "y", "east")),
        (("pointsman", "n" * 62 + "x"), ("pointsman", "n" * 62 + "y")),
    ],
)
def test_releases_do_not_meet_when_name_or_namespace_differ(
    one_release: tuple[str, str], other_release: tuple[str, str]
) -> None:
    first, second = (
        _identities(render(PRODUCTION, release=release, namespace=namespace))
        for release, namespace in (one_release, other_release)
    )
    assert set() == first & second


def test_cluster_wide_objects_have_no_namespace() -> None:
    wide = {"ClusterRole", "ClusterRoleBinding", "CustomResourceDefinition"}
    for each in render(PRODUCTION):
        assert (each["kind"] in wide) == ("namespace" not in each["metadata"])


def test_images_are_pinned_by_digest_when_one_is_given() -> None:
    objects = render({"image": {"registry": "r.example.com/t/", "digest": "sha256:" + "a" * 64}})
    expected = "r.example.com/t/pointsman@sha256:" + "a" * 64
    assert {expected} == {container(each)["image"] for each in objects if each["kind"] in WORKLOADS}
    operator = environment(one(objects, "Deployment", "operator"))
    assert expected == operator["POINTSMAN_OPERATOR_RUNTIME_IMAGE"]


def test_the_operator_knows_every_gateway_of_its_namespace() -> None:
    values = {"gateway": {"name": "public"}, "operator": {"extraGateways": ["internal", "public"]}}
    variables = environment(one(render(values), "Deployment", "operator"))
    assert "public,internal" == variables["POINTSMAN_OPERATOR_GATEWAYS"]


def test_host_folders_are_forbidden_unless_asked_for() -> None:
    def allowed(values: dict[str, Any]) -> object:
        deployment = one(render(values), "Deployment", "operator")
        return environment(deployment)["POINTSMAN_OPERATOR_ALLOW_HOST_PATH"]

    assert ("false", "true") == (allowed({}), allowed(QUICKSTART))


def test_secrets_that_the_operator_and_redis_read_are_one() -> None:
    objects = render({"redis": {"enabled": True}})
    secret = one(objects, "Secret", "redis")["metadata"]["name"]
    operator = environment(one(objects, "Deployment", "operator"))
    redis = environment(one(objects, "StatefulSet", "redis"))
    reference = {"secretKeyRef": {"name": secret, "key": "password"}}
    assert reference == operator["POINTSMAN_OPERATOR_REDIS_PASSWORD"] == redis["REDIS_PASSWORD"]
    service = one(objects, "Service", "redis")["metadata"]
    assert (
        f"{service['name']}.{service['namespace']}.svc:6379"
        == operator["POINTSMAN_OPERATOR_REDIS_ADDRESS"]
    )
