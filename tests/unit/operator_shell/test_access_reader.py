from __future__ import annotations

from typing import Any

from pointsman_kube.kinds import SECRET, Ref
from pointsman_operator.access_reader import AccessReader
from pointsman_operator.objects import owner_reference, pool_labels
from pointsman_operator.secret_reader import SecretReader
from tests.unit.operator.scenes import made_pool, worker_pod
from tests.unit.operator_shell.small_api import SmallApi

POOL = made_pool()
REF = Ref(kind=SECRET, namespace="team", name="chat-access")
KEY = ("team", "chat")


class Scene:
    """A reader with a clock, in front of an API that has the pool's Secret."""

    def __init__(self) -> None:
        self.now = 100.0
        self.api = SmallApi()
        self.tokens_came = 0
        self.reader = AccessReader(
            SecretReader(self.api, clock=lambda: self.now),  # type: ignore[arg-type]
            age_seconds=600.0,
            token_came=self._came,
            now=lambda: self.now,
        )
        self.put()

    def _came(self) -> None:
        self.tokens_came += 1

    def put(self, *, uid: str = "", **data: str) -> None:
        metadata: dict[str, Any] = {"name": "chat-access", "namespace": "team"}
        metadata["labels"] = pool_labels(POOL, "access")
        metadata["ownerReferences"] = [{**owner_reference(POOL), **({"uid": uid} if uid else {})}]
        values = {"auth_token": "YQ==", "replica_token": "Yg==", **data}
        secret = {"apiVersion": "v1", "kind": "Secret", "metadata": metadata}
        self.api.put({**secret, "data": {name: text for name, text in values.items() if text}})


async def test_the_secret_is_read_seldom_and_its_token_told_once() -> None:
    scene = Scene()
    for scene.now in (100.0, 200.0, 300.0):
        assert (await scene.reader.read(POOL, [])).secret is not None
    assert 1 == len(scene.api.calls)
    assert 1 == scene.tokens_came
    assert "a" == scene.reader.ray_token(KEY)


async def test_the_secret_is_read_soon_when_a_pod_waits_for_it() -> None:
    scene = Scene()
    await scene.reader.read(POOL, [])
    waiting = {"name": "engine", "state": {"waiting": {"reason": "CreateContainerConfigError"}}}
    pod = worker_pod("a", "", status={"containerStatuses": [waiting]})
    scene.api.take_away(REF)
    scene.now += 6.0
    assert (await scene.reader.read(POOL, [])).secret is not None
    assert (await scene.reader.read(POOL, [pod])).secret is None


async def test_what_was_in_a_lost_secret_is_known_until_the_pool_is_gone() -> None:
    scene = Scene()
    await scene.reader.read(POOL, [])
    scene.api.take_away(REF)
    scene.reader.read_again(KEY)
    lost = (await scene.reader.read(POOL, [])).lost
    assert lost is not None
    assert {"auth_token": "YQ==", "replica_token": "Yg=="} == lost["data"]
    scene.reader.forget(KEY)
    assert (await scene.reader.read(POOL, [])).lost is None


async def test_the_whole_secret_is_known_when_a_part_of_it_is_lost() -> None:
    scene = Scene()
    await scene.reader.read(POOL, [])
    scene.put(replica_token="")
    scene.reader.read_again(KEY)
    access = await scene.reader.read(POOL, [])
    assert access.secret is not None
    assert {"auth_token"} == set(access.secret["data"])
    assert access.lost is not None
    assert "Yg==" == access.lost["data"]["replica_token"]


async def test_a_secret_of_a_deleted_namesake_is_foreign_and_no_token_of_it_is_used() -> None:
    scene = Scene()
    scene.put(uid="uid-old")
    access = await scene.reader.read(POOL, [])
    assert (None, None) == (access.secret, access.lost)
    assert access.foreign is not None
    assert scene.reader.ray_token(KEY) is None
    # Looked at again every second, and not more often.
    assert (await scene.reader.read(POOL, [])).foreign is not None
    assert 1 == len(scene.api.calls)
    scene.now += 1.5
    scene.put()
    access = await scene.reader.read(POOL, [])
    assert access.foreign is None
    assert "a" == scene.reader.ray_token(KEY)


async def test_rays_token_stays_known_when_a_stranger_takes_the_name_of_the_secret() -> None:
    scene = Scene()
    await scene.reader.read(POOL, [])
    scene.put(uid="uid-stranger", auth_token="eA==")
    scene.reader.read_again(KEY)
    assert "a" == scene.reader.ray_token(KEY)
    assert (await scene.reader.read(POOL, [])).foreign is not None
    assert "a" == scene.reader.ray_token(KEY)
    # The pool's own again, with another token.
    scene.put(auth_token="Yw==")
    scene.now += 1.5
    await scene.reader.read(POOL, [])
    assert "c" == scene.reader.ray_token(KEY)
    scene.reader.forget(KEY)
    assert scene.reader.ray_token(KEY) is None


async def test_nothing_of_a_namesakes_secret_is_known_when_the_pool_has_another_uid() -> None:
    scene = Scene()
    metadata = POOL.metadata.model_copy(update={"uid": "uid-new"})
    other = POOL.model_copy(update={"metadata": metadata})
    await scene.reader.read(POOL, [])
    scene.api.take_away(REF)
    scene.reader.read_again(KEY)
    assert (await scene.reader.read(other, [])).lost is None
