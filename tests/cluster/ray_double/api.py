"""The few calls of the Kubernetes API that the double makes, over plain HTTP."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from typing import Any, Self

import aiohttp

from tests.cluster.cluster import MERGE_PATCH, Cluster

Object = dict[str, Any]

_AT_ONCE = 24
_WATCH_SECONDS = 300


class Api:
    """Calls on a cluster; as an async context manager."""

    def __init__(self, cluster: Cluster) -> None:
        self._url = cluster.url
        self._headers = {"authorization": f"Bearer {cluster.token}", "user-agent": "ray-double"}
        self._tls = ssl.create_default_context(cadata=cluster.ca or None)
        self._turns = asyncio.Semaphore(_AT_ONCE)

    async def __aenter__(self) -> Self:
        connector = aiohttp.TCPConnector(ssl=self._tls, limit=_AT_ONCE + 4)
        # 0: a watch is silent for long.
        timeout = aiohttp.ClientTimeout(total=0, connect=5)
        self._session = aiohttp.ClientSession(
            self._url, headers=self._headers, connector=connector, timeout=timeout
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def call(
        self, method: str, path: str, body: object = None, *, content_type: str = "application/json"
    ) -> tuple[int, Object]:
        """Status and answer. While the API is away the call is repeated until it is back."""
        data = None if body is None else json.dumps(body)
        headers = {"content-type": content_type}
        while True:
            try:
                async with (
                    self._turns,
                    self._session.request(method, path, data=data, headers=headers) as response,
                ):
                    status, answer = response.status, await response.json(content_type=None)
            except (aiohttp.ClientError, OSError, ValueError):
                await asyncio.sleep(0.2)
                continue
            if status not in (429, 500, 503, 504):
                return status, answer
            await asyncio.sleep(0.2)

    async def patch(self, path: str, change: Object) -> tuple[int, Object]:
        """Merge a change into an object or its status."""
        return await self.call("PATCH", path, change, content_type=MERGE_PATCH)

    async def delete(self, path: str, *, grace_seconds: int | None = None) -> None:
        """Delete; what is gone already is no error."""
        options: Object = {"kind": "DeleteOptions", "apiVersion": "v1"}
        if grace_seconds is not None:
            options["gracePeriodSeconds"] = grace_seconds
        await self.call("DELETE", path, options)

    async def watch(self, path: str, selector: str = "") -> AsyncIterator[tuple[str, Any]]:
        """All that happens, for ever: ``("LISTED", [objects])`` at each start over, then events."""
        query = f"labelSelector={selector}" if selector else ""
        while True:
            status, listing = await self.call("GET", f"{path}?{query}")
            if status != 200:  # no such kind yet
                await asyncio.sleep(0.5)
                continue
            yield "LISTED", listing.get("items") or []
            version = listing["metadata"]["resourceVersion"]
            try:
                async for kind, item in self._events(path, query, version):
                    yield kind, item
            except (aiohttp.ClientError, OSError, ValueError):
                await asyncio.sleep(0.2)

    async def _events(
        self, path: str, query: str, version: str
    ) -> AsyncIterator[tuple[str, Object]]:
        url = f"{path}?{query}&watch=true&timeoutSeconds={_WATCH_SECONDS}&resourceVersion={version}"
        async with self._session.get(url) as response:
            rest = b""
            async for chunk in response.content.iter_any():
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    event = json.loads(line)
                    if event["type"] == "ERROR":
                        return
                    yield event["type"], event["object"]
