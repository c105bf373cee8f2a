"""A pool's replicas as endpoints: Ray's list joined with the pods. Pure.

Ray knows which replicas serve and where; Kubernetes knows first which pods are going. An address
is an endpoint only if it belongs to a worker pod of the RayCluster that named it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pointsman_api.endpoint_slices import (
    PoolEndpoints,
    ReplicaEndpoint,
    encode_slices,
    pod_replica,
)
from pointsman_api.modelpool import ModelPool
from pointsman_kube.kinds import ENDPOINT_SLICE, Object, Ref
from pointsman_operator.clusters import active_cluster, cluster_of, pending_cluster, pod_ready
from pointsman_operator.drift import needs_apply
from pointsman_operator.objects import (
    Owner,
    is_going,
    metadata_of,
    name_of,
    owned,
    pool_labels,
    with_hash,
)
from pointsman_operator.observed import PoolObserved, ServeReading
from pointsman_operator.ray_groups import groups_of
from pointsman_serving.engines.serve_listing import ServeTarget

_GOING_STATES = frozenset({"STOPPING"})


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointsMemory:
    """What Ray said last about each RayCluster's replicas, for when it says nothing."""

    targets: Mapping[str, tuple[ServeTarget, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class SlicePlan:
    """EndpointSlices to write; nothing in it: what is, is what is wanted."""

    apply: tuple[Object, ...] = ()
    delete: tuple[Ref, ...] = ()


def join_endpoints(
    pool: ModelPool, observed: PoolObserved, memory: EndpointsMemory
) -> tuple[tuple[ReplicaEndpoint, ...], EndpointsMemory]:
    """The pool's replicas now, and what to remember of them.

    An External pool has none here. Of two RayClusters the active one's replicas are ready; those
    of the other one are while the active one has none (at the first start there is no other).

    Returns:
        Endpoints in the order of their names; equal for equal arguments.
    """
    if pool.spec.backend.pod_selector is not None:
        port = pool.spec.backend.pod_selector.port
        found = [_pod_endpoint(pod, port) for pod in observed.pods if _address(pod)]
        return tuple(sorted(found, key=lambda item: item.replica)), memory
    if pool.spec.backend.ray_serve is None:
        return (), memory
    remembered: dict[str, tuple[ServeTarget, ...]] = {}
    joined: dict[str, list[ReplicaEndpoint]] = {}
    for cluster in sorted(map(name_of, observed.ray_clusters)):
        reading = observed.serve.get(cluster)
        targets = _targets(reading, memory.targets.get(cluster, ()))
        if targets:
            remembered[cluster] = targets
        joined[cluster] = list(_cluster_endpoints(cluster, reading, targets, observed.pods))
    chosen = _ready_cluster(joined, observed)
    found = [
        endpoint if cluster == chosen else replace(endpoint, ready=False)
        for cluster, endpoints in joined.items()
        for endpoint in endpoints
    ]
    return (
        tuple(sorted(found, key=lambda item: (item.replica, item.host, item.port))),
        EndpointsMemory(targets=remembered),
    )


def plan_slices(
    pool: ModelPool,
    endpoints: Iterable[ReplicaEndpoint],
    existing: Iterable[Mapping[str, Any]],
    *,
    namespace: str,
    owner: Owner | None = None,
) -> SlicePlan:
    """The EndpointSlices to write for a pool; an endpoint that stays keeps its slice.

    A PodSelector pool always has a slice, also without endpoints: its pods ask for no token, by
    which gateways tell a pool from a deleted one of the same name whose pods they use.

    Args:
        existing: the pool's slices in ``namespace``.
        namespace: the gateways'.
        owner: of the slices.
    """
    living = {name_of(item): item for item in existing if not is_going(item)}
    selector = pool.spec.backend.pod_selector
    wanted = [
        with_hash(owned(item, owner))
        for item in encode_slices(
            PoolEndpoints(
                namespace=pool.metadata.namespace,
                pool=pool.metadata.name,
                prefix=_prefix(pool),
                endpoints=tuple(endpoints),
            ),
            namespace=namespace,
            existing=living.values(),
            labels=pool_labels(pool, "endpoints"),
            empty_port=None if selector is None else selector.port,
        )
    ]
    names = {name_of(item) for item in wanted}
    return SlicePlan(
        apply=tuple(item for item in wanted if needs_apply(living.get(name_of(item)), item)),
        delete=tuple(
            Ref(kind=ENDPOINT_SLICE, namespace=namespace, name=name)
            for name in sorted(living)
            if name not in names
        ),
    )


def _prefix(pool: ModelPool) -> str:
    return f"/{pool.metadata.name}" if pool.spec.backend.ray_serve is not None else ""


def _targets(
    reading: ServeReading | None, remembered: tuple[ServeTarget, ...]
) -> tuple[ServeTarget, ...]:
    """Where Ray says that replicas listen; as before where it says nothing about them.

    For some seconds after a change it lists no deployments, and while replicas are replaced one
    by one it may list its proxy alone, though replicas run. A head that has just come back knows no
    application at all while its controller is not there yet, and then finds its replicas again one
    by one (RECOVERING): those that are dead go by their pods and by what the gateways see.
    """
    if reading is None or reading.status is None or not reading.status.listed:
        return remembered
    status = reading.status
    if not status.targets and not status.replicas:
        return remembered
    living = {item.replica for item in status.replicas if item.state not in _GOING_STATES}
    listed = {target.replica for target in status.targets}
    kept = (target for target in remembered if target.replica in living - listed)
    return (*status.targets, *kept)


def _has_ended(pod: Mapping[str, Any]) -> bool:
    """Whether its address may be another pod's by now."""
    return (pod.get("status") or {}).get("phase") in ("Failed", "Succeeded")


def _cluster_endpoints(
    cluster: str,
    reading: ServeReading | None,
    targets: Iterable[ServeTarget],
    pods: Iterable[Mapping[str, Any]],
) -> Iterable[ReplicaEndpoint]:
    by_address = {
        address: pod
        for pod in pods
        if cluster_of(pod) == cluster and not _has_ended(pod)
        for address in _addresses(pod)
    }
    status = None if reading is None else reading.status
    states = {} if status is None else {item.replica: item.state for item in status.replicas}
    groups = groups_of(reading)
    for target in targets:
        pod = by_address.get(target.host)
        if pod is not None:
            stopping = states.get(target.replica) in _GOING_STATES
            alone = _endpoint(pod, target.replica, target.host, target.port, stopping=stopping)
            others = groups.get(target.replica, ())
            yield _with_others(alone, [by_address.get(address) for address in others])


def _with_others(
    endpoint: ReplicaEndpoint, pods: Iterable[Mapping[str, Any] | None]
) -> ReplicaEndpoint:
    """A replica that spreads over several pods is as well as the worst of them.

    Args:
        pods: all of the replica; None for one that is gone.
    """
    for pod in pods:
        healthy = pod is not None and pod_ready(pod)
        going = pod is not None and is_going(pod)
        endpoint = replace(
            endpoint,
            ready=endpoint.ready and healthy and not going,
            serving=endpoint.serving and healthy,
            terminating=endpoint.terminating or going,
        )
    return endpoint


def _ready_cluster(joined: Mapping[str, list[ReplicaEndpoint]], observed: PoolObserved) -> str:
    """The RayCluster whose replicas get requests."""
    active = active_cluster(observed.ray_service)
    pending = pending_cluster(observed.ray_service)
    serves = any(endpoint.ready for endpoint in joined.get(active, ()))
    return active if serves or not pending else pending


def _pod_endpoint(pod: Mapping[str, Any], port: int) -> ReplicaEndpoint:
    containers = (pod.get("status") or {}).get("containerStatuses") or ()
    restarts = sum(int(item.get("restartCount") or 0) for item in containers)
    uid = str(metadata_of(pod).get("uid") or "")
    return _endpoint(pod, pod_replica(name_of(pod), uid, restarts), _address(pod), port)


def _endpoint(
    pod: Mapping[str, Any], replica: str, host: str, port: int, *, stopping: bool = False
) -> ReplicaEndpoint:
    going = is_going(pod)
    healthy = pod_ready(pod)
    metadata = metadata_of(pod)
    return ReplicaEndpoint(
        replica=replica,
        host=host,
        port=port,
        ready=healthy and not going and not stopping,
        serving=healthy,
        terminating=going or stopping,
        pod=name_of(pod),
        pod_namespace=str(metadata.get("namespace") or ""),
        pod_uid=str(metadata.get("uid") or ""),
        node=str((pod.get("spec") or {}).get("nodeName") or ""),
    )


def _address(pod: Mapping[str, Any]) -> str:
    return str((pod.get("status") or {}).get("podIP") or "")


def _addresses(pod: Mapping[str, Any]) -> Iterable[str]:
    status = pod.get("status") or {}
    yield from {_address(pod), *(str(item.get("ip")) for item in status.get("podIPs") or ())} - {""}
