"""What is: the operator's view of one pool and of the gateways, as plain values.

The shell fills these from its mirrors, from Ray and from the gateways; everything that decides
takes them. Kubernetes objects stay the plain documents that the API sends. Times are seconds since
the epoch and always come from outside.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pointsman_operator.revision import replica_env
from pointsman_serving.engines.serve_listing import PoolStatus, read_serve_listing

Document = Mapping[str, Any]
"""A Kubernetes object as the API sends it: JSON types only. Never changed in place."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeReading:
    """The last good answer of one RayCluster to ``GET /api/serve/applications/``."""

    cluster: str
    """Name of the RayCluster whose head was asked."""
    read_at: float
    """When it was asked."""
    status: PoolStatus | None = None
    """What it says about the pool's application; None where Ray knows no such application."""
    deployed_args: Mapping[str, Any] = field(default_factory=dict)
    """``args`` of the application that Ray was told last: says which revision it works on."""
    deployed_env: Mapping[str, str] = field(default_factory=dict)
    """The replicas' environment variables that Ray was told last."""
    deployed_at: float = 0.0
    """When Ray was told last."""
    updating: bool = False
    """Ray is replacing old replicas by new ones."""
    scaling: bool = False
    """Ray is adding or taking away replicas because another number is wanted."""
    started_at: Mapping[str, float] = field(default_factory=dict)
    """When each living replica was started, by Ray's id of it."""


def read_serve(document: object, *, cluster: str, application: str, read_at: float) -> ServeReading:
    """Keep of a reading what concerns one application.

    Args:
        document: the parsed answer of ``GET /api/serve/applications/``.
        cluster: the RayCluster that was asked.
        application: the pool's name, which its application has too.
        read_at: now, in seconds since the epoch.

    Raises:
        ValueError: the document has another shape.
    """
    try:
        status = read_serve_listing(document).get(application)
        if status is None or not isinstance(document, Mapping):
            return ServeReading(cluster=cluster, read_at=read_at)
        said = document["applications"][application]
        deployments = list((said.get("deployments") or {}).values())
        return ServeReading(
            cluster=cluster,
            read_at=read_at,
            status=status,
            deployed_args=dict((said.get("deployed_app_config") or {}).get("args") or {}),
            deployed_env=replica_env(said.get("deployed_app_config") or {}),
            deployed_at=float(said.get("last_deployed_time_s") or 0.0),
            updating=any(item.get("status") == "UPDATING" for item in deployments),
            scaling=any(item.get("status") in ("UPSCALING", "DOWNSCALING") for item in deployments),
            started_at={
                replica["replica_id"]: float(replica.get("start_time_s") or 0.0)
                for deployment in deployments
                for replica in deployment.get("replicas") or ()
            },
        )
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"the list of applications has another shape: {error!r}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolReport:
    """What one gateway says about one pool."""

    queued: int = 0
    """Requests that wait in the gateway and could go to the pool."""
    open_streams: int = 0
    """Requests that were sent to the pool's replicas and have not ended."""
    serving_replicas: int = 0
    """Replicas that it sends requests to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayReport:
    """The last good answer of one gateway pod to ``GET /status``."""

    pod: str
    read_at: float
    """When it was asked."""
    config_hash: str = ""
    """Of the route table in force there."""
    ready: bool = False
    """Whether it takes requests."""
    pools: Mapping[str, PoolReport] = field(default_factory=dict)
    """By the pool's key in the route table."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayView:
    """All pods of one gateway, and what they said last."""

    name: str
    pods: tuple[str, ...] = ()
    """Names of the pods that exist and are not going."""
    reports: tuple[GatewayReport, ...] = ()
    """One for each pod that ever answered; old ones are told by ``read_at``."""


def read_gateway_status(document: object, *, pod: str, read_at: float) -> GatewayReport:
    """Keep of a gateway's ``/status`` what the operator decides by.

    Raises:
        ValueError: the document has another shape.
    """
    if not isinstance(document, Mapping):
        raise ValueError(f"the status is {type(document).__name__}; it must be an object")
    try:
        pools = (document.get("pools") or {}).items()
        return GatewayReport(
            pod=pod,
            read_at=read_at,
            config_hash=str(document.get("configHash") or ""),
            ready=bool(document.get("ready")) and not document.get("draining"),
            pools={str(key): _pool_report(pool) for key, pool in pools},
        )
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"the status has another shape: {error!r}") from error


def _pool_report(pool: Mapping[str, Any]) -> PoolReport:
    replicas = list((pool.get("replicas") or {}).values())
    return PoolReport(
        queued=int(pool.get("queued") or 0),
        open_streams=sum(int(replica.get("openStreams") or 0) for replica in replicas),
        serving_replicas=sum(replica.get("state") == "Closed" for replica in replicas),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolObserved:
    """Everything about one pool but its own document."""

    now: float
    kuberay_served: bool = True
    """Whether the API server knows the kind RayService."""
    access_secret: Document | None = None
    """The Secret ``NAME-access``."""
    lost_access: Document | None = None
    """What is still known of that Secret where it is gone, or where a part of it is."""
    in_the_way: tuple[Document, ...] = ()
    """Objects that have a name which the pool's own Secret or RayService needs, and are not the
    pool's. They are in no other field."""
    revisions: tuple[Document, ...] = ()
    """The pool's ControllerRevisions, in any order."""
    ray_service: Document | None = None
    ray_clusters: tuple[Document, ...] = ()
    """The RayClusters of the pool's RayService, also those that are going."""
    pods: tuple[Document, ...] = ()
    """RayServe: the pods of these RayClusters. PodSelector: those that the selector takes."""
    serve: Mapping[str, ServeReading] = field(default_factory=dict)
    """The last good reading of each RayCluster, by its name."""
    slices: tuple[Document, ...] = ()
    """The pool's EndpointSlices in the operator's namespace."""
    secrets: Mapping[str, frozenset[str] | None] = field(default_factory=dict)
    """The keys of each Secret that the pool names; None where there is no such Secret. A name that
    is absent here was not looked up yet, and is not complained about."""
    last_log_lines: Mapping[str, str] = field(default_factory=dict)
    """The last line that a crashed container wrote, by pod, where the shell has fetched it."""
    gateways: tuple[GatewayView, ...] = ()
    routed_by: frozenset[str] | None = None
    """Names of the gateways with a route to the pool; None: that was not looked up."""
    refused: str = ""
    """What the API server said when it last refused an object of this pool; empty: nothing."""
    refused_revision: str = ""
    """The revision that it refused and that is not tried again now; empty: none."""
