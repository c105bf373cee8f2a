"""What KubeRay's objects say: which RayCluster serves, which is coming, whose pod a pod is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pointsman_kube.kinds import RAY_CLUSTER, Ref
from pointsman_operator.objects import metadata_of, name_of
from pointsman_operator.times import seconds_of

CLUSTER_LABEL = "ray.io/cluster"
REDIS_FINALIZER = "ray.io/gcs-ft-redis-cleanup-finalizer"
NODE_TYPE_LABEL = "ray.io/node-type"


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
    clusters: Iterable[Mapping[str, Any]],
    pods: Iterable[Mapping[str, Any]],
    *,
    now: float,
    patience_seconds: float = 120.0,
) -> tuple[Ref, ...]:
    """RayClusters that only KubeRay's finalizer still holds, long after they were deleted.

    Before it lets go, KubeRay runs a Job that clears the cluster's keys in Redis. In a namespace
    that is being deleted no Job can be made, and where KubeRay was uninstalled nobody makes one:
    the finalizer would hold the namespace for good. Taking it off leaves some keys in Redis.

    Args:
        clusters: of the pool, whether it still exists or not.
        pods: theirs; a cluster that still has one is not stuck but draining.
        patience_seconds: from the deletion.
    """
    busy = {(metadata_of(pod).get("labels") or {}).get(CLUSTER_LABEL) for pod in pods}
    stuck = []
    for cluster in clusters:
        metadata = metadata_of(cluster)
        deleted = seconds_of(metadata.get("deletionTimestamp"))
        if deleted is None or now - deleted < patience_seconds or name_of(cluster) in busy:
            continue
        if REDIS_FINALIZER in (metadata.get("finalizers") or ()):
            namespace = str(metadata.get("namespace") or "")
            stuck.append(Ref(kind=RAY_CLUSTER, namespace=namespace, name=name_of(cluster)))
    return tuple(stuck)


def _cluster_in(service: Mapping[str, Any] | None, part: str) -> str:
    status = (service or {}).get("status") or {}
    return str((status.get(part) or {}).get("rayClusterName") or "")
