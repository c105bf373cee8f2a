"""A pool's replicas as EndpointSlices, written by the operator and read by the gateways. Pure.

The slices lie in the gateways' namespace, whatever namespace the pool is in: who may write slices
elsewhere cannot draw prompts. All endpoints of a slice share one port, as Kubernetes has it, so a
pool has one slice or more for each port.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pointsman_api.labels import (
    FIELD_MANAGER,
    POOL_LABEL,
    POOL_NAMESPACE_LABEL,
    ROUTE_PREFIX_ANNOTATION,
)
from pointsman_api.meta import object_key

MANAGED_BY_LABEL = "endpointslice.kubernetes.io/managed-by"
MAX_ENDPOINTS = 100
"""Endpoints of one slice: the API allows 1000, and a change sends the whole slice to everybody."""

_DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaEndpoint:
    """One replica."""

    replica: str
    """Its name, new for every life: a DNS label."""
    host: str
    """IP address."""
    port: int
    ready: bool = True
    """It may get new requests."""
    serving: bool = True
    """It answers those that it has."""
    terminating: bool = False
    """It is going."""
    pod: str = ""
    pod_namespace: str = ""
    pod_uid: str = ""
    node: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolEndpoints:
    """All replicas of one pool."""

    namespace: str
    pool: str
    prefix: str = ""
    """What the replicas' paths begin with: ``/NAME`` under Ray Serve, else nothing."""
    endpoints: tuple[ReplicaEndpoint, ...] = ()

    @property
    def key(self) -> str:
        """The pool's key in the route table."""
        return object_key(self.namespace, self.pool)


def pod_replica(pod: str, uid: str, restarts: int) -> str:
    """The name of a replica that is a pod by itself, new for every life of its container."""
    life = f"-{restarts}" if restarts else ""
    name = f"{pod}{life}"
    return name if _DNS_LABEL.fullmatch(name) else f"{uid}{life}"


def encode_slices(
    pool: PoolEndpoints,
    *,
    namespace: str,
    existing: Iterable[Mapping[str, Any]] = (),
    labels: Mapping[str, str] | None = None,
    empty_port: int | None = None,
    max_endpoints: int = MAX_ENDPOINTS,
) -> tuple[dict[str, Any], ...]:
    """The slices of a pool; a replica that has a place among the existing ones keeps it.

    A pool that had replicas and has none any more keeps one slice, without endpoints: it says that
    there is none, where no slice would say nothing, and gateways would keep what they knew.

    Args:
        namespace: the gateways'.
        existing: the pool's slices now. Those that the result lacks hold nothing any more.
        labels: further labels of each slice.
        empty_port: a pool that has no slice yet gets one without endpoints, with this port; None:
            it gets none.
    """
    existing = tuple(existing)
    if not pool.endpoints:
        new = None if empty_port is None else _to_empty(pool, empty_port, namespace)
        first = min(existing, key=lambda item: str(item["metadata"]["name"]), default=new)
        return () if first is None else (_emptied(pool, first, namespace, labels or {}),)
    places: dict[str, list[ReplicaEndpoint]] = {}
    by_place = {
        (item.replica, item.host, item.port): name
        for name, items in _by_slice(existing).items()
        for item in items
    }
    homeless: list[ReplicaEndpoint] = []
    for endpoint in sorted(pool.endpoints, key=lambda item: (item.port, item.replica)):
        place = by_place.get((endpoint.replica, endpoint.host, endpoint.port))
        if place is None or len(places.get(place, ())) >= max_endpoints:
            homeless.append(endpoint)
        else:
            places.setdefault(place, []).append(endpoint)
    for endpoint in homeless:
        number = 0
        while len(places.get(name := _slice_name(pool, endpoint, number), ())) >= max_endpoints:
            number += 1
        places.setdefault(name, []).append(endpoint)
    return tuple(
        _slice(pool, name, tuple(places[name]), namespace, labels or {}) for name in sorted(places)
    )


def decode_slices(slices: Iterable[Mapping[str, Any]]) -> dict[str, PoolEndpoints]:
    """The pools' replicas by the pools' keys; what is no slice of ours is passed over.

    A replica that two slices name is ready only if both say so.
    """
    found: dict[str, dict[str, ReplicaEndpoint]] = {}
    owners: dict[str, tuple[str, str, str]] = {}
    for item in sorted(slices, key=lambda each: str(each.get("metadata", {}).get("name", ""))):
        metadata = item.get("metadata", {})
        labels = metadata.get("labels") or {}
        pool, namespace = labels.get(POOL_LABEL), labels.get(POOL_NAMESPACE_LABEL)
        if not pool or not namespace or labels.get(MANAGED_BY_LABEL) != FIELD_MANAGER:
            continue
        key = object_key(namespace, pool)
        prefix = (metadata.get("annotations") or {}).get(ROUTE_PREFIX_ANNOTATION, "")
        owners.setdefault(key, (namespace, pool, prefix))
        replicas = found.setdefault(key, {})
        for endpoint in _endpoints(item):
            known = replicas.get(endpoint.replica)
            if known is None or (known.ready and not endpoint.ready):
                replicas[endpoint.replica] = endpoint
    return {
        key: PoolEndpoints(
            namespace=namespace,
            pool=pool,
            prefix=prefix,
            endpoints=tuple(found[key][name] for name in sorted(found[key])),
        )
        for key, (namespace, pool, prefix) in owners.items()
    }


