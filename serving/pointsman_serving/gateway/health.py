"""Asking a replica whether it is well, or whether it is there at all."""

from __future__ import annotations

from enum import StrEnum

import aiohttp
from yarl import URL

from pointsman_serving.gateway.descriptors import lacking
from pointsman_serving.routing.types import ReplicaAddress


class Health(StrEnum):
    """What came of asking."""

    ANSWERED = "answered"
    SILENT = "silent"
    UNKNOWN = "unknown"
    """The gateway itself could not ask."""


async def ask_health(
    session: aiohttp.ClientSession, address: ReplicaAddress, *, timeout_seconds: float
) -> Health:
    """Whether GET of the replica's health path answers 200 in time.

    Anything else is a no: no connection, another status, a head that does not end.
    """
    answer = await _status(session, address, address.health_path, timeout_seconds)
    if isinstance(answer, Health):
        return answer
    return Health.ANSWERED if answer == 200 else Health.SILENT


async def ask_alive(
    session: aiohttp.ClientSession, address: ReplicaAddress, *, timeout_seconds: float
) -> Health:
    """Whether GET of the replica's alive path answers anything in time.

    Whoever says that it drains, is busy or knows no such path is at work: only silence, a
    connection that cannot be made or breaks, and what is not HTTP are a no.
    """
    path = address.alive_path or address.health_path
    answer = await _status(session, address, path, timeout_seconds)
    return answer if isinstance(answer, Health) else Health.ANSWERED


async def _status(
    session: aiohttp.ClientSession, address: ReplicaAddress, path: str, timeout_seconds: float
) -> int | Health:
    """The status of the answer; without one in time, whose fault that is."""
    url = URL.build(
        scheme="https" if address.tls else "http",
        # What is said to be encoded is taken as it is: without the brackets of IPv6.
        host=f"[{address.host}]" if ":" in address.host else address.host,
        port=address.port,
        path=path,
        encoded=True,
    )
    limit = aiohttp.ClientTimeout(total=timeout_seconds)
    try:
        async with session.get(url, timeout=limit, allow_redirects=False) as response:
            return response.status
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
        return Health.UNKNOWN if lacking(error) else Health.SILENT
