"""The operator as users run it: a process of its own, with the API server's kubeconfig."""

from __future__ import annotations

import asyncio
import os
import re
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Self

from tests.cluster.cluster import Cluster
from tests.cluster.processes import Process, free_port

ROOT = Path(__file__).resolve().parents[3]


class OperatorProcess:
    """One operator.

    Args:
        folder: for its log.
        kubeconfig: whose rights it has; an administrator's if None.
        settings: fields of the operator's settings, in lower case.
    """

    def __init__(
        self,
        cluster: Cluster,
        folder: Path,
        *,
        name: str = "operator",
        kubeconfig: Path | None = None,
        **settings: object,
    ) -> None:
        self.port = free_port()
        self.log = folder / f"{name}.log"
        variables = {"listen_host": "127.0.0.1", "listen_port": self.port, **settings}
        self._environment = {
            f"POINTSMAN_OPERATOR_{key.upper()}": str(value) for key, value in variables.items()
        }
        self._kubeconfig = kubeconfig or cluster.kubeconfig
        self._name = name
        self.process: Process | None = None

    async def __aenter__(self) -> Self:
        self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    def start(self) -> None:
        """Start it; returns at once."""
        # Process takes no environment of its own: `env` sets it and becomes the program.
        settings = [f"{key}={value}" for key, value in self._environment.items()]
        paths = os.pathsep.join([str(ROOT / "operator"), str(ROOT / "crds"), str(ROOT / "serving")])
        self.process = Process(
            self._name,
            [
                "/usr/bin/env",
                f"PYTHONPATH={paths}",
                *settings,
                sys.executable,
                "-m",
                "pointsman_operator",
                f"--kubeconfig={self._kubeconfig}",
            ],
            log=self.log,
        )

    async def until_ready(self, seconds: float = 30.0) -> None:
        """Wait until /readyz says so."""
        async with asyncio.timeout(seconds):
            while (await self.ask("/readyz"))[0] != 200:
                if not self.running.is_alive:
                    raise RuntimeError(f"the operator has ended:\n{self.running.tail(30)}")
                await asyncio.sleep(0.05)

    async def until_leading(self, seconds: float = 30.0) -> None:
        """Wait until it leads and is in step with the cluster."""
        async with asyncio.timeout(seconds):
            while await self.metric("pointsman_operator_leader") != 1.0:
                if not self.running.is_alive:
                    raise RuntimeError(f"the operator has ended:\n{self.running.tail(30)}")
                await asyncio.sleep(0.05)
        await self.until_ready(seconds)

    async def stop(self, *, grace_seconds: float = 10.0) -> None:
        """End it with SIGTERM; with ``grace_seconds=0`` it is killed."""
        process, self.process = self.process, None
        if process is not None:
            await asyncio.to_thread(process.stop, grace_seconds=grace_seconds)

    @property
    def running(self) -> Process:
        """The process."""
        if self.process is None:
            raise RuntimeError("the operator was not started")
        return self.process

    async def ask(self, path: str) -> tuple[int, str]:
        """Status and text of a probe; status 0 where nobody listens."""
        return await asyncio.to_thread(_ask, f"http://127.0.0.1:{self.port}{path}")

    async def metric(self, name: str) -> float:
        """The sum of a metric over its labels."""
        _, text = await self.ask("/metrics")
        found = re.findall(rf"^{re.escape(name)}(?:{{[^}}]*}})? (\S+)$", text, re.MULTILINE)
        return sum(map(float, found))


def _ask(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except OSError:
        return 0, ""
