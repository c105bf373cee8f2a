from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable
from typing import Any

import structlog
from aiohttp import web

from pointsman_operator.ray_api import RayApi
from pointsman_operator.ray_groups import groups_of
from pointsman_operator.ray_polls import RayPolls

KEY = ("default", "chat")


class Clusters:
    """Stands for a mirror: what is found under the pool."""

    def __init__(self, *items: dict[str, Any]) -> None:
        self.items = list(items)

    def find(self, index: str, value: object) -> list[dict[str, Any]]:
        return self.items if value == KEY else []


def cluster(name: str) -> dict[str, Any]:
    return {
        "metadata": {"name": name, "namespace": "default"},
        "status": {"head": {"podIP": "127.0.0.1"}},
    }


class Head:
    """A Ray head that says what it is told to."""

    def __init__(self) -> None:
        self.applications: dict[str, Any] = {}
        self.token = "right"
        self.asked = 0
        self.asked_for_groups = 0
        self.down = False
        self.groups_down = False
        self.former_host = ""

    async def answer(self, request: web.Request) -> web.Response:
        self.asked += 1
        if self.down:
            return web.Response(status=500)
        former = self.former_host and request.host.startswith(self.former_host)
        if former or request.headers.get("authorization") != f"Bearer {self.token}":
            return web.Response(status=401)
        return web.json_response({"applications": self.applications, "target_groups": []})

    async def state(self, request: web.Request) -> web.Response:
        self.asked_for_groups += 1
        if self.groups_down:
            return web.Response(status=503)
        if request.headers.get("authorization") != f"Bearer {self.token}":
            return web.Response(status=401)
        nodes = [
            {"node_id": "aa", "node_ip": "10.0.0.1", "state": "ALIVE"},
            {"node_id": "bb", "node_ip": "10.0.0.2", "state": "ALIVE"},
        ]
        group = {
            "name": "SERVE_REPLICA::chat#engine#r0",
            "state": "CREATED",
            "bundles": [{"node_id": "aa"}, {"node_id": "bb"}],
        }
        found = nodes if request.path.endswith("/nodes") else [group]
        return web.json_response({"data": {"result": {"result": found}}})


@contextlib.asynccontextmanager
async def polling(
    head: Head, clusters: Clusters, *, token: str | None = "right"
) -> AsyncIterator[tuple[RayPolls, list[str]]]:
    app = web.Application()
    app.router.add_get("/api/serve/applications/", head.answer)
    app.router.add_get("/api/v0/placement_groups", head.state)
    app.router.add_get("/api/v0/nodes", head.state)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    told: list[str] = []
    api = RayApi(timeout_seconds=1.0)
    polls = RayPolls(
        api,
        clusters=lambda: clusters,  # type: ignore[arg-type, return-value]
        pods=lambda: clusters,  # type: ignore[arg-type, return-value]
        token=lambda key: token,
        wrong_token=lambda key: told.append("wrong token"),
        changed=lambda key: told.append("changed"),
        url_template=f"http://{{host}}:{runner.addresses[0][1]}",
        source=random.Random(1),
    )
    task = asyncio.create_task(polls.queue.run())
    try:
        yield polls, told
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await api.close()
        await runner.cleanup()


