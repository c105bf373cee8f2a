"""What a story about the operator plays on: an API server, Ray's double and a gateway's double."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from pointsman_kube.client import Kube
from pointsman_kube.errors import NotFound
from pointsman_kube.kinds import MODEL_POOL, ROUTE_POLICY, Kind, Object, Ref
from pointsman_operator.ownership import DEPLOYMENT
from tests.api.operator.gateways import GatewayDouble
from tests.api.operator.process import OperatorProcess
from tests.cluster.cluster import Cluster
from tests.cluster.ray_double import Behaviour, RayDouble

QUICK = Behaviour(
    react=0.05, pod_start=0.1, replica_start=0.1, drain=0.1, blank=0.5, worker_idle=0.2
)


class Stage:
    """The operator's namespace, a gateway, Ray; and the operator processes that a test starts."""

    def __init__(
        self,
        cluster: Cluster,
        admin: Kube,
        namespace: str,
        folder: Path,
        *,
        behaviour: Behaviour = QUICK,
    ) -> None:
        self.cluster = cluster
        self.admin = admin
        self.namespace = namespace
        self.gateway = GatewayDouble(admin, namespace)
        self._folder = folder
        self._behaviour = behaviour
        self._ray: RayDouble | None = None
        self._stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        await self._stack.enter_async_context(self.gateway)
        await self.gateway.make_pod()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def play_ray(self) -> RayDouble:
        """From now on RayServices come to life; KubeRay's CRDs must be there."""
        if self._ray is None:
            double = RayDouble(self.cluster, behaviour=self._behaviour)
            self._ray = await self._stack.enter_async_context(double)
        return self._ray

    async def operator(self, *, name: str = "operator", **settings: Any) -> OperatorProcess:
        """Start an operator."""
        template = self._ray.dashboard_url_template if self._ray else "http://127.0.0.1:1"
        defaults = {
            "namespace": self.namespace,
            "gateway_admin_port": self.gateway.port,
            "ray_dashboard_url_template": template,
            "accelerated": "false",
        }
        process = OperatorProcess(self.cluster, self._folder, name=name, **{**defaults, **settings})
        await self._stack.enter_async_context(process)
        return process

    async def apply(self, *objects: dict[str, Any]) -> list[Object]:
        """Apply objects as kubectl does."""
        return [await self.admin.apply(_in(self.namespace, item)) for item in objects]

    async def make_deployment(self, name: str) -> Object:
        """The operator's own Deployment, as the chart makes it, but without pods."""
        labels = {"app": name}
        containers = [{"name": "operator", "image": "example.com/pointsman:1"}]
        item = {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": name, "namespace": self.namespace},
            "spec": {
                "replicas": 0,
                "selector": {"matchLabels": labels},
                "template": {"metadata": {"labels": labels}, "spec": {"containers": containers}},
            },
        }
        await asyncio.to_thread(self.cluster.kubectl, "apply", "-f", "-", stdin=item)
        return await self.admin.get(Ref(kind=DEPLOYMENT, namespace=self.namespace, name=name))

    async def get(self, kind: Kind, name: str, namespace: str = "") -> Object | None:
        """An object; None where there is none."""
        try:
            return await self.admin.get(
                Ref(kind=kind, namespace=namespace or self.namespace, name=name)
            )
        except NotFound:
            return None

    async def delete(self, kind: Kind, name: str) -> None:
        """Delete an object."""
        await self.admin.delete(Ref(kind=kind, namespace=self.namespace, name=name))

    async def until_condition(
        self,
        kind: Kind,
        name: str,
        condition: str,
        status: str,
        *,
        reason: str = "",
        seconds: float = 30.0,
    ) -> Object:
        """Wait for a condition at the object's present generation; returns the object."""
        deadline = time.monotonic() + seconds
        found: dict[str, Any] | None = None
        while time.monotonic() < deadline:
            item = await self.get(kind, name)
            found = condition_in(item, condition)
            if (
                item is not None
                and found is not None
                and found["status"] == status
                and (not reason or found["reason"] == reason)
                and found["observedGeneration"] == item["metadata"]["generation"]
            ):
                return item
            await asyncio.sleep(0.05)
        raise AssertionError(f"{kind.name} {name}: {condition} is {found}, not {status} {reason}")

    async def until_ready(self, kind: Kind, *names: str, seconds: float = 30.0) -> None:
        """Wait until all are Ready."""
        for name in names:
            await self.until_condition(kind, name, "Ready", "True", seconds=seconds)


async def is_gone(stage: Stage, kind: Kind, name: str) -> bool:
    """Whether there is no such object in the stage's namespace."""
    return await stage.get(kind, name) is None


def condition_in(item: Object | None, condition: str) -> dict[str, Any] | None:
    """One condition of an object."""
    status = (item or {}).get("status") or {}
    return next((c for c in status.get("conditions") or () if c["type"] == condition), None)


async def until(check: Callable[[], Any], seconds: float = 15.0) -> Any:
    """Wait until ``check`` (a function or a coroutine function) returns something true."""
    deadline = time.monotonic() + seconds
    while True:
        result = check()
        if asyncio.iscoroutine(result):
            result = await result
        if result:
            return result
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s; the last result was {result!r}")
        await asyncio.sleep(0.05)


def _in(namespace: str, item: dict[str, Any]) -> dict[str, Any]:
    return {**item, "metadata": {**item["metadata"], "namespace": namespace}}


__all__ = ["MODEL_POOL", "QUICK", "ROUTE_POLICY", "Stage", "condition_in", "is_gone", "until"]
