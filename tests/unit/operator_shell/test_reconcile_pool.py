from __future__ import annotations

import base64
from typing import Any

from pointsman_kube.kinds import RAY_SERVICE, SECRET
from pointsman_operator.access import STAMP_ANNOTATION
from tests.unit.operator.scenes import ray_cluster
from tests.unit.operator_shell.pool_side import KEY, PoolSide


def strangers(kind: str, name: str, **more: Any) -> dict[str, Any]:
    version = "v1" if kind == "Secret" else "ray.io/v1"
    metadata = {"name": name, "namespace": "team", "uid": "uid-stranger"}
    return {"apiVersion": version, "kind": kind, "metadata": metadata, **more}


def running_cluster(side: PoolSide) -> None:
    """KubeRay has made a RayCluster for the pool's RayService."""
    service = side.service
    assert service is not None
    side.mirrors.ray_clusters.take(
        ray_cluster(
            "chat-x1",
            uid="uid-cluster",
            resourceVersion="1",
            creationTimestamp="2026-11-01T00:00:05Z",
            labels={**service["metadata"]["labels"], "ray.io/originated-from-cr-name": "chat"},
            ownerReferences=[{"uid": service["metadata"]["uid"], "kind": "RayService"}],
        )
    )


async def test_a_strangers_ray_service_is_left_alone_until_it_is_gone() -> None:
    side = PoolSide()
    theirs = strangers("RayService", "chat", spec={"serveConfigV2": "theirs"})
    side.api.put(theirs)
    side.make_pool()

    again = await side.round()

    assert again is not None
    assert again < 10
    assert {"serveConfigV2": "theirs"} == (side.service or {})["spec"]
    assert side.secret is None
    condition = side.condition("ReplicasReady")
    assert ("False", "NameTaken") == (condition["status"], condition["reason"])
    assert (
        "The RayService chat of the namespace team was not made for this pool"
        in (condition["message"])
    )

    side.delete(RAY_SERVICE, "chat")
    await side.round(again)
    await side.round(4)

    assert "pointsman-operator" in str((side.service or {})["metadata"]["labels"])
    assert "RayService chat" not in side.condition("ReplicasReady")["message"]


async def test_a_strangers_secret_is_left_alone_until_it_is_gone() -> None:
    side = PoolSide()
    side.api.put(strangers("Secret", "chat-access", data={"password": "aHVudGVyMg=="}))
    side.make_pool()

    again = await side.round()

    assert again is not None
    assert {"password": "aHVudGVyMg=="} == (side.secret or {})["data"]
    assert side.service is None
    assert "The Secret chat-access" in side.condition("ReplicasReady")["message"]
    # The gateways' keys are not made from it.
    assert side.secrets.held("team", "chat-access") is None

    side.delete(SECRET, "chat-access")
    await side.round(again)

    assert {"auth_token", "replica_token"} == set((side.secret or {})["data"])
    assert side.service is not None


async def test_a_ray_service_that_lost_its_labels_gets_them_again() -> None:
    side = PoolSide()
    side.make_pool()
    await side.round()
    service = side.service
    assert service is not None
    side.delete(RAY_SERVICE, "chat")
    side.api.put({**service, "metadata": {**service["metadata"], "labels": {}}})

    await side.round(1)

    assert "pointsman.dev/pool" in (side.service or {})["metadata"]["labels"]


async def test_a_pool_that_was_made_again_starts_anew() -> None:
    side = PoolSide()
    side.make_pool()
    await side.round()
    running_cluster(side)
    before, old = side.reconciler.memories[KEY], side.secret
    assert old is not None

    side.make_pool(uid="uid-new", created="2026-11-01T01:00:00Z")
    await side.round(1)

    # What the old one owned is going, and is not the new one's.
    assert "uid-chat" == (side.service or {})["metadata"]["ownerReferences"][0]["uid"]
    assert old == side.secret
    assert before is not side.reconciler.memories[KEY]
    assert "uid-new" == side.reconciler.memories[KEY].uid
    assert "belongs to a deleted ModelPool" in side.condition("ReplicasReady")["message"]
    pool = side.api.objects["modelpools.pointsman.dev team/chat"]
    assert 0 == pool["status"]["readyReplicas"]

    side.collect_garbage("uid-chat")
    await side.round(5)

    new = side.secret
    assert new is not None
    assert old["data"] != new["data"]
    assert STAMP_ANNOTATION not in str(new)
    assert "uid-new" == (side.service or {})["metadata"]["ownerReferences"][0]["uid"]


async def test_a_lost_secret_gets_its_values_back_when_the_operator_knows_them() -> None:
    side = PoolSide()
    side.make_pool()
    await side.round()
    running_cluster(side)
    before, service = side.secret, side.service
    assert before is not None
    await side.round(1)
    side.delete(SECRET, "chat-access")

    # Ray refuses a token, or the time has come.
    side.observer.forget(KEY)
    await side.round(1)

    assert before["data"] == (side.secret or {})["data"]
    assert service == side.service


async def test_the_pods_are_replaced_when_a_restarted_operator_finds_the_secret_lost() -> None:
    first = PoolSide()
    first.make_pool()
    await first.round()
    side = PoolSide(first.api)
    for name, obj in first.api.objects.items():
        if name.startswith("rayservices"):
            side.mirrors.ray_services.take(obj)
        if name.startswith("controllerrevisions"):
            side.mirrors.revisions.take(obj)
    side.make_pool()
    running_cluster(side)
    # The gateways know the replicas' token.
    token = base64.b64encode(b"told").decode()
    held = {"metadata": {"name": "x"}, "data": {"token.team.chat": token}}
    side.secrets.take(side.settings.namespace, "pointsman-default-credentials", held)
    side.delete(SECRET, "chat-access")

    await side.round()

    assert token == (side.secret or {})["data"]["replica_token"]
    stamp = (side.secret or {})["metadata"]["annotations"][STAMP_ANNOTATION]
    config = (side.service or {})["spec"]["rayClusterConfig"]
    for group in (config["headGroupSpec"], *config["workerGroupSpecs"]):
        assert stamp == group["template"]["metadata"]["annotations"][STAMP_ANNOTATION]
    calls = len(side.api.calls)
    await side.round(1)
    assert not [call for call in side.api.calls[calls:] if call.startswith(("apply", "create"))]


async def test_an_unchanged_status_is_not_written_again() -> None:
    side = PoolSide()
    side.make_pool()
    await side.round()
    await side.round(1)
    statuses = [call for call in side.api.calls if call.startswith("status")]
    await side.round(1)
    assert statuses == [call for call in side.api.calls if call.startswith("status")]
