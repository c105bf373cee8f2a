"""Pools of Simulated engines on real Ray Serve."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp
import openai
import psutil
import pytest

from pointsman_serving.cluster.guard import descendants
from pointsman_serving.cluster.serve_api import ServeApi, ServeApiError
from pointsman_serving.engines.application import serve_application
from pointsman_serving.engines.serve_listing import PoolState

from .conftest import (
    SOURCES,
    Targets,
    ray_serve_pool,
    steady_load,
    streamed_tokens,
    url_of,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .conftest import Cluster

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(240),
    pytest.mark.asyncio(loop_scope="session"),
]

# An iteration, and with it a token of every stream, takes so long.
STEP_SECONDS = 0.05
PACE = (f"--iteration-seconds={STEP_SECONDS}",)


def chat(tokens: int, *, model: str, stream: bool = False) -> dict[str, object]:
    return {
        "model": model,
        "messages": [{"role": "user", "content": "Count."}],
        "max_tokens": tokens,
        "ignore_eos": True,
        "stream": stream,
    }


@pytest.mark.pain_11
async def test_every_replica_serves_on_its_own_address_when_deployed(
    cluster: Cluster, http: aiohttp.ClientSession
) -> None:
    pool = ray_serve_pool("addresses", "Simulated", replicas=2)
    async with cluster.pool(pool) as status:
        assert 2 == len({(each.host, each.port) for each in status.replicas})
        for replica in status.replicas:
            url = url_of(status, replica)
            async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as client:
                models = await client.models.list()
                assert ["addresses"] == [model.id for model in models.data]
                answer = await client.chat.completions.create(
                    model="addresses",
                    messages=[{"role": "user", "content": "Hello"}],
                    max_tokens=5,
                )
                assert answer.usage is not None
                assert 5 == answer.usage.completion_tokens
            async with http.get(f"{url}/-/healthz") as health:
                assert (200, "success") == (health.status, await health.text())
            async with http.get(f"{url}/health") as health:
                assert 200 == health.status
            async with http.get(f"{url}/metrics") as metrics:
                assert "vllm:num_requests_running" in await metrics.text()


@pytest.mark.parametrize("stream", [False, True])
async def test_load_is_in_the_answers_header_when_asked_for(
    cluster: Cluster, http: aiohttp.ClientSession, stream: bool
) -> None:
    async with (
        cluster.pool(ray_serve_pool("header", "Simulated")) as status,
        http.post(
            f"{url_of(status)}/v1/chat/completions",
            json=chat(2, model="header", stream=stream),
            headers={"endpoint-load-metrics-format": "JSON"},
        ) as answer,
    ):
        form, _, report = answer.headers["endpoint-load-metrics"].partition(" ")
        assert "JSON" == form
        assert json.loads(report)["named_metrics"].keys() >= {"num_requests_waiting"}


async def test_replicas_share_a_revision_and_differ_in_instance_when_deployed(
    cluster: Cluster, http: aiohttp.ClientSession
) -> None:
    pool = ray_serve_pool("named", "Simulated", replicas=2)
    deployed = serve_application(pool)["args"]
    assert isinstance(deployed, dict)
    async with cluster.pool(pool) as status:
        urls = [url_of(status, replica) for replica in status.replicas]
        named = []
        for url in urls:
            for path in ("/v1/models", "/-/healthz", "/nowhere"):
                async with http.get(f"{url}{path}") as answer:
                    named.append(
                        (
                            answer.headers["x-pointsman-revision"],
                            answer.headers["x-pointsman-instance"],
                        )
                    )
        assert {deployed["revision"]} == {revision for revision, _ in named}
        assert 2 == len({instance for _, instance in named})
        async with http.post(
            f"{urls[0]}/v1/chat/completions",
            json=chat(2, model="named"),
            headers={"x-pointsman-revision": "another"},
        ) as answer:
            assert (409, "revision_mismatch") == (
                answer.status,
                (await answer.json())["error"]["code"],
            )


@pytest.mark.pain_11
async def test_twelve_requests_run_together_when_there_are_slots(
    cluster: Cluster, http: aiohttp.ClientSession
) -> None:
    async with cluster.pool(ray_serve_pool("together", "Simulated", args=PACE)) as status:
        url = url_of(status)

        async def seconds(count: int) -> float:
            start = time.monotonic()
            body = chat(30, model="together")
            tokens = await asyncio.gather(*[streamed_tokens(http, url, body) for _ in range(count)])
            assert [30] * count == tokens
            return time.monotonic() - start

        alone = await seconds(1)
        # In fives, as Serve's default has it, twelve would take three times as long as one.
        assert 2 * alone > await seconds(12)


@pytest.mark.pain_1
@pytest.mark.pain_12
async def test_nothing_fails_and_no_stream_ends_when_an_argument_changes(
    cluster: Cluster, http: aiohttp.ClientSession
) -> None:
    name = "changed"
    first = ray_serve_pool(name, "Simulated", args=PACE, replicas=2)
    second = ray_serve_pool(name, "Simulated", args=(*PACE, "--seed=2"), replicas=2)
    async with cluster.pool(first), Targets(cluster, name).watched() as targets:
        before = set(targets.ids)
        stop = asyncio.Event()
        tokens = 300
        streams = [
            asyncio.create_task(streamed_tokens(http, url, chat(tokens, model=name)))
            for url in targets.urls * 3
        ]
        loads = [
            asyncio.create_task(steady_load(http, targets, chat(2, model=name), stop))
            for _ in range(4)
        ]
        await asyncio.sleep(0.5)
        await cluster.put(second)
        await cluster.until(name, PoolState.READY)
        # The list of the old replicas may be one interval old.
        await asyncio.sleep(1)
        stop.set()
        outcomes = await asyncio.gather(*loads)
        streamed = await asyncio.gather(*streams)
        assert before.isdisjoint(targets.ids)
    assert {"200"} == {outcome for each in outcomes for outcome in each}
    assert sum(each["200"] for each in outcomes) > 100
    assert [tokens] * 6 == streamed


@pytest.mark.pain_2
async def test_replica_leaves_the_list_within_seconds_when_killed(cluster: Cluster) -> None:
    async with cluster.pool(ray_serve_pool("killed", "Simulated", replicas=2)) as status:
        victim = status.replicas[0]
        assert victim.pid is not None
        os.kill(victim.pid, signal.SIGKILL)
        start = time.monotonic()
        async with Targets(cluster, "killed").watched(0.1) as targets:
            while victim.replica in targets.ids:
                assert time.monotonic() - start < 15
                await asyncio.sleep(0.1)
            assert status.replicas[1].replica in targets.ids
        again = await cluster.until("killed", PoolState.READY)
        assert 2 == again.ready


@pytest.mark.pain_16
async def test_reason_is_told_when_an_argument_is_wrong(cluster: Cluster) -> None:
    pool = ray_serve_pool("wrong", "Simulated", args=["--no-such-flag=1"])
    await cluster.put(pool)
    try:
        end = time.monotonic() + 90
        while (status := (await cluster.ray.status())["wrong"]).state is not PoolState.FAILED:
            assert time.monotonic() < end, status
            await asyncio.sleep(0.3)
        assert "--no-such-flag" in status.message
    finally:
        await cluster.remove("wrong")


async def test_ray_refuses_when_the_token_is_wrong(cluster: Cluster) -> None:
    async with ServeApi(cluster.ray.dashboard_url, token="0" * 64) as api:
        with pytest.raises(ServeApiError, match=r"answered GET .* with 40[13]"):
            await api.status()


async def test_ray_refuses_when_the_configuration_is_wrong(cluster: Cluster) -> None:
    with pytest.raises(ServeApiError, match=r"answered PUT .* with 400"):
        await cluster.ray.deploy([{"name": "nothing else"}])


async def test_only_serves_own_ports_are_open_to_others_when_host_is_loopback(
    cluster: Cluster,
) -> None:
    async with cluster.pool(ray_serve_pool("ports", "Simulated")) as status:
        replicas = {each.pid for each in status.replicas}
        ours = descendants(os.getpid())
        for socket in psutil.net_connections(kind="tcp"):
            if socket.pid not in ours or socket.status != psutil.CONN_LISTEN:
                continue
            if not socket.laddr.ip.removeprefix("::ffff:").startswith(("127.", "::1")):
                # Calls between Serve deployments, which Ray offers no address for.
                assert socket.pid in replicas, socket


async def test_ray_ends_when_its_starter_is_killed(tmp_path: Path) -> None:
    program = (
        "import asyncio, sys\n"
        "from pointsman_serving.cluster.local_ray import start_local_ray\n"
        "async def main():\n"
        "    ray = await start_local_ray()\n"
        "    print(ray.logs, flush=True)\n"
        "    await asyncio.sleep(600)\n"
        "asyncio.run(main())\n"
    )
    output = tmp_path / "output"
    paths = os.pathsep.join(map(str, SOURCES))
    starter = started(program, output, os.environ | {"PYTHONPATH": paths})
    while not output.read_text().endswith("\n"):
        assert starter.poll() is None
        await asyncio.sleep(0.2)
    below = descendants(starter.pid)
    assert len(below) > 5
    starter.kill()
    starter.wait()
    end = time.monotonic() + 20
    while any(running(process) for process in below):
        assert time.monotonic() < end
        await asyncio.sleep(0.2)


def started(program: str, output: Path, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    with output.open("wb") as file:
        return subprocess.Popen([sys.executable, "-c", program], stdout=file, env=environment)


def running(process: int) -> bool:
    try:
        stat = Path(f"/proc/{process}/stat").read_text(encoding="utf-8")
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"
