"""What news make the acting operator look at, and in which order."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Hashable
from typing import Any, cast

import pytest

from pointsman_kube.client import Kube
from pointsman_operator.leader import Leader
from pointsman_operator.metrics import OperatorMetrics
from pointsman_operator.process_settings import ProcessSettings
from pointsman_operator.settings import OperatorSettings
from tests.contract.samples import policy_document, pool_document

BULK = [("bulk", f"pool-{number}") for number in range(20)]


class Order(OperatorMetrics):
    """Notes which keys were worked on."""

    def __init__(self) -> None:
        super().__init__()
        self.done: dict[str, list[Hashable]] = {}

    def on_done(self, queue: str) -> Callable[[Hashable, float, Exception | None], None]:
        return lambda key, seconds, error: self.done.setdefault(queue, []).append(key)


class Scene:
    """A leader with one worker whose queues a test runs by itself."""

    def __init__(self) -> None:
        self.order = Order()
        self.leader = Leader(
            cast("Kube", None),
            settings=OperatorSettings(namespace="system"),
            process=ProcessSettings(workers=1),
            metrics=self.order,
        )

    async def pools_in_order(self, number: int) -> list[Hashable]:
        """The first pools that are looked at. None of them exists: a look takes no time."""
        task = asyncio.create_task(self.leader.pools.run())
        async with asyncio.timeout(5.0):
            while len(self.order.done.get("pools", ())) < number:
                await asyncio.sleep(0.005)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        return self.order.done["pools"][:number]


@pytest.fixture
async def scene() -> Scene:
    return Scene()


def pool(name: str, version: int) -> dict[str, Any]:
    document = pool_document(name, namespace="team", replicas=version)
    document["metadata"] |= {
        "uid": f"uid-{name}",
        "resourceVersion": str(version),
        "generation": version,
        "deletionTimestamp": "2026-01-01T00:00:00Z",
    }
    return document


def labelled(kind: str, namespace: str, pool: str) -> dict[str, Any]:
    labels = {"pointsman.dev/pool": pool, "pointsman.dev/pool-namespace": "team"}
    return {
        "apiVersion": "v1",
        "kind": kind,
        "metadata": {
            "name": f"{pool}-{kind.lower()}",
            "namespace": namespace,
            "uid": pool,
            "resourceVersion": "1",
            "labels": labels,
        },
    }


async def test_pool_that_serves_goes_first_when_one_of_its_pods_changes(scene: Scene) -> None:
    leader = scene.leader
    leader.mirrors.slices.take(labelled("EndpointSlice", "system", "serving"))
    for key in (*BULK, ("team", "new"), ("team", "serving")):
        leader.pools.add(key)

    leader.mirrors.pods.take(labelled("Pod", "team", "new"))
    leader.mirrors.pods.take(labelled("Pod", "team", "serving"))

    assert [("team", "serving"), BULK[0]] == await scene.pools_in_order(2)


async def test_edited_pool_goes_before_those_that_are_new(scene: Scene) -> None:
    for name in ("edited", "new", "newer"):
        scene.leader.store.pools.take(pool(name, 1))
    scene.leader.store.pools.take(pool("edited", 2))

    assert [("team", "edited"), ("team", "new"), ("team", "newer")] == (
        await scene.pools_in_order(3)
    )


async def test_table_is_made_at_once_when_a_policy_is_edited(scene: Scene) -> None:
    document = policy_document("p")
    document["metadata"] |= {"uid": "u1", "resourceVersion": "1", "generation": 1}

    scene.leader.store.policies.take(document)

    await asyncio.sleep(0.05)
    assert (1, 0) == (len(scene.leader.gateways), len(scene.leader.policies))


async def test_table_is_not_made_when_only_a_status_changed(scene: Scene) -> None:
    document = policy_document("p")
    document["metadata"] |= {"uid": "u1", "resourceVersion": "1", "generation": 1}
    scene.leader.store.policies.take(document)
    await asyncio.sleep(0.05)
    scene.leader.gateways.forget("default")

    later = {**document, "metadata": {**document["metadata"], "resourceVersion": "2"}}
    scene.leader.store.policies.take({**later, "status": {"observedGeneration": 1}})

    await asyncio.sleep(0.05)
    assert 0 == len(scene.leader.gateways)


async def test_policy_says_that_its_gateway_is_unknown_when_no_table_would(scene: Scene) -> None:
    document = policy_document("p", gatewayRef={"name": "nowhere"})
    document["metadata"] |= {"uid": "u1", "resourceVersion": "1", "generation": 1}

    scene.leader.store.policies.take(document)

    assert 1 == len(scene.leader.policies)


async def test_every_queue_is_measured(scene: Scene) -> None:
    assert {"pools", "gateways", "policies", "credentials", "ray", "gateway reports"} == {
        queue.name for queue in scene.leader.queues
    }
