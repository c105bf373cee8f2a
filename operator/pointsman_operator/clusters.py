"""What KubeRay's objects say: which RayCluster serves, which is coming, whose pod a pod is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pointsman_api.labels import FIELD_MANAGER
from pointsman_operator.objects import is_going, metadata_of, name_of

CLUSTER_LABEL = "ray.io/cluster"
REDIS_FINALIZER = "ray.io/gcs-ft-redis-cleanup-finalizer"
NODE_TYPE_LABEL = "ray.io/node-type"
_CLEANUP = "redis-cleanup"
_MANAGED_BY = "app.kubernetes.io/managed-by"


def active_cluster(service: Mapping[str, Any] | None) -> str:
    """Name of the RayCluster that serves; empty before the first start."""
    return _cluster_in(service, "activeServiceStatus")


def pending_cluster(service: Mapping[str, Any] | None) -> str:
    """Name of the RayCluster that is being prepared; empty where there is none."""
    return _cluster_in(service, "pendingServiceStatus")


def has_seen_latest(service: Mapping[str, Any]) -> bool:
    """Whether KubeRay has acted on the RayService as it is now."""
    seen = (service.get("status") or {}).get("observedGeneration")
    return seen is not None and seen == metadata_of(service).get("generation")


def cluster_of(pod: Mapping[str, Any]) -> str:
    """The RayCluster that a pod is a worker of; empty for every other pod."""
    labels = metadata_of(pod).get("labels") or {}
    if labels.get(NODE_TYPE_LABEL) != "worker":
        return ""
    return str(labels.get(CLUSTER_LABEL) or "")


def pod_ready(pod: Mapping[str, Any]) -> bool:
    """Whether the pod's readiness probes succeed."""
    conditions = (pod.get("status") or {}).get("conditions") or ()
    return any(item.get("type") == "Ready" and item.get("status") == "True" for item in conditions)


def stuck_clusters(
    clusters: Iterable[Mapping[str, Any]], pods: Iterable[Mapping[str, Any]]
) -> tuple[Mapping[str, Any], ...]:
    """Deleted RayClusters of pools that KubeRay's finalizer holds though nothing is done there now.

    Before it lets go, KubeRay ends the cluster's pods and runs a Job that clears the cluster's keys
    in Redis. In a namespace that is being deleted no Job can be made, and where KubeRay was
    uninstalled nobody does either: the finalizer would hold the namespace for good. KubeRay pauses
    for seconds between these steps, so a cluster is stuck only if it is here for long.

    Args:
        clusters: of all RayServices, whether their pools still exist or not.
        pods: of the pools.
    """
    held = [item for item in clusters if _is_held(item)]
    if not held:
        return ()
    busy = {_cluster_key(pod) for pod in pods if _ends(pod)}
    return tuple(
        item
        for item in held
        if (str(metadata_of(item).get("namespace") or ""), name_of(item)) not in busy
    )


def _is_held(cluster: Mapping[str, Any]) -> bool:
    metadata = metadata_of(cluster)
    ours = (metadata.get("labels") or {}).get(_MANAGED_BY) == FIELD_MANAGER
    return ours and is_going(cluster) and REDIS_FINALIZER in (metadata.get("finalizers") or ())


def _ends(pod: Mapping[str, Any]) -> bool:
    """Whether the pod is a part of the cluster's end: one that drains, or clears Redis.

    One that runs on as if nothing had happened is not: KubeRay tells it to end at once.
    """
    if is_going(pod):
        return True
    labels = metadata_of(pod).get("labels") or {}
    phase = (pod.get("status") or {}).get("phase")
    return labels.get(NODE_TYPE_LABEL) == _CLEANUP and phase not in ("Succeeded", "Failed")


def _cluster_key(pod: Mapping[str, Any]) -> tuple[str, str]:
    metadata = metadata_of(pod)
    cluster = (metadata.get("labels") or {}).get(CLUSTER_LABEL)
    return str(metadata.get("namespace") or ""), str(cluster or "")


def _cluster_in(service: Mapping[str, Any] | None, part: str) -> str:
    status = (service or {}).get("status") or {}
    return str((status.get(part) or {}).get("rayClusterName") or "")
