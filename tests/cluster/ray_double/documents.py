"""The objects that KubeRay makes, as it makes them. Pure."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from tests.cluster.ray_double.behaviour import PodProblem

Object = dict[str, Any]

NODE = "ray-double"
"""The node that all pods are on; nobody watches it but the double."""


def time_text(seconds: float) -> str:
    """A time of the API, in whole seconds as Go writes it."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def cluster_hash(config: Mapping[str, Any]) -> str:
    """KubeRay's test for a new cluster: the numbers of workers do not count."""
    muted = copy.deepcopy(dict(config))
    for group in muted.get("workerGroupSpecs") or ():
        for name in ("replicas", "minReplicas", "maxReplicas", "scaleStrategy"):
            group.pop(name, None)
    return hashlib.sha256(json.dumps(muted, sort_keys=True).encode()).hexdigest()[:16]


def owned_by(owner: Mapping[str, Any]) -> list[Object]:
    """The ownerReferences of what KubeRay makes for an object."""
    metadata = owner["metadata"]
    return [
        {
            "apiVersion": owner["apiVersion"],
            "kind": owner["kind"],
            "name": metadata["name"],
            "uid": metadata["uid"],
            "controller": True,
            "blockOwnerDeletion": True,
        }
    ]


def ray_cluster(service: Mapping[str, Any], name: str) -> Object:
    """The RayCluster for a RayService as it is now."""
    metadata = service["metadata"]
    config = service["spec"]["rayClusterConfig"]
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayCluster",
        "metadata": {
            "name": name,
            "namespace": metadata["namespace"],
            "labels": {
                **(metadata.get("labels") or {}),
                "ray.io/originated-from-cr-name": metadata["name"],
                "ray.io/originated-from-crd": "RayService",
            },
            "annotations": {
                **(metadata.get("annotations") or {}),
                "ray.io/hash-without-replicas-and-workers-to-delete": cluster_hash(config),
            },
            "ownerReferences": owned_by(service),
        },
        "spec": config,
    }


def pod(cluster: Mapping[str, Any], name: str, *, group: str | None = None) -> Object:
    """A pod of a RayCluster, from the template of the head or of a worker group."""
    spec = cluster["spec"]
    groups = {each["groupName"]: each for each in spec.get("workerGroupSpecs") or ()}
    template = (spec["headGroupSpec"] if group is None else groups[group])["template"]
    metadata = cluster["metadata"]
    kind = "head" if group is None else "worker"
    labels = {
        **((template.get("metadata") or {}).get("labels") or {}),
        "ray.io/cluster": metadata["name"],
        "ray.io/node-type": kind,
        "ray.io/group": group or "headgroup",
        "ray.io/identifier": f"{metadata['name']}-{kind}",
        "ray.io/is-ray-node": "yes",
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": metadata["namespace"],
            "labels": labels,
            "annotations": (template.get("metadata") or {}).get("annotations") or {},
            "ownerReferences": owned_by(cluster),
        },
        "spec": {**template["spec"], "nodeName": NODE, "restartPolicy": "Never"},
    }


def running_status(document: Mapping[str, Any], address: str, now: float) -> Object:
    """The status of a pod that is up and ready."""
    at = time_text(now)
    containers = [
        _container(each, state={"running": {"startedAt": at}}, ready=True)
        for each in document["spec"]["containers"]
    ]
    conditions = [
        {"type": kind, "status": "True", "lastTransitionTime": at}
        for kind in ("PodScheduled", "Initialized", "ContainersReady", "Ready")
    ]
    return {
        "phase": "Running",
        "hostIP": "192.0.2.1",
        "hostIPs": [{"ip": "192.0.2.1"}],
        "podIP": address,
        "podIPs": [{"ip": address}],
        "startTime": at,
        "conditions": conditions,
        "containerStatuses": containers,
    }


def going_status(now: float) -> Object:
    """The change that a kubelet writes when a pod that is going is no longer ready."""
    at = time_text(now)
    reason = {"status": "False", "reason": "PodTerminating", "lastTransitionTime": at}
    return {"conditions": [{"type": kind, **reason} for kind in ("ContainersReady", "Ready")]}


