"""What the operator may do in the cluster: the one table that the chart's roles are made from."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Scope(StrEnum):
    """Where a permission holds."""

    CLUSTER = "Cluster"
    """In every namespace: pools live anywhere."""
    OWN_NAMESPACE = "OwnNamespace"
    """In the operator's and the gateways' namespace alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Permission:
    """One rule of a role."""

    group: str
    """API group; empty for the core group."""
    resource: str
    """With the subresource: ``pods/log``."""
    verbs: tuple[str, ...]
    scope: Scope
    why: str
    """What it is needed for."""


_WATCH = ("list", "watch")

PERMISSIONS: tuple[Permission, ...] = (
    Permission(
        group="pointsman.dev",
        resource="modelpools",
        verbs=_WATCH,
        scope=Scope.CLUSTER,
        why="what is wanted",
    ),
    Permission(
        group="pointsman.dev",
        resource="modelpools/status",
        verbs=("patch",),
        scope=Scope.CLUSTER,
        why="conditions",
    ),
    Permission(
        group="pointsman.dev",
        resource="routepolicies",
        verbs=_WATCH,
        scope=Scope.CLUSTER,
        why="what is wanted",
    ),
    Permission(
        group="pointsman.dev",
        resource="routepolicies/status",
        verbs=("patch",),
        scope=Scope.CLUSTER,
        why="conditions",
    ),
    Permission(
        group="ray.io",
        resource="rayservices",
        # Server-side apply of an object that does not exist asks for create, too.
        verbs=("list", "watch", "create", "patch", "delete"),
        scope=Scope.CLUSTER,
        why="one for each pool with replicas",
    ),
    Permission(
        group="ray.io",
        resource="rayclusters",
        verbs=(*_WATCH, "patch"),
        scope=Scope.CLUSTER,
        why="heads to ask for replicas; KubeRay's finalizer goes when it would stay for good",
    ),
    Permission(
        group="apps",
        resource="controllerrevisions",
        verbs=("list", "watch", "create", "patch", "delete"),
        scope=Scope.CLUSTER,
        why="rendered revisions of a pool",
    ),
    Permission(
        group="",
        resource="pods",
        verbs=_WATCH,
        scope=Scope.CLUSTER,
        why="which addresses are a pool's, and why pods do not start",
    ),
    Permission(
        group="",
        resource="pods/log",
        verbs=("get",),
        scope=Scope.CLUSTER,
        why="the last line of a container that crashed, for the condition",
    ),
    Permission(
        group="",
        resource="secrets",
        # Neither list nor watch: only Secrets that a pool names are ever read.
        verbs=("get", "create", "patch"),
        scope=Scope.CLUSTER,
        why="a pool's tokens are made once, and belong to its RayClusters too; what pools name is "
        "read by name",
    ),
    Permission(
        group="",
        resource="namespaces",
        verbs=_WATCH,
        scope=Scope.CLUSTER,
        why="labels, for allowedRoutes with a selector",
    ),
    Permission(
        group="",
        resource="events",
        verbs=("create",),
        scope=Scope.CLUSTER,
        why="transitions, for kubectl describe",
    ),
    Permission(
        group="discovery.k8s.io",
        resource="endpointslices",
        # Creating a slice that names addresses of one's own choice is a right of its own.
        verbs=("list", "watch", "create", "patch", "delete"),
        scope=Scope.OWN_NAMESPACE,
        why="the replicas of each pool, for the gateways",
    ),
    Permission(
        group="",
        resource="configmaps",
        verbs=("list", "watch", "create", "patch", "delete"),
        scope=Scope.OWN_NAMESPACE,
        why="route tables",
    ),
    Permission(
        group="",
        resource="secrets",
        verbs=("get", "create", "patch", "delete"),
        scope=Scope.OWN_NAMESPACE,
        why="the merged credentials of each gateway",
    ),
    Permission(
        group="coordination.k8s.io",
        resource="leases",
        verbs=("get", "create", "update"),
        scope=Scope.OWN_NAMESPACE,
        why="the election of the operator that acts",
    ),
    Permission(
        group="apps",
        resource="deployments",
        verbs=("get",),
        scope=Scope.OWN_NAMESPACE,
        why="the operator's own, which owns what is written into its namespace",
    ),
)
"""Everything that the operator's code asks of the API; a test compares it with what it asked."""
