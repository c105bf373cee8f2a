"""KubeRay goes while pools run: its CRDs are removed, or nobody ends what it began."""

from __future__ import annotations

import asyncio

import pytest

from pointsman_kube.client import Kube
from pointsman_kube.kinds import MODEL_POOL, RAY_CLUSTER, RAY_SERVICE, Kind, Ref
from pointsman_operator.clusters import REDIS_FINALIZER
from tests.api.operator.stage import Stage, is_gone, until
from tests.api.operator.stuck import free, make_stuck_cluster
from tests.cluster.cluster import Cluster
from tests.cluster.fixtures import ray_crds
from tests.contract.samples import EXTERNAL, pool_document

_CRD = Kind(
    group="apiextensions.k8s.io",
    version="v1",
    plural="customresourcedefinitions",
    name="CustomResourceDefinition",
    namespaced=False,
)

pytestmark = [pytest.mark.usefixtures("kuberay_installed"), pytest.mark.timeout(240)]


async def remove_kuberay(admin: Kube) -> None:
    """Delete KubeRay's CRDs, and with them every RayService and RayCluster."""
    crds, _ = await admin.list(_CRD)
    for item in crds:
        if item["spec"]["group"] == "ray.io":
            await admin.delete(Ref(kind=_CRD, name=item["metadata"]["name"]))


async def test_pools_say_so_and_start_again_when_the_crds_go_and_come_back(
    stage: Stage, api_server: Cluster
) -> None:
    await stage.play_ray()
    operator = await stage.operator()
    await operator.until_leading()
    names = ("chat", "code")
    await stage.apply(*(pool_document(name, replicas=1) for name in names))
    await stage.until_ready(MODEL_POOL, *names)
    services = [await stage.get(RAY_SERVICE, name) for name in names]
    await remove_kuberay(stage.admin)
    for name in names:
        await stage.until_condition(
            MODEL_POOL, name, "ReplicasReady", "False", reason="KubeRayNotInstalled", seconds=60
        )
    # Without it everything else goes on, the route table included.
    await stage.apply(pool_document("hosted", backend={**EXTERNAL}))
    await until(lambda: "hosted" in getattr(stage.gateway.table, "routes", {}))
    assert 200 == (await operator.ask("/healthz"))[0]
    await asyncio.to_thread(api_server.apply_crds, *ray_crds())
    await stage.until_ready(MODEL_POOL, *names, seconds=60)
    for name, before in zip(names, services, strict=True):
        after = await stage.get(RAY_SERVICE, name)
        assert before is not None
        assert after is not None
        assert before["metadata"]["uid"] != after["metadata"]["uid"]
        assert before["spec"] == after["spec"]
    assert operator.running.is_alive
    lines = operator.log.read_text().splitlines()
    assert [] == [line for line in lines if "Traceback" in line]


async def test_a_stuck_cluster_of_a_deleted_pool_is_freed_and_no_other(stage: Stage) -> None:
    operator = await stage.operator(stuck_seconds=2)
    await operator.until_leading()
    await make_stuck_cluster(stage, "ours")
    await make_stuck_cluster(stage, "strangers", managed_by="somebody")

    await until(lambda: is_gone(stage, RAY_CLUSTER, "ours"), 20.0)
    theirs = await stage.get(RAY_CLUSTER, "strangers")
    assert theirs is not None
    assert [REDIS_FINALIZER] == theirs["metadata"]["finalizers"]
    assert f"{stage.namespace}/ours" in operator.log.read_text()
    await free(stage, "strangers")
