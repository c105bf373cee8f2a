"""RayClusters that KubeRay would hold for good."""

from __future__ import annotations

from pointsman_kube.kinds import RAY_CLUSTER, Ref
from pointsman_operator.clusters import REDIS_FINALIZER
from tests.api.operator.stage import Stage


async def make_stuck_cluster(
    stage: Stage, name: str, *, managed_by: str = "pointsman-operator"
) -> None:
    """A RayCluster that was deleted with its RayService, and whose Redis nobody clears."""
    labels = {
        "app.kubernetes.io/managed-by": managed_by,
        "ray.io/originated-from-crd": "RayService",
        "ray.io/originated-from-cr-name": "deleted",
        "pointsman.dev/pool": "deleted",
    }
    containers = [{"name": "ray", "image": "example.com/ray:1"}]
    head = {"rayStartParams": {}, "template": {"spec": {"containers": containers}}}
    await stage.apply(
        {
            "apiVersion": "ray.io/v1",
            "kind": "RayCluster",
            "metadata": {"name": name, "labels": labels, "finalizers": [REDIS_FINALIZER]},
            "spec": {"headGroupSpec": head},
        }
    )
    await stage.delete(RAY_CLUSTER, name)


async def free(stage: Stage, name: str) -> None:
    ref = Ref(kind=RAY_CLUSTER, namespace=stage.namespace, name=name)
    await stage.admin.merge(ref, {"metadata": {"finalizers": None}})
