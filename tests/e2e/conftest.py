"""Real Ray Serve on this machine, started once for all tests of this folder."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
import pytest_asyncio

from pointsman_api.modelpool import ModelPool
from pointsman_serving.cluster.local_ray import LocalRay, LocalRaySettings, start_local_ray
from pointsman_serving.engines.application import serve_application
from pointsman_serving.engines.serve_listing import PoolState, PoolStatus, ReplicaStatus

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

ROOT = Path(__file__).parents[2]
SOURCES = (ROOT / "crds", ROOT / "serving", ROOT / "kernels")
READY_SECONDS = 240.0


def ray_serve_pool(
    name: str, engine: str, *, args: Sequence[str] = (), sequences: int = 64, **spec: Any
) -> ModelPool:
    """A pool with the backend RayServe."""
    backend: dict[str, Any] = {
        "engine": {"type": engine, "args": list(args), "maxSequences": sequences}
    }
    if engine != "Simulated":
        source = {"type": "HostPath", "hostPath": {"path": f"/var/lib/pointsman/models/{name}"}}
        backend["model"] = {"source": source}
    return ModelPool.model_validate(
        {
            "apiVersion": "pointsman.dev/v1alpha1",
            "kind": "ModelPool",
            "metadata": {"name": name},
            "spec": {
                "servedModelName": name,
                "backend": {"type": "RayServe", "rayServe": backend},
                **spec,
            },
        }
    )


@dataclass(slots=True)
class Cluster:
    """The local Ray, and what is deployed on it."""

    ray: LocalRay
    _deployed: dict[str, Mapping[str, object]] = field(default_factory=dict)

    async def deploy(self, pool: ModelPool, *, model_path: str = "") -> PoolStatus:
        """Add a pool or change it, and wait until it is ready."""
        await self.put(pool, model_path=model_path)
        return await self.until(pool.metadata.name, PoolState.READY)

    async def put(self, pool: ModelPool, *, model_path: str = "") -> None:
        """Add a pool or change it."""
        self._deployed[pool.metadata.name] = serve_application(pool, model_path=model_path)
        await self.ray.deploy(list(self._deployed.values()))

    async def remove(self, name: str) -> None:
        """Take a pool away; its replicas end when their requests are done."""
        self._deployed.pop(name, None)
        await self.ray.deploy(list(self._deployed.values()))

    async def until(
        self, name: str, state: PoolState, seconds: float = READY_SECONDS
    ) -> PoolStatus:
        """Wait until a pool is in a state."""
        end = time.monotonic() + seconds
        status = None
        while time.monotonic() < end:
            status = (await self.ray.status()).get(name)
            if status is not None and status.state is state:
                return status
            if status is not None and status.state is PoolState.FAILED:
                break
            await asyncio.sleep(0.2)
        logs = "\n".join(
            self.ray.log_tail(replica.log_file, 60)
            for replica in (status.replicas if status else ())
        )
        pytest.fail(f"pool {name} is not {state} but {status}\n{logs}")

    @asynccontextmanager
    async def pool(self, pool: ModelPool, *, model_path: str = "") -> AsyncIterator[PoolStatus]:
        """A pool that is ready, and gone afterwards."""
        try:
            yield await self.deploy(pool, model_path=model_path)
        finally:
            await self.remove(pool.metadata.name)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def cluster() -> AsyncIterator[Cluster]:
    """A local Ray without pools."""
    settings = LocalRaySettings(python_path=SOURCES, min_drain_seconds=2.0)
    async with await start_local_ray(settings) as ray:
        yield Cluster(ray)


@pytest_asyncio.fixture(loop_scope="session")
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    """A client without a limit on connections."""
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=300)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        yield session


def url_of(status: PoolStatus, replica: ReplicaStatus | None = None) -> str:
    """Where a replica serves; any one that can be reached by default."""
    chosen = replica or next(each for each in status.replicas if each.port is not None)
    return f"http://{chosen.host}:{chosen.port}{status.base_path}"


class Targets:
    """A pool's replicas, listed as a gateway lists them: the last list stays while Serve builds."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self._cluster = cluster
        self._name = name
        self.urls: list[str] = []
        self.ids: list[str] = []

    @asynccontextmanager
    async def watched(self, interval_seconds: float = 0.5) -> AsyncIterator[Targets]:
        """Keep the list current for the block."""
        await self._read()
        task = asyncio.create_task(self._watch(interval_seconds))
        try:
            yield self
        finally:
            task.cancel()

    async def _watch(self, interval_seconds: float) -> None:
        while True:
            await asyncio.sleep(interval_seconds)
            await self._read()

    async def _read(self) -> None:
        status = (await self._cluster.ray.status())[self._name]
        if status.replicas:
            reachable = [each for each in status.replicas if each.port is not None]
            self.urls = [url_of(status, each) for each in reachable]
            self.ids = [each.replica for each in reachable]


async def steady_load(
    session: aiohttp.ClientSession,
    targets: Targets,
    body: Mapping[str, object],
    stop: asyncio.Event,
) -> Counter[str]:
    """Send requests to the listed replicas in turn until stopped; how each went, counted."""
    outcomes: Counter[str] = Counter()
    number = 0
    while not stop.is_set():
        number += 1
        if not targets.urls:
            outcomes["no replica is listed"] += 1
            await asyncio.sleep(0.05)
            continue
        url = targets.urls[number % len(targets.urls)]
        try:
            async with session.post(f"{url}/v1/chat/completions", json=body) as response:
                await response.read()
                outcomes[str(response.status)] += 1
        except aiohttp.ClientError as error:
            outcomes[type(error).__name__] += 1
    return outcomes


async def streamed_tokens(
    session: aiohttp.ClientSession, url: str, body: Mapping[str, object]
) -> int | None:
    """Read a stream to its end; the tokens that it says it had, or None where it was cut."""
    tokens, last = 0, ""
    asked = dict(body) | {"stream": True, "stream_options": {"include_usage": True}}
    async with session.post(f"{url}/v1/chat/completions", json=asked) as response:
        try:
            async for line in response.content:
                if line.startswith(b"data: "):
                    last = line.removeprefix(b"data: ").decode().strip()
                    usage = json.loads(last).get("usage") if last.startswith("{") else None
                    tokens = usage["completion_tokens"] if usage else tokens
        except aiohttp.ClientError:
            return None
    return tokens if last == "[DONE]" else None