def _by_slice(slices: Iterable[Mapping[str, Any]]) -> dict[str, Sequence[ReplicaEndpoint]]:
    return {str(item["metadata"]["name"]): _endpoints(item) for item in slices}


def _slice_name(pool: PoolEndpoints, endpoint: ReplicaEndpoint, number: int) -> str:
    owner = hashlib.sha256(f"{pool.namespace}/{pool.pool}".encode()).hexdigest()[:8]
    family = "6" if ":" in endpoint.host else ""
    return f"pointsman-{pool.pool}-{owner}-{endpoint.port}{family and '-v6'}-{number}"


def _slice(
    pool: PoolEndpoints,
    name: str,
    endpoints: tuple[ReplicaEndpoint, ...],
    namespace: str,
    labels: Mapping[str, str],
) -> dict[str, Any]:
    return {
        **_frame(pool, name, namespace, labels),
        "addressType": "IPv6" if ":" in endpoints[0].host else "IPv4",
        "ports": [{"name": "http", "port": endpoints[0].port, "protocol": "TCP"}],
        "endpoints": [_endpoint(item) for item in sorted(endpoints, key=lambda e: e.replica)],
    }


def _to_empty(pool: PoolEndpoints, port: int, namespace: str) -> dict[str, Any]:
    """What to empty where there is no slice; its address type says nothing."""
    nobody = ReplicaEndpoint(replica="", host="", port=port)
    return _slice(pool, _slice_name(pool, nobody, 0), (nobody,), namespace, {})


def _emptied(
    pool: PoolEndpoints, item: Mapping[str, Any], namespace: str, labels: Mapping[str, str]
) -> dict[str, Any]:
    """A slice that is there, without its endpoints; its address type can never change."""
    return {
        **_frame(pool, str(item["metadata"]["name"]), namespace, labels),
        "addressType": item["addressType"],
        "ports": item.get("ports") or [],
        "endpoints": [],
    }


def _frame(
    pool: PoolEndpoints, name: str, namespace: str, labels: Mapping[str, str]
) -> dict[str, Any]:
    """What every slice of a pool has."""
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": {
                **labels,
                MANAGED_BY_LABEL: FIELD_MANAGER,
                POOL_LABEL: pool.pool,
                POOL_NAMESPACE_LABEL: pool.namespace,
            },
            "annotations": {ROUTE_PREFIX_ANNOTATION: pool.prefix},
        },
    }


def _endpoint(item: ReplicaEndpoint) -> dict[str, Any]:
    document: dict[str, Any] = {
        "addresses": [item.host],
        "hostname": item.replica,
        "conditions": {
            "ready": item.ready,
            "serving": item.serving,
            "terminating": item.terminating,
        },
    }
    if item.node:
        document["nodeName"] = item.node
    if item.pod:
        reference = {
            "kind": "Pod",
            "name": item.pod,
            "namespace": item.pod_namespace,
            "uid": item.pod_uid,
        }
        document["targetRef"] = {key: value for key, value in reference.items() if value}
    return document


def _endpoints(item: Mapping[str, Any]) -> tuple[ReplicaEndpoint, ...]:
    ports = item.get("ports") or []
    port = ports[0].get("port") if ports else None
    if not isinstance(port, int):
        return ()
    return tuple(
        _read_endpoint(endpoint, port)
        for endpoint in item.get("endpoints") or []
        if endpoint.get("addresses") and endpoint.get("hostname")
    )


def _read_endpoint(endpoint: Mapping[str, Any], port: int) -> ReplicaEndpoint:
    conditions = endpoint.get("conditions") or {}
    reference = endpoint.get("targetRef") or {}
    # The API's own reading: what is not said is as if the endpoint were ready.
    ready = conditions.get("ready") is not False
    serving = conditions.get("serving")
    return ReplicaEndpoint(
        replica=str(endpoint["hostname"]),
        host=str(endpoint["addresses"][0]),
        port=port,
        ready=ready,
        serving=ready if serving is None else bool(serving),
        terminating=bool(conditions.get("terminating")),
        pod=str(reference.get("name") or ""),
        pod_namespace=str(reference.get("namespace") or ""),
        pod_uid=str(reference.get("uid") or ""),
        node=str(endpoint.get("nodeName") or ""),
    )
