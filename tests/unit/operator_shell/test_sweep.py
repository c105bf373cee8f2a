"""What the sweep deletes, and what it leaves for the next one."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from pointsman_kube.client import Kube
from pointsman_kube.errors import Fenced, KubeError, Unavailable
from pointsman_kube.kinds import Kind, Object, Ref
from pointsman_operator.apply import Applier
from pointsman_operator.mirrors import Mirrors
from pointsman_operator.secret_reader import SecretReader
from pointsman_operator.settings import OperatorSettings
from pointsman_operator.store import Store
from pointsman_operator.sweep import Sweeper
from tests.contract.samples import pool_document

OURS = {"app.kubernetes.io/managed-by": "pointsman-operator"}


class Cluster:
    """An API that lists metadata and deletes, and fails when it is told to."""

    def __init__(self, *items: Object) -> None:
        self.items = {self._name(item): item for item in items}
        self.pools: list[Object] = []
        self.failing: dict[str, KubeError] = {}
        self.deleted: list[str] = []

    async def list(self, kind: Kind, **_: Any) -> tuple[list[Object], str]:
        return (self.pools if kind.name == "ModelPool" else []), "1"

    async def delete(self, ref: Ref, **_: Any) -> None:
        name = f"{ref.kind.name} {ref.name}"
        if name in self.failing:
            raise self.failing[name]
        self.deleted.append(name)
        self.items.pop(name, None)

    def of(self, kind: str) -> tuple[Object, ...]:
        return tuple(item for item in self.items.values() if item["kind"] == kind)

    @staticmethod
    def _name(item: Object) -> str:
        return f"{item['kind']} {item['metadata']['name']}"


def sweeper(cluster: Cluster, store: Store | None = None, **settings: Any) -> Sweeper:
    kube = cast("Kube", cluster)
    applier = Applier(kube, SecretReader(kube), [])
    mirrors = SimpleNamespace(
        slices=cluster.of("EndpointSlice"), config_maps=cluster.of("ConfigMap")
    )
    return Sweeper(
        kube,
        store=store or Store(),
        mirrors=lambda: cast("Mirrors", mirrors),
        applier=lambda: applier,
        settings=OperatorSettings(namespace="system", **settings),
        interval_seconds=60.0,
    )


def slice_of(name: str, pool: str, namespace: str) -> Object:
    labels = {**OURS, "pointsman.dev/pool": pool, "pointsman.dev/pool-namespace": namespace}
    return {
        "kind": "EndpointSlice",
        "metadata": {"name": name, "namespace": "system", "labels": labels},
    }


def routes_of(gateway: str, shard: int = 0) -> Object:
    labels = {**OURS, "pointsman.dev/gateway": gateway, "pointsman.dev/config": "routes"}
    name = f"pointsman-{gateway}-routes-{shard}"
    return {
        "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": "system", "labels": labels},
    }


def store_with(cluster: Cluster, name: str, namespace: str) -> Store:
    document = pool_document(name, namespace=namespace)
    document["metadata"] |= {"uid": "u1", "resourceVersion": "7"}
    store = Store()
    store.pools.take(document)
    cluster.pools = [document]
    return store


async def test_slice_stays_when_its_pool_of_another_namespace_is_there() -> None:
    cluster = Cluster(slice_of("kept", "chat", "team"), slice_of("gone", "chat", "other"))

    await sweeper(cluster, store_with(cluster, "chat", "team")).sweep()

    assert ["EndpointSlice gone"] == cluster.deleted


async def test_deletion_that_was_missed_is_made_up_for() -> None:
    cluster = Cluster()
    store = store_with(cluster, "chat", "team")
    cluster.pools = []

    await sweeper(cluster, store).sweep()

    assert () == store.pools.keys()


async def test_keys_of_a_gateway_go_when_it_is_no_gateway_any_more() -> None:
    cluster = Cluster(routes_of("old"), routes_of("old", 1), routes_of("default"))

    await sweeper(cluster, gateways=("default",)).sweep()

    assert [
        "Secret pointsman-old-credentials",
        "ConfigMap pointsman-old-routes-0",
        "ConfigMap pointsman-old-routes-1",
    ] == cluster.deleted


async def test_keys_of_a_gateway_go_in_the_next_sweep_when_one_ends_half_way() -> None:
    cluster = Cluster(routes_of("old"))
    cluster.failing["Secret pointsman-old-credentials"] = Unavailable("away")
    await sweeper(cluster, gateways=("default",)).sweep()
    assert [] == cluster.deleted

    cluster.failing.clear()
    await sweeper(cluster, gateways=("default",)).sweep()

    assert ["Secret pointsman-old-credentials", "ConfigMap pointsman-old-routes-0"] == (
        cluster.deleted
    )


async def test_one_orphan_that_cannot_be_deleted_keeps_no_other() -> None:
    cluster = Cluster(slice_of("a", "x", "team"), slice_of("b", "x", "team"), routes_of("old"))
    cluster.failing["EndpointSlice a"] = Unavailable("no")

    await sweeper(cluster, gateways=("default",)).sweep()

    assert {"EndpointSlice b", "ConfigMap pointsman-old-routes-0"} <= set(cluster.deleted)


async def test_sweep_ends_at_once_when_the_lease_is_lost() -> None:
    cluster = Cluster(slice_of("a", "x", "team"), slice_of("b", "x", "team"))
    cluster.failing["EndpointSlice a"] = Fenced("not the leader")

    with pytest.raises(Fenced):
        await sweeper(cluster).sweep()

    assert [] == cluster.deleted


async def test_watch_counts_as_frozen_when_it_lacks_the_same_for_a_whole_interval() -> None:
    cluster = Cluster()
    document = pool_document("chat")
    document["metadata"] |= {"uid": "u1", "resourceVersion": "7"}
    cluster.pools = [document]
    found = sweeper(cluster)

    await found.sweep()
    assert [] == list(found.problems())
    await found.sweep()
    assert ["the watch has not told 1 objects as they are for more than 60 s"] == list(
        found.problems()
    )
