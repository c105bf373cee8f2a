from __future__ import annotations

from typing import Any

import pytest

from pointsman_kube.errors import Invalid, Unavailable
from pointsman_kube.kinds import RAY_SERVICE, SECRET, Ref
from pointsman_operator.apply import Applier
from pointsman_operator.mirrors import BY_POOL, Mirrors
from pointsman_operator.secret_reader import SecretReader
from tests.unit.operator_shell.small_api import SmallApi

REF = Ref(kind=RAY_SERVICE, namespace="team", name="chat")
SECRET_REF = Ref(kind=SECRET, namespace="team", name="chat-access")


def service(**metadata: Any) -> dict[str, Any]:
    labels = {"pointsman.dev/pool": "chat"}
    names = {"name": "chat", "namespace": "team", "labels": labels}
    return {"apiVersion": "ray.io/v1", "kind": "RayService", "metadata": {**names, **metadata}}


def secret(value: str) -> dict[str, Any]:
    metadata = {"name": "chat-access", "namespace": "team"}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "data": {"k": value}}


class Scene:
    """An applier, its mirrors, and what they were told."""

    def __init__(self) -> None:
        self.api = SmallApi()
        kube: Any = self.api
        self.told: list[bool] = []
        self.wrote: list[str] = []
        self.mirrors = Mirrors(
            kube,
            namespace="system",
            pool_changed=lambda key: self.told.append(self.applier.telling),
            endpoints_changed=lambda key: None,
            gateway_changed=lambda: None,
            gateway_pod_changed=lambda key, old, new: None,
        )
        self.secrets = SecretReader(kube)
        self.applier = Applier(kube, self.secrets, self.mirrors, wrote=self.wrote.append)


async def test_the_mirror_knows_what_was_applied_before_its_watch_tells() -> None:
    scene = Scene()
    await scene.applier.apply([service()])
    assert 1 == len(scene.mirrors.ray_services.find(BY_POOL, ("team", "chat")))
    assert ["rayservices.ray.io"] == scene.wrote
    # Whoever listens can tell that it is a write of ours.
    assert [True] == scene.told
    assert not scene.applier.telling


async def test_what_exists_stays_and_is_read_again_when_it_is_to_be_made() -> None:
    scene = Scene()
    scene.api.put(secret("theirs"))
    scene.secrets.take("team", "chat-access", None)
    await scene.applier.create([secret("ours")])
    assert {"k": "theirs"} == scene.api.objects[str(SECRET_REF)]["data"]
    found = await scene.secrets.read("team", "chat-access")
    assert found is not None
    assert {"k": "theirs"} == found["data"]


async def test_what_was_made_needs_no_reading() -> None:
    scene = Scene()
    await scene.applier.create([secret("ours")])
    held = scene.secrets.held("team", "chat-access")
    assert held is not None
    assert {"k": "ours"} == held["data"]


async def test_the_next_are_not_applied_when_one_is_refused() -> None:
    scene = Scene()
    scene.api.refusal = Invalid("no", status=422)
    with pytest.raises(Invalid):
        await scene.applier.apply([service(), secret("x")])
    assert 1 == len(scene.api.calls)
    assert [] == scene.wrote


async def test_an_object_that_the_server_cannot_read_is_invalid_and_an_absent_server_is_not() -> (
    None
):
    scene = Scene()
    said = "failed to create typed patch object (team/chat): .spec.x: field not declared in schema"
    scene.api.refusal = Unavailable(said, status=500)
    with pytest.raises(Invalid, match="field not declared"):
        await scene.applier.apply([service()])
    scene.api.refusal = Unavailable("away")
    with pytest.raises(Unavailable):
        await scene.applier.apply([service()])


async def test_what_was_deleted_is_gone_from_the_mirror_unless_a_finalizer_holds_it() -> None:
    for finalizers, left in ((None, 0), (["somebody/s"], 1)):
        scene = Scene()
        await scene.applier.apply([service(**({"finalizers": finalizers} if finalizers else {}))])
        await scene.applier.delete([REF])
        assert left == len(scene.mirrors.ray_services)


async def test_a_namesake_that_came_since_is_not_deleted() -> None:
    scene = Scene()
    await scene.applier.apply([service()])
    scene.api.put(service(uid="another"))
    await scene.applier.delete([REF])
    assert str(REF) in scene.api.objects
    # Its event is on the way.
    assert 1 == len(scene.mirrors.ray_services)


async def test_a_deleted_secret_is_read_again() -> None:
    scene = Scene()
    await scene.applier.create([secret("x")])
    await scene.applier.delete([SECRET_REF])
    assert scene.secrets.held("team", "chat-access") is None
