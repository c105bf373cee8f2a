"""Nodes of Ray on this machine, each with an address of its own: what pods are to Ray."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import aiohttp

from pointsman_operator.ray_groups import NODES_PATH
from pointsman_serving.cluster.guard import descendants
from pointsman_serving.cluster.serve_api import ServeApi
from pointsman_serving.engines.application import serve_application, serve_config

from .conftest import SOURCES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pointsman_api.modelpool import ModelPool
    from pointsman_serving.cluster.local_ray import LocalRay

PLACE = "pointsman_replica"
"""What each node offers one of, as the operator's worker pods do."""

_JOIN_SECONDS = 120.0


@dataclass(slots=True)
class RayHosts:
    """Nodes beside a local Ray's own, which has no place for a replica; a context manager."""

    ray: LocalRay
    folder: str
    """For what each pod has to itself."""
    environment: Mapping[str, str] = field(default_factory=dict)
    _nodes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        for address in list(self._nodes):
            self.kill(address)

    async def add(self, address: str) -> None:
        """Start a node and wait until it has joined.

        Args:
            address: of the loopback range.
        """
        deadline = time.monotonic() + _JOIN_SECONDS
        self._start(address)
        while address not in await self._living():
            if time.monotonic() > deadline:
                raise TimeoutError(f"the node {address} has not joined in {_JOIN_SECONDS:.0f} s")
            if self._nodes[address].poll() is not None:
                # On a busy machine Ray's own processes miss each other at times.
                self._start(address)
            await asyncio.sleep(0.5)

    async def _living(self) -> set[str]:
        headers = {"authorization": f"Bearer {self.ray.token}"}
        async with (
            aiohttp.ClientSession(headers=headers) as session,
            session.get(self.ray.dashboard_url + NODES_PATH) as response,
        ):
            nodes = (await response.json())["data"]["result"]["result"]
        return {node["node_ip"] for node in nodes if node["state"] == "ALIVE"}

    def _start(self, address: str) -> None:
        command = [
            *(sys.executable, "-m", "pointsman_serving.cluster.guard"),
            *(sys.executable, "-m", "ray.scripts.scripts", "start", "--block"),
            f"--address={self.ray.address}",
            f"--node-ip-address={address}",
            "--dashboard-agent-listen-port=0",
            "--min-worker-port=0",
            "--max-worker-port=0",
            "--num-cpus=2",
            "--num-gpus=0",
            f"--resources={json.dumps({PLACE: 1})}",
            "--object-store-memory=80000000",
            "--disable-usage-stats",
        ]
        kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        self._nodes[address] = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env=kept
            | {
                "RAY_AUTH_MODE": "token",
                "RAY_AUTH_TOKEN": self.ray.token,
                "RAY_SERVE_ENABLE_DIRECT_INGRESS": "1",
                "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "2",
                "RAY_USAGE_STATS_ENABLED": "0",
                "POINTSMAN_RUN_DIR": self.run_folder(address),
                "PYTHONPATH": os.pathsep.join(map(str, SOURCES)),
            }
            | dict(self.environment),
        )

    def run_folder(self, address: str) -> str:
        """Where the replica's processes of a node tell whether requests are open."""
        return f"{self.folder}/{address}"

    def kill(self, address: str) -> None:
        """End every process of a node at once, as the forced deletion of a pod does."""
        node = self._nodes.pop(address)
        for process in [*descendants(node.pid), node.pid]:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        node.wait()
        if node.stdin is not None:
            node.stdin.close()

    async def deploy(self, pool: ModelPool, *, model_path: str = "") -> None:
        """Make a pool the only one, on the nodes' places."""
        application = serve_application(pool, model_path=model_path, resources={PLACE: 1.0})
        await self._put([application])

    async def remove_all(self) -> None:
        """Take the pool away."""
        await self._put([])

    async def _put(self, applications: list[dict[str, Any]]) -> None:
        api = ServeApi(self.ray.dashboard_url, token=self.ray.token)
        try:
            # Every node's replicas listen on its own address.
            await api.deploy(serve_config(applications, host="0.0.0.0", proxy_port=0))
        finally:
            await api.close()