def broken_status(
    document: Mapping[str, Any], problem: PodProblem, address: str, now: float
) -> Object:
    """The status of a pod that does not come up."""
    at = time_text(now)
    if problem is PodProblem.UNSCHEDULABLE:
        condition = {
            "type": "PodScheduled",
            "status": "False",
            "reason": "Unschedulable",
            "message": "0/1 nodes are available: 1 Insufficient nvidia.com/gpu.",
            "lastTransitionTime": at,
        }
        return {"phase": "Pending", "conditions": [condition]}
    first, *others = document["spec"]["containers"]
    image = first.get("image", "")
    broken: Object
    ended = {"startedAt": at, "finishedAt": at, "containerID": "containerd://0"}
    waiting = {"reason": "CrashLoopBackOff", "message": "back-off 40s restarting failed container"}
    match problem:
        case PodProblem.IMAGE_PULL:
            words = f'Back-off pulling image "{image}": not found'
            broken = {"state": {"waiting": {"reason": "ImagePullBackOff", "message": words}}}
        case PodProblem.OUT_OF_MEMORY:
            last = {**ended, "exitCode": 137, "reason": "OOMKilled"}
            broken = {"state": {"waiting": waiting}, "lastState": {"terminated": last}}
        case _:
            last = {**ended, "exitCode": 1, "reason": "Error"}
            broken = {"state": {"waiting": waiting}, "lastState": {"terminated": last}}
    not_ready = {"status": "False", "reason": "ContainersNotReady", "lastTransitionTime": at}
    return {
        "phase": "Pending" if problem is PodProblem.IMAGE_PULL else "Running",
        "podIP": address,
        "podIPs": [{"ip": address}],
        "conditions": [
            {"type": "PodScheduled", "status": "True", "lastTransitionTime": at},
            {"type": "ContainersReady", **not_ready},
            {"type": "Ready", **not_ready},
        ],
        "containerStatuses": [
            {**_container(first, ready=False), "restartCount": 3, **broken},
            *(_container(each, state={"running": {"startedAt": at}}) for each in others),
        ],
    }


def _container(container: Mapping[str, Any], *, ready: bool = True, **fields: Any) -> Object:
    return {
        "name": container["name"],
        "image": container.get("image", ""),
        "imageID": "",
        "ready": ready,
        "started": ready,
        "restartCount": 0,
        **fields,
    }


def service_status(
    service: Mapping[str, Any],
    *,
    active: str,
    pending: str,
    application: tuple[str, str, str] | None,
    endpoints: int,
    now: float,
) -> Object:
    """The status of a RayService; the times of conditions that stay are kept.

    Args:
        application: name, Ray's word and message, of the cluster that is being worked on.
    """
    generation = service["metadata"]["generation"]
    before = {each["type"]: each for each in (service.get("status") or {}).get("conditions") or ()}

    def condition(kind: str, status: str, reason: str, message: str) -> Object:
        old = before.get(kind, {})
        since = old.get("lastTransitionTime") if old.get("status") == status else None
        return {
            "type": kind,
            "status": status,
            "reason": reason,
            "message": message,
            "observedGeneration": generation,
            "lastTransitionTime": since or time_text(now),
        }

    if endpoints:
        ready = ("True", "NonZeroServeEndpoints", "Number of serve endpoints is greater than 0")
    elif before.get("Ready", {}).get("status") == "True":
        ready = ("False", "ZeroServeEndpoints", "Number of serve endpoints dropped to 0")
    else:
        ready = ("False", "Initializing", "RayService is initializing")
    if active and pending:
        upgrade = (
            "True",
            "BothActivePendingClustersExist",
            "Both clusters exist",
        )
    elif active:
        upgrade = ("False", "NoPendingCluster", "Active cluster exists and no pending cluster")
    else:
        upgrade = ("False", "Initializing", "RayService is initializing")
    worked_on = "pendingServiceStatus" if pending else "activeServiceStatus"
    parts: dict[str, Object] = {
        "activeServiceStatus": {"rayClusterName": active} if active else {},
        "pendingServiceStatus": {"rayClusterName": pending} if pending else {},
    }
    if application is not None:
        name, status, message = application
        told = {"status": status, **({"message": message} if message else {})}
        parts[worked_on]["applicationStatuses"] = {name: told}
    return {
        **parts,
        "conditions": [condition("Ready", *ready), condition("UpgradeInProgress", *upgrade)],
        "numServeEndpoints": endpoints,
        "serviceStatus": "Running" if endpoints else "",
        "observedGeneration": generation,
    }
