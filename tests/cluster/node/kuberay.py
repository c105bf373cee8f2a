"""The real KubeRay operator, from its module's own manifests, in the cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import yaml

from tests.cluster.binaries import kuberay_config, kuberay_crds

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cluster.node.cluster import NodeCluster

NAMESPACE = "kuberay-system"
_ROLES = (
    "service_account.yaml",
    "role.yaml",
    "role_binding.yaml",
    "leader_election_role.yaml",
    "leader_election_role_binding.yaml",
)
_READY_SECONDS = 90.0


def install(cluster: NodeCluster, image: str) -> None:
    """Install KubeRay and wait until its operator is ready."""
    cluster.apply_crds(*kuberay_crds())
    cluster.create_namespace(NAMESPACE)
    items = {"apiVersion": "v1", "kind": "List", "items": operator_objects(kuberay_config(), image)}
    cluster.kubectl("apply", "--server-side", "-f", "-", stdin=items)
    cluster.wait(
        "KubeRay's operator gets ready",
        *("get", "deployment", "kuberay-operator", f"--namespace={NAMESPACE}"),
        "--output=jsonpath={.status.readyReplicas}",
        expected="1",
        timeout_seconds=_READY_SECONDS,
    )


def operator_objects(config: Path, image: str) -> list[dict[str, Any]]:
    """KubeRay's objects for one namespace and an image of ours.

    Two things differ from its own: the probes start at once, and there is no limit of a tenth of
    a processor, which on two cores is most of the time until a RayService is ready.
    """
    files = [*(config / "rbac" / name for name in _ROLES), config / "manager" / "manager.yaml"]
    objects = [
        each for file in files for each in yaml.safe_load_all(file.read_text()) if each is not None
    ]
    for each in objects:
        if not each["kind"].startswith("Cluster"):
            each["metadata"]["namespace"] = NAMESPACE
        for subject in each.get("subjects", ()):
            subject["namespace"] = NAMESPACE
        if each["kind"] == "Deployment":
            container = each["spec"]["template"]["spec"]["containers"][0]
            container["image"] = image
            container["resources"]["limits"].pop("cpu")
            for probe in ("livenessProbe", "readinessProbe"):
                container[probe]["initialDelaySeconds"] = 1
                container[probe]["periodSeconds"] = 2
    return objects
