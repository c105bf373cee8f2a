"""What Ray Serve says of its applications: ``GET /api/serve/applications/``, read once for all.

``pointsman up``, the gateway beside it and the operator all read Ray's list here. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

_TARGET_PREFIX = "SERVE_REPLICA::"
# Only such targets are replicas: where an application has none, Ray lists its proxy instead.


class PoolState(StrEnum):
    """Where a pool's application is."""

    ABSENT = "Absent"
    STARTING = "Starting"
    """Not every replica that is wanted serves yet, and nothing has failed."""
    READY = "Ready"
    """Every replica that is wanted serves, with the configuration that was deployed last."""
    UNHEALTHY = "Unhealthy"
    """Replicas died or failed their health check; Serve is replacing them."""
    FAILED = "Failed"
    """The last deployment did not come up; replicas of an earlier one may still serve."""
    STOPPING = "Stopping"


_STATES = {
    "NOT_STARTED": PoolState.STARTING,
    "DEPLOYING": PoolState.STARTING,
    "RUNNING": PoolState.READY,
    "UNHEALTHY": PoolState.UNHEALTHY,
    "DEPLOY_FAILED": PoolState.FAILED,
    "DELETING": PoolState.STOPPING,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeTarget:
    """Where one replica listens."""

    replica: str
    """Ray's id of it, new for every life."""
    host: str
    port: int
    instance: str = ""
    """Ray's name for the machine; in Kubernetes the pod."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaStatus:
    """One replica, of any age."""

    replica: str
    """Ray's id of it, new for every life."""
    state: str
    """Ray's word: STARTING, RUNNING, STOPPING, …"""
    pid: int | None
    host: str = ""
    port: int | None = None
    """Where it listens; None until it serves and once it stops."""
    log_file: str = ""
    """Relative to the session's log folder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolStatus:
    """One pool's application."""

    pool: str
    state: PoolState
    ready: int
    """Replicas that can be reached."""
    total: int
    """Replicas that are wanted."""
    base_path: str
    """Where the replicas serve: ``/NAME``, without the ``/v1``."""
    listed: bool = True
    """Whether Ray says anything about the replicas. Right after an application was changed it
    lists no deployments for seconds, while all old replicas serve on."""
    targets: tuple[ServeTarget, ...] = ()
    """The replicas that can be reached."""
    message: str = ""
    """Why it is not ready, in Ray's words."""
    replicas: tuple[ReplicaStatus, ...] = ()
    dead: tuple[ReplicaStatus, ...] = ()
    """Replicas that ended lately, whose logs say why."""


def read_serve_listing(document: object) -> dict[str, PoolStatus]:
    """What a reading of ``GET /api/serve/applications/`` says, by application name.

    Raises:
        ValueError: the document has another shape.
    """
    listing = _mapping(document, "the list of applications")
    applications = _mapping(listing.get("applications"), "applications")
    # Before anything was deployed Ray leaves them out.
    groups = _items(listing.get("target_groups", []), "target_groups")
    return {
        name: _pool_status(name, _mapping(application, name), groups)
        for name, application in applications.items()
    }


def _pool_status(
    name: str, application: Mapping[str, Any], groups: list[Mapping[str, Any]]
) -> PoolStatus:
    targets = {
        target.replica: target
        for group in groups
        if group.get("app_name") == name and group.get("protocol", "HTTP") == "HTTP"
        for target in _targets(group)
    }
    replicas: list[ReplicaStatus] = []
    dead: list[ReplicaStatus] = []
    messages = [application.get("message") or ""]
    total = 0
    deployments = _mapping(application.get("deployments") or {}, f"{name}.deployments")
    for deployment in deployments.values():
        total += deployment.get("target_num_replicas", 0)
        messages.append(_without_slow_start(deployment.get("message") or ""))
        living = deployment.get("replicas") or ()
        replicas.extend(_replica_status(entry, targets) for entry in living)
        ended = deployment.get("recent_dead_replicas") or ()
        dead.extend(_replica_status(entry, {}) for entry in ended)
    state = _STATES.get(str(application.get("status")), PoolState.STARTING)
    ready = sum(replica.port is not None for replica in replicas)
    # Serve says RUNNING a moment before the last replica is among the targets.
    if state is PoolState.READY and ready < total:
        state = PoolState.STARTING
    return PoolStatus(
        pool=name,
        state=state,
        ready=ready,
        total=total or _wanted(application),
        base_path=(application.get("route_prefix") or "").rstrip("/"),
        listed=bool(deployments),
        targets=tuple(targets.values()),
        message="\n".join(dict.fromkeys(text for text in messages if text)),
        replicas=tuple(replicas),
        dead=tuple(dead),
    )


def _targets(group: Mapping[str, Any]) -> Iterator[ServeTarget]:
    for target in _items(group.get("targets") or [], "targets"):
        name, host, port = target.get("name"), target.get("ip"), target.get("port")
        if not (isinstance(name, str) and name.startswith(_TARGET_PREFIX)):
            continue
        if not isinstance(host, str) or type(port) is not int:
            raise ValueError(f"the target {name} has no address: ip {host!r}, port {port!r}")
        yield ServeTarget(
            replica=name.rpartition("#")[2] or name,
            host=host,
            port=port,
            instance=str(target.get("instance_id") or ""),
        )


def _replica_status(entry: Mapping[str, Any], targets: Mapping[str, ServeTarget]) -> ReplicaStatus:
    target = targets.get(entry["replica_id"])
    return ReplicaStatus(
        replica=entry["replica_id"],
        state=entry["state"],
        pid=entry.get("pid"),
        host="" if target is None else target.host,
        port=None if target is None else target.port,
        log_file=(entry.get("log_file_path") or "").lstrip("/"),
    )


def _without_slow_start(message: str) -> str:
    """Drop Serve's remark that a constructor takes long: an engine's always does."""
    return "" if "to initialize" in message and "taken more than" in message else message


def _wanted(application: Mapping[str, Any]) -> int:
    """Replicas that the configuration asks for while Serve has not built the application."""
    config = application.get("deployed_app_config") or {}
    return sum(entry.get("num_replicas") or 1 for entry in config.get("deployments") or ())


def _mapping(value: object, name: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{name} is {type(value).__name__}; it must be an object")
    return value


def _items(value: object, name: str) -> list[Mapping[str, Any]]:
    if not isinstance(value, list):
        raise ValueError(f"{name} is {type(value).__name__}; it must be a list")
    return [_mapping(item, f"{name}[]") for item in value]
