"""Asking a replica whether it is well."""

from __future__ import annotations

import aiohttp
from yarl import URL

from pointsman_serving.routing.types import ReplicaAddress


async def ask_health(
    session: aiohttp.ClientSession, address: ReplicaAddress, *, timeout_seconds: float
) -> bool:
    """Whether GET of the replica's health path answers 200 in time.

    Anything else is a no: no connection, another status, a head that does not end.
    """
    url = URL.build(
        scheme="https" if address.tls else "http",
        host=address.host,
        port=address.port,
        path=address.health_path,
        encoded=True,
    )
    limit = aiohttp.ClientTimeout(total=timeout_seconds)
    try:
        async with session.get(url, timeout=limit, allow_redirects=False) as response:
            return response.status == 200
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
        return False
