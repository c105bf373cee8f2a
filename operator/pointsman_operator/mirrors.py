"""Every kind that the operator watches besides those that users write."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Any

from pointsman_api.labels import GATEWAY_LABEL, POOL_LABEL, POOL_NAMESPACE_LABEL
from pointsman_kube.client import Kube
from pointsman_kube.held import OnChange
from pointsman_kube.identity import Key
from pointsman_kube.kinds import (
    CONFIG_MAP,
    CONTROLLER_REVISION,
    ENDPOINT_SLICE,
    NAMESPACE,
    POD,
    RAY_CLUSTER,
    RAY_SERVICE,
    Object,
)
from pointsman_kube.mirror import Mirror
from pointsman_operator.objects import metadata_of

BY_POOL = "pool"
"""Index: the key of the pool that an object belongs to."""

ORIGIN_LABEL = "ray.io/originated-from-cr-name"
"""On a RayCluster: the RayService that it was made for."""
_ORIGIN_KIND_LABEL = "ray.io/originated-from-crd"

PoolChanged = Callable[[Key], None]


class Mirrors:
    """The mirrors, and which pool or gateway a change concerns.

    Args:
        kube: the connection.
        namespace: the operator's and the gateways' own.
        pool_changed: told the key of a pool of whose objects one changed.
        endpoints_changed: the same of one of its pods.
        gateway_changed: told that something that routes are made from changed.
        gateway_pod_changed: told that a gateway's pod came, changed or went.
        kuberay_changed: told when KubeRay's kinds come or go.
        listed: told when a mirror has listed anew, after a gap.
    """

    def __init__(
        self,
        kube: Kube,
        *,
        namespace: str,
        pool_changed: PoolChanged,
        endpoints_changed: PoolChanged,
        gateway_changed: Callable[[], None],
        gateway_pod_changed: OnChange,
        kuberay_changed: Callable[[], None] = lambda: None,
        listed: Callable[[], None] = lambda: None,
    ) -> None:
        def pool(kind: Any, tell: PoolChanged = pool_changed, **options: Any) -> Mirror:
            options = {"label_selector": POOL_LABEL, "indexes": {BY_POOL: pools_of}, **options}
            changed = _tell_pools(options["indexes"][BY_POOL], tell)
            return Mirror(kube, kind, on_change=changed, **options)

        self.ray_services = pool(RAY_SERVICE, on_served=lambda served: kuberay_changed())
        self.ray_clusters = pool(
            RAY_CLUSTER,
            label_selector=f"{_ORIGIN_KIND_LABEL}=RayService",
            indexes={BY_POOL: origins_of},
            # KubeRay's CRDs come and go together, but a server ends the watch of one sooner.
            on_served=lambda served: self.ray_services.doubt(),
        )
        self.pods = pool(POD, endpoints_changed, transform=slim_pod)
        self.revisions = pool(CONTROLLER_REVISION)
        # Ours alone lie outside their pool's namespace: elsewhere a label proves nothing.
        self.slices = pool(
            ENDPOINT_SLICE, namespace=namespace, indexes={BY_POOL: pools_served_from_here}
        )
        self.namespaces = Mirror(
            kube,
            NAMESPACE,
            on_change=_if_labels_changed(gateway_changed),
            transform=slim_namespace,
            on_listed=listed,
        )
        self.config_maps = Mirror(
            kube,
            CONFIG_MAP,
            namespace=namespace,
            label_selector=GATEWAY_LABEL,
            on_change=lambda key, old, new: gateway_changed(),
        )
        self.gateway_pods = Mirror(
            kube,
            POD,
            namespace=namespace,
            label_selector=GATEWAY_LABEL,
            on_change=gateway_pod_changed,
            transform=slim_pod,
        )

    def __iter__(self) -> Iterator[Mirror]:
        return iter(
            (
                self.ray_services,
                self.ray_clusters,
                self.pods,
                self.revisions,
                self.slices,
                self.namespaces,
                self.config_maps,
                self.gateway_pods,
            )
        )

    async def run(self) -> None:
        """Follow the API server until cancelled."""
        async with asyncio.TaskGroup() as group:
            for mirror in self:
                group.create_task(mirror.run(), name=f"mirror {mirror.kind.resource}")

    async def answered(self) -> None:
        """Wait until the state of all is known."""
        for mirror in self:
            await mirror.answered()

    @property
    def unanswered(self) -> list[str]:
        """Resources whose state is not known yet."""
        return [mirror.kind.resource for mirror in self if mirror.served is None]


def pools_of(obj: Object) -> Iterable[Hashable]:
    """The key of the pool that an object of the pool's own namespace is labelled with.

    Whoever may write into another namespace has no say in this one, whatever the labels claim.
    """
    metadata = metadata_of(obj)
    name = (metadata.get("labels") or {}).get(POOL_LABEL)
    if name and metadata.get("namespace"):
        yield (str(metadata["namespace"]), str(name))


def pools_served_from_here(obj: Object) -> Iterable[Hashable]:
    """The key of the pool, of any namespace, that an object of the operator's own is for."""
    labels = metadata_of(obj).get("labels") or {}
    name, namespace = labels.get(POOL_LABEL), labels.get(POOL_NAMESPACE_LABEL)
    if name and namespace:
        yield (str(namespace), str(name))


def origins_of(obj: Object) -> Iterable[Hashable]:
    """The key of the RayService, which is the pool's, that a RayCluster was made for."""
    metadata = metadata_of(obj)
    name = (metadata.get("labels") or {}).get(ORIGIN_LABEL)
    if name:
        yield (str(metadata.get("namespace") or ""), str(name))


def slim_pod(pod: Object) -> Object:
    """What we read of a pod: its volumes, commands and environment are most of it."""
    spec, metadata = pod.get("spec") or {}, pod["metadata"]
    kept = ("name", "namespace", "uid", "resourceVersion", "labels", "creationTimestamp")
    going = ("deletionTimestamp", "deletionGracePeriodSeconds", "annotations", "ownerReferences")
    return {
        "apiVersion": pod["apiVersion"],
        "kind": pod["kind"],
        "metadata": {name: metadata[name] for name in (*kept, *going) if name in metadata},
        "spec": {
            "nodeName": spec.get("nodeName", ""),
            "containers": [
                {"name": container.get("name", ""), "image": container.get("image", "")}
                for container in spec.get("containers") or ()
            ],
        },
        "status": pod.get("status") or {},
    }


def slim_namespace(namespace: Object) -> Object:
    """A namespace's name, labels and whether it is going."""
    metadata = namespace["metadata"]
    kept = ("name", "uid", "resourceVersion", "labels", "deletionTimestamp")
    return {
        "apiVersion": namespace["apiVersion"],
        "kind": namespace["kind"],
        "metadata": {name: metadata[name] for name in kept if name in metadata},
    }


def _tell_pools(
    keys_of: Callable[[Object], Iterable[Hashable]], pool_changed: PoolChanged
) -> OnChange:
    def changed(key: Key, old: Object | None, new: Object | None) -> None:
        keys = {key for obj in (old, new) if obj is not None for key in keys_of(obj)}
        for found in keys:
            pool_changed(found)  # type: ignore[arg-type]

    return changed


def _if_labels_changed(gateway_changed: Callable[[], None]) -> OnChange:
    def changed(key: Key, old: Object | None, new: Object | None) -> None:
        before = metadata_of(old or {}).get("labels")
        if before != metadata_of(new or {}).get("labels"):
            gateway_changed()

    return changed
