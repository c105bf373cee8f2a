"""The double of KubeRay and Ray does what the real ones do, seen from outside."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import aiohttp
import pytest

from pointsman_serving.engines.serve_listing import PoolState, PoolStatus, read_serve_listing
from tests.cluster.cluster import MERGE_PATCH, Cluster
from tests.cluster.ray_double import Behaviour, PodProblem, RayDouble

pytestmark = pytest.mark.usefixtures("kuberay_installed")

FAST = Behaviour(react=0.02, pod_start=0.05, replica_start=0.05, drain=0.05, blank=0.3)
TOKEN = "ray-token"


def container(name: str) -> dict[str, Any]:
    return {"name": name, "image": "example.com/ray:1"}


def application(replicas: int, **args: Any) -> dict[str, Any]:
    deployment = {"name": "engine", "num_replicas": replicas, "max_surge_percent": 100}
    return {
        "name": "chat",
        "route_prefix": "/chat",
        "import_path": "x:build",
        "args": args,
        "deployments": [deployment],
    }


def serve_config(replicas: int, **args: Any) -> str:
    return json.dumps({"applications": [application(replicas, **args)]})


def ray_service(replicas: int = 2, *, image: str = "example.com/ray:1") -> dict[str, Any]:
    worker = {**container("engine"), "image": image}
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayService",
        "metadata": {"name": "chat"},
        "spec": {
            "rayClusterDeletionDelaySeconds": 1,
            "serveConfigV2": serve_config(replicas),
            "rayClusterConfig": {
                "rayVersion": "2.60.0",
                "authOptions": {"mode": "token", "secretName": "chat-access"},
                "headGroupSpec": {
                    "rayStartParams": {},
                    "template": {"spec": {"containers": [container("head")]}},
                },
                "workerGroupSpecs": [
                    {
                        "groupName": "replica",
                        "replicas": 1,
                        "minReplicas": 0,
                        "maxReplicas": 100,
                        "rayStartParams": {},
                        "template": {"spec": {"containers": [worker]}},
                    }
                ],
            },
        },
    }


class Played:
    """One RayService in a namespace, and what can be seen of it."""

    def __init__(self, server: Cluster, namespace: str, ray: RayDouble) -> None:
        self.server, self.namespace, self.ray = server, namespace, ray
        self.services = f"/apis/ray.io/v1/namespaces/{namespace}/rayservices"
        self.path = f"{self.services}/chat"

    def create(self, document: dict[str, Any]) -> None:
        secret = {
            "metadata": {"name": "chat-access"},
            "data": {"auth_token": base64.b64encode(TOKEN.encode()).decode()},
        }
        self.server.request("POST", f"/api/v1/namespaces/{self.namespace}/secrets", secret)
        reply = self.server.request("POST", self.services, document)
        assert 201 == reply.status, reply.body

    def change(self, **spec: Any) -> None:
        reply = self.server.request("PATCH", self.path, {"spec": spec}, content_type=MERGE_PATCH)
        assert 200 == reply.status, reply.body

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = self.server.request("GET", self.path).body.get("status") or {}
        return found

    def active(self) -> str:
        name: str = (self.status().get("activeServiceStatus") or {}).get("rayClusterName", "")
        return name

    def pods(self) -> list[dict[str, Any]]:
        path = f"/api/v1/namespaces/{self.namespace}/pods"
        items: list[dict[str, Any]] = self.server.request("GET", path).body["items"]
        return items

    def workers(self) -> list[dict[str, Any]]:
        return [
            pod for pod in self.pods() if pod["metadata"]["labels"]["ray.io/node-type"] == "worker"
        ]

    def clusters(self) -> list[str]:
        path = f"/apis/ray.io/v1/namespaces/{self.namespace}/rayclusters"
        return [each["metadata"]["name"] for each in self.server.request("GET", path).body["items"]]

    async def reading(self, cluster: str = "", *, token: str = TOKEN) -> PoolStatus:
        template = self.ray.dashboard_url_template
        url = template.format(namespace=self.namespace, cluster=cluster or self.active())
        headers = {"authorization": f"Bearer {token}"}
        async with (
            aiohttp.ClientSession(headers=headers) as session,
            session.get(f"{url}/api/serve/applications/") as response,
        ):
            response.raise_for_status()
            return read_serve_listing(await response.json())["chat"]

    async def serving(self, replicas: int) -> PoolStatus:
        """Wait until so many serve, of the newest configuration alone."""
        chat: PoolStatus = await until(
            self.reading_or_none,
            lambda chat: (
                chat is not None
                and chat.state is PoolState.READY
                and chat.ready == chat.total == replicas == len(chat.replicas)
            ),
        )
        return chat

    async def reading_or_none(self) -> PoolStatus | None:
        try:
            return await self.reading()
        except (aiohttp.ClientError, KeyError):
            return None


async def until(look: Any, is_so: Callable[[Any], bool], *, seconds: float = 30) -> Any:
    deadline = time.monotonic() + seconds
    while True:
        seen = look()
        seen = await seen if asyncio.iscoroutine(seen) else seen
        if is_so(seen):
            return seen
        assert time.monotonic() < deadline, seen
        await asyncio.sleep(0.05)


@pytest.fixture
async def played(api_server: Cluster, namespace: str) -> AsyncIterator[Played]:
    async with RayDouble(api_server, namespace=namespace, behaviour=FAST) as ray:
        yield Played(api_server, namespace, ray)


async def test_service_serves_from_ready_pods_when_created(played: Played) -> None:
    played.create(ray_service(2))
    chat = await played.serving(2)
    assert [played.active()] == played.clusters()
    ready = {pod["metadata"]["name"]: pod["status"]["podIP"] for pod in played.workers()}
    assert ready == {target.instance: target.host for target in chat.targets}
    status = await until(played.status, lambda status: status.get("numServeEndpoints", 0) > 0)
    conditions = {each["type"]: each["status"] for each in status["conditions"]}
    assert {"Ready": "True", "UpgradeInProgress": "False"} == conditions
    generation = played.server.request("GET", played.path).body["metadata"]["generation"]
    assert generation == status["observedGeneration"]


async def test_list_is_refused_when_the_token_is_wrong(played: Played) -> None:
    played.create(ray_service(1))
    await played.serving(1)
    with pytest.raises(aiohttp.ClientResponseError, match="401"):
        await played.reading(token="wrong")


async def test_number_is_followed_when_it_goes_up_and_down(played: Played) -> None:
    played.create(ray_service(1))
    first = await played.serving(1)
    played.change(serveConfigV2=serve_config(3))
    more = await played.serving(3)
    assert {each.replica for each in first.replicas} < {each.replica for each in more.replicas}
    played.change(serveConfigV2=serve_config(1))
    await played.serving(1)
    await until(played.workers, lambda workers: len(workers) == 1)


async def test_replicas_are_replaced_one_by_one_when_arguments_change(played: Played) -> None:
    played.ray.behave(replace(FAST, replica_start=0.3))
    played.create(ray_service(3))
    before = {each.replica for each in (await played.serving(3)).replicas}
    cluster = played.active()
    played.change(serveConfigV2=serve_config(3, speed=2))
    served, living = [3], [3]

    async def look() -> PoolStatus | None:
        chat = await played.reading_or_none()
        if chat is not None and chat.listed:
            served.append(len(chat.targets))
            living.append(sum(each.state != "STOPPING" for each in chat.replicas))
        return chat

    after = await until(
        look,
        lambda chat: (
            chat is not None
            and chat.state is PoolState.READY
            and not before & {each.replica for each in chat.replicas}
        ),
    )
    assert 3 == len(after.replicas)
    assert 3 <= min(served)
    assert 4 == max(living)
    assert cluster == played.active()


async def test_list_is_blank_when_an_application_was_just_deployed(played: Played) -> None:
    played.create(ray_service(1))
    await played.serving(1)
    played.change(serveConfigV2=serve_config(1, speed=2))
    blank = await until(played.reading, lambda chat: not chat.listed)
    assert (PoolState.STARTING, ()) == (blank.state, blank.targets)


async def test_second_cluster_takes_over_when_the_image_changes(played: Played) -> None:
    played.create(ray_service(1))
    await played.serving(1)
    before = played.active()
    document = ray_service(1, image="example.com/ray:2")
    played.change(rayClusterConfig=document["spec"]["rayClusterConfig"])
    upgrading = await until(played.status, lambda status: status.get("pendingServiceStatus"))
    assert before == upgrading["activeServiceStatus"]["rayClusterName"]
    after = await until(played.active, lambda name: name not in ("", before))
    assert {before, after} == set(played.clusters())
    await until(played.clusters, lambda names: names == [after])
    await until(
        played.pods,
        lambda pods: {pod["metadata"]["labels"]["ray.io/cluster"] for pod in pods} == {after},
    )


async def test_another_replica_comes_when_one_dies(played: Played) -> None:
    played.create(ray_service(2))
    await played.serving(2)
    killed = played.ray.kill_replica(played.namespace, "chat")
    chat = await played.serving(2)
    assert killed not in {each.replica for each in chat.replicas}
    assert killed in {each.replica for each in chat.dead}


async def test_pod_is_terminating_and_then_replaced_when_deleted(played: Played) -> None:
    played.ray.behave(Behaviour(react=0.02, pod_start=0.1, replica_start=0.1, drain=1, blank=0.1))
    played.create(ray_service(1))
    await played.serving(1)
    name = played.workers()[0]["metadata"]["name"]
    path = f"/api/v1/namespaces/{played.namespace}/pods/{name}"
    played.server.request("DELETE", path)
    assert played.server.request("GET", path).body["metadata"]["deletionTimestamp"]
    await until(lambda: played.server.request("GET", path).status, lambda status: status == 404)
    await played.serving(1)


@pytest.mark.parametrize("problem", list(PodProblem))
async def test_pods_show_the_problem_and_recover_when_it_is_gone(
    played: Played, problem: PodProblem
) -> None:
    played.ray.behave(Behaviour(pod_problem=problem))
    played.create(ray_service(1))
    shown = await until(
        played.workers, lambda pods: pods and problem.value in json.dumps(pods[0]["status"])
    )
    assert "True" not in {
        each["status"] for each in shown[0]["status"]["conditions"] if each["type"] == "Ready"
    }
    played.ray.behave(FAST)
    await played.serving(1)


async def test_old_replicas_serve_on_when_a_deployment_fails(played: Played) -> None:
    played.create(ray_service(1))
    before = await played.serving(1)
    error = "RuntimeError: no such model"
    played.ray.behave(Behaviour(deploy_error=error, blank=0.1))
    played.change(serveConfigV2=serve_config(1, model="missing"))
    failed = await until(
        played.reading, lambda chat: chat.listed and chat.state is PoolState.FAILED
    )
    assert error == failed.message
    assert before.targets == failed.targets


async def test_nothing_is_left_when_the_service_is_deleted(played: Played) -> None:
    played.create(ray_service(2))
    await played.serving(2)
    played.server.request("DELETE", played.path)
    await until(played.clusters, lambda names: not names)
    await until(played.pods, lambda pods: not pods)


async def test_replicas_come_and_go_when_it_flaps(played: Played) -> None:
    played.ray.behave(
        Behaviour(pod_start=0.05, replica_start=0.05, drain=0.05, blank=0.1, flap_every=0.2)
    )
    played.create(ray_service(2))
    seen: set[str] = set()

    def look() -> set[str]:
        seen.update(played.ray.replicas(played.namespace, "chat"))
        return seen

    await until(look, lambda ids: len(ids) >= 5)
