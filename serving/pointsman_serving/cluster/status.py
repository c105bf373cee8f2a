"""What Ray Serve says of its applications, as the few words that people and readiness need."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

TARGET_PREFIX = "SERVE_REPLICA::"
"""Only such targets are replicas: where an application has none, Ray lists its proxy instead."""


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
    message: str = ""
    """Why it is not ready, in Ray's words."""
    replicas: tuple[ReplicaStatus, ...] = ()
    dead: tuple[ReplicaStatus, ...] = ()
    """Replicas that ended lately, whose logs say why."""


def pool_statuses(details: Mapping[str, Any]) -> dict[str, PoolStatus]:
    """Read the answer of ``GET /api/serve/applications/``, by application name."""
    targets: dict[str, tuple[str, int]] = {}
    for group in details.get("target_groups") or ():
        for target in group["targets"] if group["protocol"] == "HTTP" else ():
            if target["name"].startswith(TARGET_PREFIX):
                replica = target["name"].rpartition("#")[2]
                targets[replica] = (target["ip"], target["port"])
    applications = details.get("applications") or {}
    return {name: _pool_status(name, entry, targets) for name, entry in applications.items()}


def _pool_status(
    name: str, application: Mapping[str, Any], targets: Mapping[str, tuple[str, int]]
) -> PoolStatus:
    replicas: list[ReplicaStatus] = []
    dead: list[ReplicaStatus] = []
    messages = [application.get("message") or ""]
    total = 0
    deployments = application.get("deployments") or {}
    for deployment in deployments.values():
        total += deployment.get("target_num_replicas", 0)
        messages.append(_without_slow_start(deployment.get("message") or ""))
        living = deployment.get("replicas") or ()
        replicas.extend(_replica_status(entry, targets) for entry in living)
        ended = deployment.get("recent_dead_replicas") or ()
        dead.extend(_replica_status(entry, {}) for entry in ended)
    state = _STATES.get(application["status"], PoolState.STARTING)
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
        message="\n".join(dict.fromkeys(text for text in messages if text)),
        replicas=tuple(replicas),
        dead=tuple(dead),
    )


def _replica_status(
    entry: Mapping[str, Any], targets: Mapping[str, tuple[str, int]]
) -> ReplicaStatus:
    host, port = targets.get(entry["replica_id"], ("", None))
    return ReplicaStatus(
        replica=entry["replica_id"],
        state=entry["state"],
        pid=entry.get("pid"),
        host=host,
        port=port,
        log_file=(entry.get("log_file_path") or "").lstrip("/"),
    )


def _without_slow_start(message: str) -> str:
    """Drop Serve's remark that a constructor takes long: an engine's always does."""
    return "" if "to initialize" in message and "taken more than" in message else message


def _wanted(application: Mapping[str, Any]) -> int:
    """Replicas that the configuration asks for while Serve has not built the application."""
    config = application.get("deployed_app_config") or {}
    return sum(entry.get("num_replicas") or 1 for entry in config.get("deployments") or ())
