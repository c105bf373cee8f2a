"""A replica over several hosts on real Ray Serve: one place for requests, one life."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
import pytest_asyncio

from pointsman_api.modelpool import ModelPool
from pointsman_operator.ray_groups import fetch_groups
from pointsman_serving.cluster.local_ray import LocalRaySettings, start_local_ray
from pointsman_serving.engines.open_requests import busy_processes

from .conftest import READY_SECONDS, SOURCES, ray_serve_pool
from .ray_hosts import RayHosts

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from pointsman_serving.engines.serve_listing import PoolStatus, ServeTarget

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.asyncio(loop_scope="module"),
]

HEAD = "127.0.0.9"
ADDRESSES = ("127.0.0.2", "127.0.0.3", "127.0.0.4")
POOL = "spread"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def hosts(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RayHosts]:
    """Three nodes with a place each, and a head without one."""
    # Other nodes could not reach a head that has Ray's own name for this machine alone.
    settings = LocalRaySettings(host=HEAD, python_path=SOURCES, min_drain_seconds=2.0, cpus=1)
    folder = str(tmp_path_factory.mktemp("hosts"))
    async with await start_local_ray(settings) as ray:
        with RayHosts(ray, folder) as found:
            for address in ADDRESSES:
                await found.add(address)
            yield found


def spread_pool() -> ModelPool:
    """A Simulated pool whose one replica takes two hosts, with 20 tokens a second."""
    pool = ray_serve_pool(POOL, "Simulated", args=("--iteration-seconds=0.05",))
    document: dict[str, Any] = pool.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    document["spec"]["backend"]["rayServe"]["parallelism"] = {"hosts": 2}
    return ModelPool.model_validate(document)


async def until_serving(hosts: RayHosts, *, but: str = "") -> ServeTarget:
    """Wait for the one replica, another than that of this name."""
    deadline = time.monotonic() + READY_SECONDS
    status: PoolStatus | None = None
    while time.monotonic() < deadline:
        status = (await hosts.ray.status()).get(POOL)
        new = [each for each in (status.targets if status else ()) if each.replica != but]
        if new:
            return new[0]
        await asyncio.sleep(0.1)
    pytest.fail(f"no new replica serves: {status}")


async def pods_of(hosts: RayHosts, replica: str) -> tuple[str, ...]:
    """The addresses of a replica's hosts as the operator is told them."""
    ray = hosts.ray
    groups = await fetch_groups(ray.dashboard_url, ray.token, application=POOL)
    return groups[replica]


def stream_of(target: ServeTarget, session: aiohttp.ClientSession, tokens: int) -> Any:
    """A long answer."""
    body = {
        "model": POOL,
        "messages": [{"role": "user", "content": "Count."}],
        "max_tokens": tokens,
        "ignore_eos": True,
        "stream": True,
    }
    url = f"http://{target.host}:{target.port}/{POOL}/v1/chat/completions"
    return session.post(url, json=body)


async def test_replica_takes_two_hosts_and_answers_on_one_when_it_is_spread(
    hosts: RayHosts,
) -> None:
    await hosts.deploy(spread_pool())
    target = await until_serving(hosts)
    pods = await pods_of(hosts, target.replica)
    assert 2 == len(set(pods))
    assert target.host == pods[0]
    async with aiohttp.ClientSession() as session, stream_of(target, session, 3) as response:
        assert 200 == response.status
        assert (await response.text()).rstrip().endswith("data: [DONE]")


async def test_end_of_every_host_is_held_back_when_a_request_is_open(hosts: RayHosts) -> None:
    target = await until_serving(hosts)
    folders = [
        Path(hosts.run_folder(address)) / "open" for address in await pods_of(hosts, target.replica)
    ]

    async def until_busy(wanted: int) -> None:
        async with asyncio.timeout(10):
            while any(len(busy_processes(folder)) != wanted for folder in folders):
                await asyncio.sleep(0.05)

    async with aiohttp.ClientSession() as session, stream_of(target, session, 60) as response:
        await until_busy(1)
        await response.read()
    await until_busy(0)


async def test_whole_replica_is_replaced_when_a_member_dies(hosts: RayHosts) -> None:
    target = await until_serving(hosts)
    _, second = await pods_of(hosts, target.replica)
    async with aiohttp.ClientSession() as session, stream_of(target, session, 2000) as response:
        await response.content.readline()
        killed = time.monotonic()
        hosts.kill(second)
        # A replica that lacks a part says nothing more.
        with pytest.raises(aiohttp.ClientError):
            await response.read()
        assert time.monotonic() - killed < 10.0
    successor = await until_serving(hosts, but=target.replica)
    pods = await pods_of(hosts, successor.replica)
    assert second not in pods
    assert 2 == len(set(pods) & set(ADDRESSES))
    async with aiohttp.ClientSession() as session, stream_of(successor, session, 3) as response:
        assert 200 == response.status
    await hosts.remove_all()
