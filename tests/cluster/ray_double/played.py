"""One played RayService: its RayClusters, their pods and their Serve."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import random
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NoReturn

import yaml

from tests.cluster.ray_double import documents
from tests.cluster.ray_double.api import Api, Object
from tests.cluster.ray_double.behaviour import Behaviour
from tests.cluster.ray_double.serve import Serve


@dataclass(slots=True, kw_only=True)
class PlayedPod:
    """A pod of ours."""

    name: str
    document: Object
    address: str
    ready_at: float
    group: str | None
    ready: bool = False
    broken: str = ""
    """The problem that its status tells."""
    going: bool = False
    gone_at: float | None = None
    idle_since: float | None = None


@dataclass(slots=True, kw_only=True)
class PlayedCluster:
    """A RayCluster of ours."""

    document: Object
    serve: Serve
    token: str
    pods: dict[str, PlayedPod] = field(default_factory=dict)
    config_text: str = ""
    delete_at: float | None = None

    @property
    def name(self) -> str:
        """Of the RayCluster."""
        return str(self.document["metadata"]["name"])

    @property
    def hash(self) -> str:
        """Of what a new cluster is needed for when it changes."""
        return documents.cluster_hash(self.document["spec"])

    @property
    def head(self) -> PlayedPod | None:
        """The head's pod that is ready."""
        heads = (each for each in self.pods.values() if each.group is None and each.ready)
        return next(heads, None)


