from __future__ import annotations

from typing import Any

from pointsman_operator.claims import Claim, claim_of
from pointsman_operator.observe import own_clusters, own_pods
from pointsman_operator.observed import PoolObserved
from tests.unit.operator.scenes import external_pool, made_pool, ray_cluster, worker_pod
from tests.unit.operator_shell.pool_side import KEY, PoolSide

OLD, NEW, MADE = "2026-11-01T00:00:00Z", "2026-11-01T02:00:00Z", "2026-11-01T01:00:00Z"
LABELS = {
    "app.kubernetes.io/managed-by": "pointsman-operator",
    "pointsman.dev/pool": "chat",
    "ray.io/originated-from-cr-name": "chat",
}
POOL = made_pool()
POOL = POOL.model_copy(
    update={"metadata": POOL.metadata.model_copy(update={"creation_timestamp": MADE})}
)
SERVICE = {"metadata": {"name": "chat", "uid": "uid-service"}}


def cluster(name: str, *, made: str, owner: str = "", labels: Any = LABELS) -> Any:
    owners = [{"kind": "RayService", "uid": owner}] if owner else []
    metadata = {"creationTimestamp": made, "ownerReferences": owners, "labels": labels}
    return ray_cluster(name, uid=f"uid-{name}", resourceVersion="1", **metadata)


async def observed_by(side: PoolSide) -> PoolObserved:
    pool = side.store.pools.get(KEY)
    assert pool is not None
    return await side.observer.observe(pool, refused="")


def test_clusters_of_a_deleted_namesake_and_of_a_strangers_service_are_not_the_pools() -> None:
    clusters = [
        cluster("own", made=NEW, owner="uid-service"),
        # Its RayService was adopted with it.
        cluster("adopted", made=OLD, owner="uid-service"),
        # Of the RayService before the pool was at zero; it drains.
        cluster("before", made=NEW, owner="uid-before"),
        cluster("former", made=OLD, owner="uid-before"),
        cluster("stranger", made=NEW, owner="uid-before", labels={}),
    ]

    names = [item["metadata"]["name"] for item in own_clusters(POOL, SERVICE, clusters)]

    assert ["own", "adopted", "before"] == names


def test_pods_of_a_deleted_namesake_are_not_the_pools() -> None:
    pods = []
    for name, of, made in (("a", "adopted", OLD), ("f", "former", OLD), ("n", "gone", NEW)):
        pod = worker_pod(name, "10.0.0.1", cluster=of)
        pod["metadata"]["creationTimestamp"] = made
        pods.append(pod)

    found = own_pods(POOL, [cluster("adopted", made=OLD)], pods)

    assert ["a", "n"] == [pod["metadata"]["name"] for pod in found]


async def test_what_belongs_to_the_pool_is_gathered() -> None:
    side = PoolSide()
    side.make_pool()
    await side.round()

    observed = await observed_by(side)

    assert side.secret is not None
    assert observed.access_secret is not None
    assert side.secret["data"] == observed.access_secret["data"]
    assert "chat" == (observed.ray_service or {})["metadata"]["name"]
    assert 1 == len(observed.revisions)
    assert () == observed.in_the_way
    assert observed.kuberay_served


async def test_a_namesakes_ray_service_is_in_the_way_and_nothing_else() -> None:
    side = PoolSide()
    side.make_pool()
    await side.round()
    side.make_pool(uid="uid-new", created="2026-11-01T01:00:00Z")

    observed = await observed_by(side)

    pool = side.store.pools.get(KEY)
    assert pool is not None
    assert observed.ray_service is None
    assert observed.access_secret is None
    assert ["RayService", "Secret"] == sorted(item["kind"] for item in observed.in_the_way)
    assert {Claim.FORMER} == {claim_of(item, pool) for item in observed.in_the_way}


async def test_what_only_a_list_shows_is_the_pools_or_in_its_way() -> None:
    side = PoolSide()
    empty = PoolObserved(now=side.now)
    assert await side.observer.find_hidden(POOL, empty) is None
    metadata: dict[str, Any] = {"name": "chat", "namespace": "team"}
    service = {"apiVersion": "ray.io/v1", "kind": "RayService", "metadata": metadata}
    side.api.put(service)
    found = await side.observer.find_hidden(POOL, empty)
    assert found is not None
    assert (None, 1) == (found.ray_service, len(found.in_the_way))
    side.api.put({**service, "metadata": {**metadata, "ownerReferences": [{"uid": "uid-chat"}]}})
    found = await side.observer.find_hidden(POOL, empty)
    assert found is not None
    assert (True, ()) == (found.ray_service is not None, found.in_the_way)


async def test_the_replicas_token_is_known_from_the_gateways_keys() -> None:
    side = PoolSide()

    def known() -> str | None:
        return side.observer.known_replica_token(KEY, namespace="system", gateways=("a", "b"))

    assert known() is None
    held = {"metadata": {"name": "x"}, "data": {"token.team.chat": "dG9sZA=="}}
    side.secrets.take("system", "pointsman-b-credentials", held)
    assert "told" == known()


async def test_a_missing_secret_that_the_pool_names_is_told_as_missing() -> None:
    side = PoolSide()
    source = {
        "type": "HuggingFace",
        "huggingFace": {"repository": "a/b", "tokenSecretRef": {"name": "hf", "key": "token"}},
    }
    pool = made_pool(engine={"type": "VLLM"}, ray_serve={"model": {"source": source}})

    assert {"hf": None} == (await side.observer.observe(pool, refused="")).secrets


async def test_a_secret_is_forgotten_when_the_pool_names_another_or_is_gone() -> None:
    side = PoolSide()

    async def name(secret: str) -> None:
        metadata = {"name": secret, "namespace": "team"}
        side.api.put({"apiVersion": "v1", "kind": "Secret", "metadata": metadata})
        reference = {"name": secret, "key": "api"}
        pool = external_pool("chat", credentialSecretRef=reference)
        await side.observer.observe(pool, refused="")

    def held() -> list[bool]:
        return [side.secrets.held("team", secret) is not None for secret in ("old", "new")]

    await name("old")
    assert [True, False] == held()
    await name("new")
    assert [False, True] == held()
    side.observer.forget_pool(KEY)
    assert [False, False] == held()


async def test_only_the_pools_own_slices_are_seen() -> None:
    side = PoolSide()
    side.make_pool()
    for number, pool in enumerate(("chat", "other")):
        labels = {"pointsman.dev/pool": pool, "pointsman.dev/pool-namespace": "team"}
        metadata = {"name": pool, "namespace": "system", "labels": labels, "uid": str(number)}
        side.mirrors.slices.take({"metadata": {**metadata, "resourceVersion": "1"}})
    assert ["chat"] == [item["metadata"]["name"] for item in (await observed_by(side)).slices]
