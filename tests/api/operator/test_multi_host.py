"""A replica over two pods, as users see it of the operator."""

from __future__ import annotations

from typing import Any

import pytest

from pointsman_api.endpoint_slices import ReplicaEndpoint, decode_slices
from pointsman_kube.kinds import ENDPOINT_SLICE, MODEL_POOL, POD, RAY_SERVICE, Ref
from tests.api.operator.stage import Stage, until
from tests.contract.samples import pool_document

pytestmark = [pytest.mark.usefixtures("kuberay_installed"), pytest.mark.timeout(240)]

SPREAD = {
    "type": "RayServe",
    "rayServe": {"engine": {"type": "Simulated"}, "parallelism": {"hosts": 2}},
}


async def endpoints(stage: Stage) -> dict[str, ReplicaEndpoint]:
    slices, _ = await stage.admin.list(ENDPOINT_SLICE, stage.namespace)
    found = decode_slices(slices).get(f"{stage.namespace}/chat")
    return {} if found is None else {each.replica: each for each in found.endpoints}


async def workers(stage: Stage) -> set[str]:
    pods, _ = await stage.admin.list(POD, stage.namespace, label_selector="ray.io/node-type=worker")
    return {each["metadata"]["name"] for each in pods}


async def spread_pool(stage: Stage, **spec: Any) -> None:
    await stage.play_ray()
    operator = await stage.operator()
    await operator.until_leading()
    await stage.apply(pool_document("chat", backend=SPREAD, **spec))
    await stage.until_ready(MODEL_POOL, "chat")


async def test_replicas_over_two_pods_count_once_when_the_pool_is_made(stage: Stage) -> None:
    await spread_pool(stage, replicas=2)

    assert 4 == len(await workers(stage))
    assert [True, True] == [each.ready for each in (await endpoints(stage)).values()]
    pool = await stage.get(MODEL_POOL, "chat")
    assert pool is not None
    assert 2 == pool["status"]["readyReplicas"]
    service = await stage.get(RAY_SERVICE, "chat")
    assert service is not None
    (group,) = service["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    assert 4 == group["replicas"]


async def test_the_whole_replica_is_out_of_use_when_its_second_pod_goes(stage: Stage) -> None:
    await spread_pool(stage, replicas=1)
    (before,) = (await endpoints(stage)).values()
    (second,) = await workers(stage) - {before.pod}

    await stage.admin.delete(Ref(kind=POD, namespace=stage.namespace, name=second))

    async def out_of_use() -> bool:
        found = (await endpoints(stage)).get(before.replica)
        return found is None or not found.ready

    async def replaced() -> bool:
        ready = [each for each in (await endpoints(stage)).values() if each.ready]
        return [before.replica] != [each.replica for each in ready] and len(ready) == 1

    await until(out_of_use)
    await until(replaced)
    assert second not in await workers(stage)
    await stage.until_ready(MODEL_POOL, "chat")