class PlayedService:
    """Does for one RayService what KubeRay, Ray, the kubelet and the garbage collector do."""

    def __init__(
        self,
        api: Api,
        document: Object,
        *,
        behaviour: Behaviour,
        source: random.Random,
        next_address: Callable[[], str],
        problem: Callable[[BaseException], None],
    ) -> None:
        self.document = document
        self.behaviour = behaviour
        self.active: PlayedCluster | None = None
        self.pending: PlayedCluster | None = None
        self.old: list[PlayedCluster] = []
        self._api, self._source, self._next_address = api, source, next_address
        self._wake = asyncio.Event()
        self._deleted = False
        self._seen_generation = 0
        self._react_at = 0.0
        self._status: Object = {}
        self._problem = problem
        self._task = asyncio.create_task(self._run())

    @property
    def clusters(self) -> list[PlayedCluster]:
        """All that exist, the serving one first."""
        return [each for each in (self.active, self.pending, *self.old) if each is not None]

    def changed(self, document: Object) -> None:
        """The RayService is now like this."""
        self.document = document
        if document["metadata"]["generation"] != self._seen_generation:
            self.wake()

    def deleted(self) -> None:
        """The RayService is gone: everything of it goes."""
        self._deleted = True
        self.wake()

    def pod_event(self, kind: str, pod: Object) -> None:
        """Somebody deletes, or has deleted, one of the pods."""
        name = pod["metadata"]["name"]
        for cluster in self.clusters:
            known = cluster.pods.get(name)
            if known is None:
                continue
            if kind == "DELETED":
                del cluster.pods[name]
            elif pod["metadata"].get("deletionTimestamp") and not known.going:
                known.going, known.ready = True, False
                known.gone_at = time.time() + cluster.serve.drawn(self.behaviour.drain)
            else:
                continue
            self.wake()

    def behave(self, behaviour: Behaviour) -> None:
        """From now on like this."""
        self.behaviour = behaviour
        for cluster in self.clusters:
            cluster.serve.behaviour = behaviour
            # A deployment that failed is tried again when its cause is gone.
            if not behaviour.deploy_error:
                cluster.serve.error = ""
        self.wake()

    def wake(self) -> None:
        """Look again now."""
        self._wake.set()

    async def stop(self) -> None:
        """End the playing; the objects stay."""
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    async def finished(self) -> None:
        """Wait until everything of a deleted RayService is gone."""
        await self._task

    async def _run(self) -> None:
        try:
            await self._remove_leftovers()
            while not self._deleted:
                due = await self._step()
                delay = None if due is None else max(0.01, due - time.time())
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(delay):
                        await self._wake.wait()
                self._wake.clear()
            await asyncio.gather(*(self._remove(each) for each in self.clusters))
        except Exception as error:
            self._problem(error)
            raise

    async def _remove_leftovers(self) -> None:
        metadata = self.document["metadata"]
        selector = f"?labelSelector=ray.io/originated-from-cr-name={metadata['name']}"
        path = f"/apis/ray.io/v1/namespaces/{metadata['namespace']}/rayclusters"
        _, listing = await self._api.call("GET", path + selector)
        for cluster in listing.get("items") or ():
            name = cluster["metadata"]["name"]
            await self._api.delete(f"{path}/{name}")
            pods = f"/api/v1/namespaces/{metadata['namespace']}/pods"
            _, found = await self._api.call("GET", f"{pods}?labelSelector=ray.io/cluster={name}")
            for pod in found["items"]:
                await self._api.delete(f"{pods}/{pod['metadata']['name']}", grace_seconds=0)

    async def _step(self) -> float | None:
        """Do what is due; returns when something is due next."""
        now = time.time()
        due = await self._follow_spec(now)
        times = [] if due is None else [due]
        for cluster in self.clusters:
            if cluster.delete_at is None:
                self._deploy(cluster, now)
            times += await self._step_cluster(cluster, now)
        for cluster in list(self.old):
            if cluster.delete_at is not None and cluster.delete_at <= now:
                self.old.remove(cluster)
                await self._remove(cluster)
            elif cluster.delete_at is not None:
                times.append(cluster.delete_at)
        if self.pending is not None and self.pending.serve.is_serving:
            self._promote(now)
            times.append(now)
        await self._write_status(now)
        return min(times, default=None)

    async def _follow_spec(self, now: float) -> float | None:
        generation = self.document["metadata"]["generation"]
        if generation == self._seen_generation:
            return None
        if not self._react_at:
            self._react_at = now + self._source.uniform(0.5, 1.5) * self.behaviour.react
        if now < self._react_at:
            return self._react_at
        self._react_at = 0.0
        self._seen_generation = generation
        wanted = documents.cluster_hash(self.document["spec"]["rayClusterConfig"])
        if self.pending is not None and self.pending.hash != wanted:
            self._retire(self.pending, now)
            self.pending = None
        current = self.pending or self.active
        if current is None or current.hash != wanted:
            self.pending = await self._new_cluster()
        return now

    def _deploy(self, cluster: PlayedCluster, now: float) -> None:
        """Tell Ray the configuration; only the coming cluster is told while there are two."""
        text = self.document["spec"].get("serveConfigV2", "")
        if self._react_at or cluster.head is None or text == cluster.config_text:
            return
        if cluster is self.active and self.pending is not None:
            return
        cluster.config_text = text
        cluster.serve.deploy(yaml.safe_load(text)["applications"][0], now)

    def _promote(self, now: float) -> None:
        if self.active is not None:
            self._retire(self.active, now)
        self.active, self.pending = self.pending, None

    def _retire(self, cluster: PlayedCluster, now: float) -> None:
        delay = self.document["spec"].get("rayClusterDeletionDelaySeconds", 60)
        cluster.delete_at = now + delay
        self.old.append(cluster)

    async def _new_cluster(self) -> PlayedCluster:
        metadata = self.document["metadata"]
        name = f"{metadata['name']}-{_suffix()}"
        document = documents.ray_cluster(self.document, name)
        path = f"/apis/ray.io/v1/namespaces/{metadata['namespace']}/rayclusters"
        created = await self._must("POST", path, document)
        pods: dict[str, PlayedPod] = {}

        def node_of(pod: str) -> tuple[str, bool] | None:
            known = pods.get(pod)
            return None if known is None else (known.address, known.ready)

        serve = Serve(source=self._source, behaviour=self.behaviour, node_of=node_of)
        return PlayedCluster(document=created, serve=serve, token=await self._token(), pods=pods)

    async def _token(self) -> str:
        options = self.document["spec"]["rayClusterConfig"].get("authOptions") or {}
        if options.get("mode") != "token":
            return ""
        namespace = self.document["metadata"]["namespace"]
        path = f"/api/v1/namespaces/{namespace}/secrets/{options['secretName']}"
        secret = await self._must("GET", path)
        return base64.b64decode(secret["data"]["auth_token"]).decode("ascii")

    async def _step_cluster(self, cluster: PlayedCluster, now: float) -> list[float]:
        due = cluster.serve.advance(now)
        times = [] if due is None else [due]
        await self._place(cluster, now)
        for pod in list(cluster.pods.values()):
            times += await self._step_pod(cluster, pod, now)
        # A pod that became ready lets its replica start.
        due = cluster.serve.advance(now)
        return times if due is None else [*times, due]

    async def _place(self, cluster: PlayedCluster, now: float) -> None:
        """A head, and worker pods for each replica; idle workers go."""
        living = {name: pod for name, pod in cluster.pods.items() if not pod.going}
        if not any(pod.group is None for pod in living.values()):
            await self._new_pod(cluster, None, now)
        taken = {pod for replica in cluster.serve.replicas for pod in replica.pods}
        idle = [name for name, pod in living.items() if pod.group and name not in taken]
        group = cluster.document["spec"]["workerGroupSpecs"][0]["groupName"]
        for replica in cluster.serve.replicas:
            while len(replica.pods) < cluster.serve.hosts:
                chosen = idle.pop() if idle else await self._new_pod(cluster, group, now)
                if replica.pod:
                    replica.more.append(chosen)
                else:
                    replica.pod = chosen
                taken.add(chosen)
        for name, pod in living.items():
            pod.idle_since = None if name in taken or pod.group is None else pod.idle_since or now

    async def _new_pod(self, cluster: PlayedCluster, group: str | None, now: float) -> str:
        kind = "head" if group is None else f"{group}-worker"
        name = f"{cluster.name}-{kind}-{_suffix()}"
        document = documents.pod(cluster.document, name, group=group)
        created = await self._must("POST", _pods(document), document)
        cluster.pods[name] = PlayedPod(
            name=name,
            document=created,
            address=self._next_address(),
            ready_at=now + cluster.serve.drawn(self.behaviour.pod_start),
            group=group,
        )
        return name

    async def _step_pod(self, cluster: PlayedCluster, pod: PlayedPod, now: float) -> list[float]:
        path = f"{_pods(pod.document)}/{pod.name}"
        if pod.going:
            if pod.gone_at is not None and pod.gone_at <= now:
                await self._api.delete(path, grace_seconds=0)
                cluster.pods.pop(pod.name, None)
                return [now]
            return [pod.gone_at or now]
        idle_until = (pod.idle_since or now) + self.behaviour.worker_idle
        if pod.idle_since is not None and idle_until <= now:
            await self._api.delete(path)
            return []
        times = [] if pod.idle_since is None else [idle_until]
        if pod.ready:
            return times
        problem = self.behaviour.pod_problem if pod.group else None
        if problem is not None:
            if pod.broken != problem:
                pod.broken = problem
                status = documents.broken_status(pod.document, problem, pod.address, now)
                await self._api.patch(f"{path}/status", {"status": status})
        elif pod.ready_at <= now:
            pod.broken = ""
            status = documents.running_status(pod.document, pod.address, now)
            code, _ = await self._api.patch(f"{path}/status", {"status": status})
            pod.ready = code == 200
            times.append(now)
        else:
            times.append(pod.ready_at)
        return times

    async def _remove(self, cluster: PlayedCluster) -> None:
        """What the garbage collector does for a RayCluster, and the kubelet for its pods."""
        metadata = cluster.document["metadata"]
        path = f"/apis/ray.io/v1/namespaces/{metadata['namespace']}/rayclusters/{cluster.name}"
        await self._api.delete(path)
        pods, cluster.pods = dict(cluster.pods), {}
        for pod in pods.values():
            await self._api.delete(f"{_pods(pod.document)}/{pod.name}")
        await asyncio.sleep(cluster.serve.drawn(self.behaviour.drain))
        for pod in pods.values():
            await self._api.delete(f"{_pods(pod.document)}/{pod.name}", grace_seconds=0)

    async def _write_status(self, now: float) -> None:
        worked_on = self.pending or self.active
        application = None
        if worked_on is not None and worked_on.serve.application is not None:
            serve = worked_on.serve
            name = serve.application["name"] if serve.application else ""
            application = (name, serve.status(), serve.error)
        serving = self.active is not None and self.active.head is not None
        seen = {**self.document, "status": self._status}
        seen["metadata"] = {**self.document["metadata"], "generation": self._seen_generation}
        status = documents.service_status(
            seen,
            active=self.active.name if self.active else "",
            pending=self.pending.name if self.pending else "",
            application=application,
            endpoints=1 if serving else 0,
            now=now,
        )
        if status == self._status or not self._seen_generation:
            return
        metadata = self.document["metadata"]
        path = f"/apis/ray.io/v1/namespaces/{metadata['namespace']}/rayservices/{metadata['name']}"
        # A merge would keep the names of clusters that are no more.
        emptied = {
            part: dict.fromkeys(self._status.get(part, {}))
            for part in ("activeServiceStatus", "pendingServiceStatus")
        }
        change = {**status, **{part: {**emptied[part], **status[part]} for part in emptied}}
        code, _ = await self._api.patch(f"{path}/status", {"status": change})
        if code == 200:
            self._status = status

    async def _must(self, method: str, path: str, body: object = None) -> Object:
        """A call that cannot be refused, or is waited for: objects may come later than we do."""
        deadline = time.monotonic() + 30
        while True:
            status, answer = await self._api.call(method, path, body)
            if status < 300:
                return answer
            if status != 404 or time.monotonic() > deadline:
                _refused(method, path, answer)
            await asyncio.sleep(0.2)


def _suffix() -> str:
    """Never the same twice, also for a double that comes later with the same seed."""
    return uuid.uuid4().hex[:5]


def _pods(document: Object) -> str:
    return f"/api/v1/namespaces/{document['metadata']['namespace']}/pods"


def _refused(method: str, path: str, answer: Any) -> NoReturn:
    raise RuntimeError(f"{method} {path} was refused: {answer.get('message', answer)}")
