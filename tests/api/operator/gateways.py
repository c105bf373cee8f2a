"""A double of a gateway: a pod object, and the server behind it that answers ``/status``.

It runs what the operator writes, as the real one does: route table and EndpointSlices.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, Self

from aiohttp import web

from pointsman_api.endpoint_slices import decode_slices
from pointsman_api.labels import GATEWAY_LABEL, POOL_LABEL
from pointsman_api.route_config import RouteConfigError, read_config
from pointsman_api.route_table import RouteTable
from pointsman_kube.client import Kube
from pointsman_kube.kinds import CONFIG_MAP, ENDPOINT_SLICE
from pointsman_kube.mirror import Mirror


class GatewayDouble:
    """One gateway pod.

    Args:
        kube: an administrator's connection.
        namespace: the operator's.
        lag_seconds: how long a new table takes to be in force.
    """

    def __init__(
        self, kube: Kube, namespace: str, *, gateway: str = "default", pod: str = "gateway-0"
    ) -> None:
        self.port = 0
        self.queued: dict[str, int] = {}
        """Requests that wait, by pool key."""
        self.open_streams: dict[str, int] = {}
        """Requests at each replica of a pool, by pool key."""
        self.frozen = False
        """Takes no new table."""
        self.table: RouteTable | None = None
        self._kube = kube
        self._namespace = namespace
        self._gateway = gateway
        self._pod = pod
        self._maps = Mirror(
            kube,
            CONFIG_MAP,
            namespace=namespace,
            label_selector=f"{GATEWAY_LABEL}={gateway}",
            on_change=lambda *_: self._read(),
        )
        self._slices = Mirror(kube, ENDPOINT_SLICE, namespace=namespace, label_selector=POOL_LABEL)
        self._stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        app = web.Application()
        app.router.add_get("/status", self._status)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        self._stack.push_async_callback(runner.cleanup)
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.port = int(runner.addresses[0][1])
        for mirror in (self._maps, self._slices):
            task = asyncio.create_task(mirror.run())
            self._stack.push_async_callback(_end, task)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def make_pod(self) -> None:
        """Make the pod object that the operator finds the gateway by."""
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": self._pod,
                "namespace": self._namespace,
                "labels": {GATEWAY_LABEL: self._gateway},
            },
            "spec": {"containers": [{"name": "gateway", "image": "example.com/gateway:1"}]},
        }
        made = await self._kube.create(pod)
        # Loopback addresses are fine in a pod's status, though not in an EndpointSlice.
        await self._kube.apply_status({**made, "status": _running("127.0.0.1")})

    @property
    def pools(self) -> dict[str, Any]:
        """The replicas that it would send requests to."""
        return {key: pool for key, pool in decode_slices(self._slices).items() if self._has(key)}

    def _has(self, key: str) -> bool:
        return self.table is not None and key in self.table.pools

    def _read(self) -> None:
        if self.frozen:
            return
        with contextlib.suppress(RouteConfigError):
            self.table = read_config(self._maps).table

    async def _status(self, _: web.Request) -> web.Response:
        pools = {
            key: {
                "queued": self.queued.get(key, 0),
                "replicas": {
                    endpoint.replica: {
                        "state": "Closed",
                        "openStreams": self.open_streams.get(key, 0),
                    }
                    for endpoint in pool.endpoints
                    if endpoint.ready
                },
            }
            for key, pool in self.pools.items()
        }
        for key, queued in self.queued.items():
            pools.setdefault(key, {"queued": queued, "replicas": {}})
        return web.json_response(
            {
                "name": self._gateway,
                "configHash": "" if self.table is None else self.table.digest(),
                "ready": True,
                "draining": False,
                "pools": pools,
            }
        )


def _running(address: str) -> dict[str, Any]:
    return {
        "phase": "Running",
        "podIP": address,
        "podIPs": [{"ip": address}],
        "conditions": [
            {"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}
        ],
    }


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
