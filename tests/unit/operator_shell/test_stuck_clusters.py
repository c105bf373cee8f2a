from __future__ import annotations

from typing import Any

from pointsman_kube.errors import Conflict, Forbidden, KubeError
from pointsman_kube.kinds import Object, Ref
from pointsman_operator.clusters import REDIS_FINALIZER
from pointsman_operator.stuck_clusters import StuckClusters
from tests.unit.operator.scenes import ray_cluster, worker_pod


class Scene:
    """A deleted cluster that KubeRay's finalizer and another one hold, its pods, and a clock."""

    def __init__(self) -> None:
        self.pods: list[Object] = []
        self.now = 0.0
        self.patches: list[tuple[str, Any]] = []
        self.error: KubeError | None = None
        self.cluster = ray_cluster(
            "one",
            uid="uid-one",
            resourceVersion="7",
            deletionTimestamp="2026-11-01T00:00:00Z",
            finalizers=[REDIS_FINALIZER, "somebody.else/s"],
            labels={"app.kubernetes.io/managed-by": "pointsman-operator"},
        )
        self.watcher = StuckClusters(
            self,  # type: ignore[arg-type]
            clusters=lambda: [self.cluster],
            pods=lambda: self.pods,
            patience_seconds=120.0,
            now=lambda: self.now,
        )

    async def merge(self, ref: Ref, patch: Any) -> None:
        self.patches.append((str(ref), patch))
        if self.error is not None:
            raise self.error

    async def look_at(self, *times: float) -> None:
        for self.now in times:
            await self.watcher.look()


async def test_takes_kuberays_finalizer_alone_when_nobody_works_on_the_cluster() -> None:
    scene = Scene()
    await scene.look_at(0, 60, 119)
    assert [] == scene.patches
    await scene.look_at(120)
    change = {"resourceVersion": "7", "finalizers": ["somebody.else/s"]}
    assert [("rayclusters.ray.io team/one", {"metadata": change})] == scene.patches


async def test_patience_begins_when_the_last_pod_is_gone() -> None:
    """KubeRay begins to clear Redis only then, and a pod may drain for minutes."""
    scene = Scene()
    await scene.look_at(0)
    scene.pods = [worker_pod("a", "10.0.0.1", going=True)]
    await scene.look_at(100, 1000)
    scene.pods = []
    await scene.look_at(1001, 1120)
    assert [] == scene.patches
    await scene.look_at(1121)
    assert 1 == len(scene.patches)


async def test_tries_again_when_the_patch_is_refused() -> None:
    scene = Scene()
    await scene.look_at(0)
    for scene.error in (Conflict("changed", status=409), Forbidden("no", status=403)):
        await scene.look_at(120)
    assert 2 == len(scene.patches)
