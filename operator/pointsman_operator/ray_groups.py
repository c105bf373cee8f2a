"""Which pods belong to one replica, where replicas spread over several: Ray's placement groups.

Ray's list of applications names the first pod of a replica alone. Its placement group, which bears
the replica's name, says on which nodes of Ray the others are.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import aiohttp

from pointsman_operator.observed import ServeReading
from pointsman_operator.pod_answer import read_json, session_for_pods

GROUPS_PATH = "/api/v0/placement_groups?detail=1&limit=10000"
NODES_PATH = "/api/v0/nodes?limit=10000"

_NAME_PREFIX = "SERVE_REPLICA::"
_PLACED = ("CREATED", "RESCHEDULING")
_MOST_SECONDS = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupedReading(ServeReading):
    """A reading of a RayCluster whose replicas spread over several pods."""

    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """The addresses of each replica's pods, by Ray's id of it; an empty one for a node that is
    lost. A replica that is absent here was not told of yet."""


def spreads(document: object, application: str) -> bool:
    """Whether the replicas of an application have several nodes each.

    Args:
        document: the parsed answer of ``GET /api/serve/applications/``, in its shape.
    """
    if not isinstance(document, Mapping):
        return False
    said = (document.get("applications") or {}).get(application) or {}
    config = said.get("deployed_app_config") or {}
    return any(
        len(deployment.get("placement_group_bundles") or ()) > 1
        for deployment in config.get("deployments") or ()
    )


def with_groups(reading: ServeReading, groups: Mapping[str, tuple[str, ...]]) -> GroupedReading:
    """The same reading with the replicas' pods."""
    kept = {item.name: getattr(reading, item.name) for item in fields(ServeReading)}
    return GroupedReading(**kept, groups=groups)


def groups_of(reading: ServeReading | None) -> Mapping[str, tuple[str, ...]]:
    """The addresses of the replicas' pods, where they have several."""
    return reading.groups if isinstance(reading, GroupedReading) else {}


def read_groups(groups: object, nodes: object, *, application: str) -> dict[str, tuple[str, ...]]:
    """The addresses of each replica's pods, in the order of the placement group's bundles.

    Args:
        groups: the parsed answer of ``GROUPS_PATH``.
        nodes: the parsed answer of ``NODES_PATH``.
        application: the pool's name.

    Raises:
        ValueError: an answer has another shape.
    """
    try:
        addresses = {
            node["node_id"]: str(node["node_ip"])
            for node in _result(nodes)
            if node["state"] == "ALIVE"
        }
        return {
            name.rpartition("#")[2]: tuple(
                addresses.get(bundle.get("node_id") or "", "") for bundle in group["bundles"]
            )
            for group in _result(groups)
            if group["state"] in _PLACED
            and (name := str(group["name"])).startswith(f"{_NAME_PREFIX}{application}#")
        }
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"Ray's list of placement groups has another shape: {error!r}") from error


async def fetch_groups(
    dashboard_url: str, token: str, *, application: str
) -> dict[str, tuple[str, ...]]:
    """Ask a head for the addresses of each replica's pods.

    Raises:
        OSError: no answer in time, or another one than 200.
        ValueError: the answer is too long, or has another shape.
    """
    headers = {"authorization": f"Bearer {token}"} if token else {}
    timeout = aiohttp.ClientTimeout(total=_MOST_SECONDS)
    try:
        async with session_for_pods(timeout=timeout) as session:
            groups, nodes = await asyncio.gather(
                _fetch(session, dashboard_url + GROUPS_PATH, headers),
                _fetch(session, dashboard_url + NODES_PATH, headers),
            )
    except (aiohttp.ClientError, TimeoutError) as error:
        raise OSError(f"{dashboard_url}: {type(error).__name__} {error}".rstrip()) from error
    return read_groups(groups, nodes, application=application)


async def _fetch(session: aiohttp.ClientSession, url: str, headers: Mapping[str, str]) -> object:
    async with session.get(url, headers=headers, allow_redirects=False) as response:
        if response.status != 200:
            raise OSError(f"{url}: status {response.status}")
        return await read_json(response)


def _result(answer: object) -> list[dict[str, Any]]:
    """The entries of an answer of Ray's state API."""
    found: list[dict[str, Any]] = answer["data"]["result"]["result"]  # type: ignore[index]
    return found
