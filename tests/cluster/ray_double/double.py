"""The double itself: watches RayServices and pods, and answers for all heads on one port."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import time
from collections.abc import Callable
from typing import Self

from aiohttp import web

from tests.cluster.cluster import Cluster
from tests.cluster.ray_double.api import Api, Object
from tests.cluster.ray_double.behaviour import Behaviour
from tests.cluster.ray_double.played import PlayedService
from tests.cluster.ray_double.serve import Serve

Key = tuple[str, str]
"""Namespace and name of a RayService."""


class RayDouble:
    """Plays KubeRay and Ray for every RayService of a cluster; an async context manager.

    The pods' addresses are of 10.201.0.0/16, since the API server refuses EndpointSlices with
    loopback addresses; nothing listens there. What the heads would answer comes from
    ``dashboard_url_template``. A RayService that is there at the start is played from its
    beginning, after what an earlier double made for it was removed.

    Args:
        namespace: play the RayServices of this one only, where a server is shared by tests.
        behaviour: of every RayService that :meth:`behave` says nothing else about.
        seed: of the drawn delays.
    """

    def __init__(
        self,
        cluster: Cluster,
        *,
        namespace: str = "",
        behaviour: Behaviour | None = None,
        seed: int = 0,
    ) -> None:
        self.behaviour = behaviour or Behaviour()
        self.services: dict[Key, PlayedService] = {}
        self.problems: list[BaseException] = []
        """What went wrong inside the double: look at it when a test fails. Raised at the end."""
        self.readings = 0
        """How often a list of applications was asked for."""
        self._cluster = cluster
        self._within = f"namespaces/{namespace}/" if namespace else ""
        self._source = random.Random(seed)
        self._special: dict[Key, Behaviour] = {}
        self._addresses = itertools.count(1)
        self._leaving: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._stack = contextlib.AsyncExitStack()
        self._api = await self._stack.enter_async_context(Api(self._cluster))
        application = web.Application()
        head = "/{namespace}/{cluster}/api"
        application.router.add_get(f"{head}/serve/applications/", self._applications)
        application.router.add_get(f"{head}/v0/placement_groups", self._placement_groups)
        application.router.add_get(f"{head}/v0/nodes", self._nodes)
        runner = web.AppRunner(application, access_log=None)
        await runner.setup()
        self._stack.push_async_callback(runner.cleanup)
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.port: int = runner.addresses[0][1]
        self._tasks = [
            asyncio.create_task(self._watch_services()),
            asyncio.create_task(self._watch_pods()),
        ]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in (*self._tasks, *self._leaving):
            task.cancel()
        await asyncio.gather(*self._tasks, *self._leaving, return_exceptions=True)
        for service in self.services.values():
            with contextlib.suppress(Exception):  # is among the problems
                await service.stop()
        await self._stack.aclose()
        if self.problems:
            raise ExceptionGroup(
                "the double failed", [each for each in self.problems if isinstance(each, Exception)]
            )

    @property
    def dashboard_url_template(self) -> str:
        """For the operator's setting of this name."""
        return f"http://127.0.0.1:{self.port}/{{namespace}}/{{cluster}}"

    def behave(self, behaviour: Behaviour, *, namespace: str = "", name: str = "") -> None:
        """From now on: one RayService, or all where none is named."""
        if name:
            self._special[namespace, name] = behaviour
        else:
            self.behaviour = behaviour
            self._special.clear()
        for key, service in self.services.items():
            if not name or key == (namespace, name):
                service.behave(behaviour)

    def kill_replica(self, namespace: str, name: str, index: int = 0) -> str:
        """A serving replica dies, its pod stays, another takes its place; returns Ray's id."""
        service = self.services[namespace, name]
        if service.active is None:
            raise LookupError(f"the RayService {namespace}/{name} does not serve yet")
        killed = service.active.serve.kill(time.time(), index)
        service.wake()
        return killed

    def replicas(self, namespace: str, name: str) -> list[str]:
        """Ray's ids of the replicas that serve now, of all clusters of a RayService."""
        service = self.services.get((namespace, name))
        return [
            replica.id
            for cluster in (service.clusters if service else ())
            for replica in cluster.serve.replicas
            if replica.state == "RUNNING"
        ]

    async def _watch_services(self) -> None:
        async for kind, item in self._api.watch(f"/apis/ray.io/v1/{self._within}rayservices"):
            if kind == "LISTED":
                living = {_key(each) for each in item}
                for key in set(self.services) - living:
                    self._forget(key)
                for each in item:
                    self._take(each)
            elif kind == "DELETED":
                self._forget(_key(item))
            else:
                self._take(item)

    async def _watch_pods(self) -> None:
        path = f"/api/v1/{self._within}pods"
        async for kind, item in self._api.watch(path, "ray.io/is-ray-node=yes"):
            pods = [("MODIFIED", each) for each in item] if kind == "LISTED" else [(kind, item)]
            for event, pod in pods:
                for service in self._services_of(pod):
                    service.pod_event(event, pod)
            if kind == "LISTED":
                self._lose_pods_but({each["metadata"]["name"] for each in item})

    def _services_of(self, pod: Object) -> list[PlayedService]:
        """The RayService whose cluster the pod is in: its name is the cluster's without the end."""
        metadata = pod["metadata"]
        cluster = metadata["labels"].get("ray.io/cluster", "")
        service = self.services.get((metadata["namespace"], cluster.rpartition("-")[0]))
        return [] if service is None else [service]

    def _lose_pods_but(self, names: set[str]) -> None:
        for service in self.services.values():
            for cluster in service.clusters:
                for name, pod in list(cluster.pods.items()):
                    # One that was made after the list was asked for may be missing in it.
                    if name not in names and pod.ready:
                        service.pod_event("DELETED", pod.document)

    def _take(self, document: Object) -> None:
        key = _key(document)
        if document["metadata"].get("deletionTimestamp"):
            self._forget(key)
        elif key in self.services:
            self.services[key].changed(document)
        else:
            self.services[key] = PlayedService(
                self._api,
                document,
                behaviour=self._special.get(key, self.behaviour),
                source=random.Random(self._source.random()),
                next_address=self._next_address,
                problem=self.problems.append,
            )

    def _forget(self, key: Key) -> None:
        service = self.services.pop(key, None)
        if service is not None:
            service.deleted()
            task = asyncio.create_task(service.finished())
            self._leaving.add(task)
            task.add_done_callback(self._leaving.discard)

    def _next_address(self) -> str:
        number = next(self._addresses)
        return f"10.201.{number // 250 % 250}.{number % 250 + 1}"

    async def _applications(self, request: web.Request) -> web.StreamResponse:
        self.readings += 1
        return self._answer(request, lambda serve: serve.listing(time.time()))

    async def _placement_groups(self, request: web.Request) -> web.StreamResponse:
        return self._answer(request, lambda serve: _state(serve.placement_groups()))

    async def _nodes(self, request: web.Request) -> web.StreamResponse:
        return self._answer(request, lambda serve: _state(serve.nodes()))

    def _answer(self, request: web.Request, said: Callable[[Serve], Object]) -> web.StreamResponse:
        """What the head of the cluster in the address says."""
        name = request.match_info["cluster"]
        key = (request.match_info["namespace"], name.rpartition("-")[0])
        service = self.services.get(key)
        clusters = service.clusters if service is not None else []
        cluster = next((each for each in clusters if each.name == name), None)
        if (
            service is None
            or cluster is None
            or cluster.head is None
            or service.behaviour.dashboard_away
        ):
            # Nobody listens at a head that is not up.
            if request.transport is not None:
                request.transport.close()
            return web.Response(status=503)
        if cluster.token and request.headers.get("authorization") != f"Bearer {cluster.token}":
            return web.Response(status=401, text="Unauthorized: missing authentication token")
        return web.json_response(said(cluster.serve))


def _state(found: list[Object]) -> Object:
    """An answer of Ray's state API."""
    return {"result": True, "msg": "", "data": {"result": {"total": len(found), "result": found}}}


def _key(document: Object) -> Key:
    return document["metadata"]["namespace"], document["metadata"]["name"]
