"""The chart on a real API server, which checks every object: no pods run here."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from charts.tools.generate import CHART
from tests.chart.chart import helm, merged, render
from tests.chart.value_sets import PRODUCTION
from tests.cluster.api_server import ApiServer
from tests.cluster.fixtures import KUBECONFIG_VARIABLE

RELEASE = "llm"

# Kinds of others, which this server does not have.
ALONE: dict[str, Any] = merged(
    PRODUCTION,
    {
        "gateway": {"httpRoute": {"enabled": False}},
        "serviceMonitor": {"enabled": False},
        "redis": {"auth": {"existingSecret": ""}},
    },
)

PLURALS = {
    "ClusterRole": "/apis/rbac.authorization.k8s.io/v1/{n}clusterroles",
    "ClusterRoleBinding": "/apis/rbac.authorization.k8s.io/v1/{n}clusterrolebindings",
    "CustomResourceDefinition": "/apis/apiextensions.k8s.io/v1/{n}customresourcedefinitions",
    "Deployment": "/apis/apps/v1/{n}deployments",
    "StatefulSet": "/apis/apps/v1/{n}statefulsets",
    "HorizontalPodAutoscaler": "/apis/autoscaling/v2/{n}horizontalpodautoscalers",
    "Ingress": "/apis/networking.k8s.io/v1/{n}ingresses",
    "NetworkPolicy": "/apis/networking.k8s.io/v1/{n}networkpolicies",
    "PodDisruptionBudget": "/apis/policy/v1/{n}poddisruptionbudgets",
    "Role": "/apis/rbac.authorization.k8s.io/v1/{n}roles",
    "RoleBinding": "/apis/rbac.authorization.k8s.io/v1/{n}rolebindings",
    "Secret": "/api/v1/{n}secrets",
    "Service": "/api/v1/{n}services",
    "ServiceAccount": "/api/v1/{n}serviceaccounts",
}


@pytest.fixture(scope="module")
def api_server() -> Iterator[ApiServer]:
    """A server of its own: the chart brings the CRDs, and deletes them."""
    if KUBECONFIG_VARIABLE in os.environ:
        pytest.skip(f"these tests delete CRDs: not on the cluster of {KUBECONFIG_VARIABLE}")
    with ApiServer() as started:
        yield started


class Release:
    """The chart in a namespace of its own, through the real helm."""

    def __init__(self, server: ApiServer, folder: Path) -> None:
        self.server = server
        self.namespace = f"chart-{uuid.uuid4().hex[:8]}"
        self._folder = folder
        server.create_namespace(self.namespace)

    def helm(self, *arguments: str | Path, values: dict[str, Any] | None = None) -> str:
        given: list[str | Path] = list(arguments)
        if values is not None:
            file = self._folder / "values.json"
            file.write_text(json.dumps(values), encoding="utf-8")
            given.append(f"--values={file}")
        where = [f"--kubeconfig={self.server.kubeconfig}", f"--namespace={self.namespace}"]
        return helm(*given, *where)

    def found(self) -> set[str]:
        """What carries the release's label: kind and name."""
        return {
            f"{kind}/{each['metadata']['name']}"
            for kind, path in PLURALS.items()
            for each in self.server.request("GET", path.format(n="")).body["items"]
            if each["metadata"].get("labels", {}).get("app.kubernetes.io/instance") == RELEASE
            and each["metadata"].get("namespace", self.namespace) == self.namespace
        }

    def get(self, kind: str, name: str) -> dict[str, Any]:
        path = PLURALS[kind].format(n=f"namespaces/{self.namespace}/")
        body: dict[str, Any] = self.server.request("GET", f"{path}/{name}").body
        return body


@pytest.fixture
def release(api_server: ApiServer, tmp_path: Path) -> Iterator[Release]:
    made = Release(api_server, tmp_path)
    yield made
    made.helm("uninstall", RELEASE, "--ignore-not-found")
    for each in made.found() & CRDS:
        api_server.kubectl("delete", "crd", each.partition("/")[2])


CRDS = {
    "CustomResourceDefinition/modelpools.pointsman.dev",
    "CustomResourceDefinition/routepolicies.pointsman.dev",
}


MODELPOOLS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/modelpools.pointsman.dev"


def expected(values: dict[str, Any], namespace: str) -> set[str]:
    """What is rendered, but for hooks."""
    return {
        f"{each['kind']}/{each['metadata']['name']}"
        for each in render(values, release=RELEASE, namespace=namespace)
        if "helm.sh/hook" not in each["metadata"].get("annotations", {})
    }


@pytest.mark.slow
def test_install_makes_every_object_and_uninstall_leaves_the_crds_alone(release: Release) -> None:
    release.helm("install", RELEASE, CHART, values=ALONE)
    assert expected(ALONE, release.namespace) == release.found()
    release.helm("uninstall", RELEASE)
    assert CRDS == release.found()


@pytest.mark.slow
def test_uninstall_takes_the_crds_with_it_when_they_are_not_kept(release: Release) -> None:
    release.helm("install", RELEASE, CHART, values={"crds": {"keep": False}})
    release.helm("uninstall", RELEASE)
    # The server first deletes what is of their kinds.
    names = ["crd/modelpools.pointsman.dev", "crd/routepolicies.pointsman.dev"]
    release.server.kubectl("wait", "--for=delete", "--timeout=60s", *names)
    assert set() == release.found()