async def until(condition: Callable[[], object], seconds: float = 5.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


async def test_tells_a_reading_once_when_it_stays_the_same() -> None:
    head = Head()
    async with polling(head, Clusters(cluster("one"))) as (polls, told):
        polls.follow(KEY, moving=True)
        await until(lambda: head.asked >= 3)
        assert ["changed"] == told
        assert {"one"} == set(polls.readings(KEY))


async def test_asks_each_second_when_something_moves_and_each_five_when_not() -> None:
    head = Head()
    async with polling(head, Clusters(cluster("one"))) as (polls, _):
        polls.follow(KEY, moving=True)
        await asyncio.sleep(2.6)
        assert 3 == head.asked
        polls.follow(KEY, moving=False)
        await asyncio.sleep(2.5)
        assert head.asked <= 4


async def test_reads_the_new_cluster_when_the_former_one_refuses_the_new_token() -> None:
    head = Head()
    head.former_host = "localhost"
    former = cluster("a-former")
    former["status"]["head"]["podIP"] = "localhost"
    async with polling(head, Clusters(former, cluster("new"))) as (polls, told):
        polls.follow(KEY, moving=True)
        await until(lambda: head.asked >= 4)
        assert {"new"} == set(polls.readings(KEY))
        assert "wrong token" not in told


async def test_doubts_a_token_once_when_every_head_refuses_it() -> None:
    head = Head()
    async with polling(head, Clusters(cluster("one")), token="old") as (polls, told):
        polls.follow(KEY, moving=True)
        await until(lambda: head.asked >= 3)
        assert ["wrong token"] == told


async def test_keeps_the_last_reading_when_the_head_is_away() -> None:
    head = Head()
    async with polling(head, Clusters(cluster("one"))) as (polls, told):
        polls.follow(KEY, moving=True)
        await until(lambda: polls.readings(KEY))
        head.down = True
        asked = head.asked
        await until(lambda: head.asked > asked + 1)
        assert {"one"} == set(polls.readings(KEY))
        assert ["changed"] == told


async def test_forgets_a_reading_when_its_cluster_is_gone() -> None:
    head, clusters = Head(), Clusters(cluster("old"), cluster("new"))
    async with polling(head, clusters) as (polls, told):
        polls.follow(KEY, moving=True)
        await until(lambda: len(polls.readings(KEY)) == 2)
        clusters.items = [cluster("new")]
        await until(lambda: set(polls.readings(KEY)) == {"new"})
        await until(lambda: told == ["changed", "changed"])
        clusters.items = []
        await until(lambda: not polls.readings(KEY))
        asked = head.asked
        await asyncio.sleep(1.3)
        assert asked == head.asked


async def test_says_so_when_the_token_is_refused() -> None:
    head = Head()
    async with polling(head, Clusters(cluster("one")), token="wrong") as (polls, told):
        polls.follow(KEY, moving=True)
        await until(lambda: told)
        assert "wrong token" == told[0]
        assert {} == polls.readings(KEY)


async def test_says_once_which_living_clusters_are_not_asked_when_there_is_no_token() -> None:
    head, going = Head(), cluster("going")
    going["metadata"]["deletionTimestamp"] = "2026-11-01T00:00:00Z"
    clusters = Clusters(going)
    with structlog.testing.capture_logs() as logs:
        async with polling(head, clusters, token=None) as (polls, _):
            polls.follow(KEY, moving=True)
            await asyncio.sleep(0.3)
            assert [] == logs
            clusters.items.append(cluster("one"))
            await asyncio.sleep(2.6)
            assert [["one"]] == [item["clusters"] for item in logs]
            assert 0 == head.asked


def application(bundles: int) -> dict[str, Any]:
    deployment = {"name": "engine", "placement_group_bundles": [{"CPU": 1.0}] * bundles}
    return {"chat": {"status": "RUNNING", "deployed_app_config": {"deployments": [deployment]}}}


async def test_asks_for_the_pods_of_a_replica_only_when_it_has_several() -> None:
    head = Head()
    head.applications = application(bundles=0)
    async with polling(head, Clusters(cluster("one"))) as (polls, told):
        polls.follow(KEY, moving=True)
        await until(lambda: polls.readings(KEY))
        assert 0 == head.asked_for_groups
        head.applications = application(bundles=2)
        await until(lambda: len(told) == 2)
        assert {"r0": ("10.0.0.1", "10.0.0.2")} == groups_of(polls.readings(KEY)["one"])


async def test_keeps_the_pods_of_a_replica_when_ray_does_not_name_them() -> None:
    head = Head()
    head.applications = application(bundles=2)
    async with polling(head, Clusters(cluster("one"))) as (polls, told):
        polls.follow(KEY, moving=True)
        await until(lambda: polls.readings(KEY))
        head.groups_down = True
        asked = head.asked_for_groups
        await until(lambda: head.asked_for_groups > asked + 2)
        assert {"r0": ("10.0.0.1", "10.0.0.2")} == groups_of(polls.readings(KEY)["one"])
        assert ["changed"] == told