@pytest.mark.slow
def test_pools_outlive_a_release_that_is_installed_again(release: Release) -> None:
    release.helm("install", RELEASE, CHART)
    release.server.kubectl("wait", "--for=condition=Established", "--timeout=60s", "crd", "--all")
    pool = {
        "apiVersion": "pointsman.dev/v1alpha1",
        "kind": "ModelPool",
        "metadata": {"name": "hosted", "namespace": release.namespace},
        "spec": {
            "servedModelName": "hosted",
            "backend": {
                "type": "External",
                "external": {"endpoints": [{"url": "https://api.example.com/v1"}]},
            },
            "contextTokens": 8192,
        },
    }
    release.server.kubectl("create", "-f", "-", stdin=pool)
    release.helm("uninstall", RELEASE)
    release.helm("install", RELEASE, CHART)
    found = release.server.kubectl(
        "get", "modelpools", f"--namespace={release.namespace}", "-o=name"
    )
    assert "modelpool.pointsman.dev/hosted\n" == found
    release.server.kubectl("delete", "modelpool", "hosted", f"--namespace={release.namespace}")


@pytest.mark.slow
def test_upgrade_keeps_what_did_not_change_when_the_chart_is_a_newer_one(
    release: Release, tmp_path: Path
) -> None:
    release.helm("install", RELEASE, CHART, values=ALONE)
    names = (("Secret", f"{RELEASE}-pointsman-redis"), ("Service", f"{RELEASE}-pointsman-gateway"))
    before = [release.get(*name) for name in names]
    template = release.get("Deployment", f"{RELEASE}-pointsman-gateway")["spec"]["template"]

    newer = shutil.copytree(CHART, tmp_path / "newer")
    chart = newer / "Chart.yaml"
    chart.write_text(chart.read_text().replace("version: 0.1.0\n", "version: 0.1.1\n", 1))
    release.helm("upgrade", RELEASE, newer, values=ALONE)

    after = [release.get(*name) for name in names]
    assert [each["metadata"]["uid"] for each in before] == [
        each["metadata"]["uid"] for each in after
    ]
    assert before[0]["data"] == after[0]["data"], "the password of Redis"
    assert before[1]["spec"] == after[1]["spec"]
    deployment = release.get("Deployment", f"{RELEASE}-pointsman-gateway")
    assert "pointsman-0.1.1" == deployment["metadata"]["labels"]["helm.sh/chart"]
    assert template == deployment["spec"]["template"], "no pod is replaced"


@pytest.mark.slow
@pytest.mark.pain_23
def test_upgrade_brings_new_fields_of_the_crds(release: Release, tmp_path: Path) -> None:
    older = shutil.copytree(CHART, tmp_path / "older")
    crd = older / "templates" / "crds" / "modelpools.yaml"
    crd.write_text(crd.read_text().replace("      description: Why, in one word.\n", ""))
    release.helm("install", RELEASE, older)
    before = release.server.request("GET", MODELPOOLS).body
    release.helm("upgrade", RELEASE, CHART)
    after = release.server.request("GET", MODELPOOLS).body
    assert before["metadata"]["uid"] == after["metadata"]["uid"]
    assert ("Why, in one word." in str(before), "Why, in one word." in str(after)) == (False, True)


@pytest.mark.slow
def test_the_crds_stay_when_a_release_hands_them_over(release: Release) -> None:
    release.helm("install", RELEASE, CHART)
    release.helm("upgrade", RELEASE, CHART, values={"crds": {"enabled": False}})
    assert CRDS <= release.found()


@pytest.mark.slow
def test_a_second_gateway_is_a_release_of_its_own(release: Release) -> None:
    release.helm("install", RELEASE, CHART, values={"operator": {"extraGateways": ["internal"]}})
    second = {
        "crds": {"enabled": False},
        "operator": {"enabled": False},
        "gateway": {"name": "internal"},
    }
    release.helm("install", "internal", CHART, values=second)
    deployment = release.get("Deployment", "internal-pointsman-gateway")
    assert (
        "internal" == deployment["spec"]["template"]["metadata"]["labels"]["pointsman.dev/gateway"]
    )
    release.helm("uninstall", "internal")


@pytest.mark.slow
def test_the_operators_account_may_do_what_its_roles_say_and_not_more(release: Release) -> None:
    release.helm("install", RELEASE, CHART)
    own, other = release.namespace, "default"

    def may(component: str, verb: str, resource: str, namespace: str, name: str = "") -> bool:
        user = f"system:serviceaccount:{own}:{RELEASE}-pointsman-{component}"
        kind, _, group = resource.partition(".")
        asked = {"verb": verb, "resource": kind, "group": group, "name": name}
        review = {"spec": {"user": user, "resourceAttributes": {**asked, "namespace": namespace}}}
        path = "/apis/authorization.k8s.io/v1/subjectaccessreviews"
        allowed: bool = release.server.request("POST", path, review).body["status"]["allowed"]
        return allowed

    assert may("operator", "create", "rayservices.ray.io", other)
    assert may("operator", "patch", "configmaps", own)
    assert not may("operator", "patch", "configmaps", other)
    assert not may("operator", "list", "secrets", other)
    assert may("gateway", "watch", "secrets", own, "pointsman-default-credentials")
    assert not may("gateway", "watch", "secrets", own, "other")
    assert not may("gateway", "list", "endpointslices.discovery.k8s.io", other)
