"""What the API server, or the time, does not allow: it is told, and holds up nothing else."""

from __future__ import annotations

import asyncio
import functools
from typing import Any

import pytest

from pointsman_kube.kinds import MODEL_POOL, RAY_SERVICE, SECRET
from tests.api.operator.stage import Stage, condition_in, is_gone, until
from tests.cluster.ray_double import Behaviour, PodProblem
from tests.contract.samples import pool_document

pytestmark = [pytest.mark.usefixtures("kuberay_installed"), pytest.mark.timeout(240)]

AUTOSCALING = {
    "minReplicas": 1,
    "maxReplicas": 4,
    "target": {"type": "OngoingRequests", "value": 10},
    "scaleUpDelay": "1s",
    "scaleDownDelay": "60s",
}


def backend(**template: Any) -> dict[str, Any]:
    ray_serve: dict[str, Any] = {"engine": {"type": "Simulated"}}
    if template:
        ray_serve["template"] = {"spec": template}
    return {"type": "RayServe", "rayServe": ray_serve}


async def replicas_in(stage: Stage) -> str:
    service = await stage.get(RAY_SERVICE, "chat")
    text = str((service or {"spec": {}})["spec"].get("serveConfigV2"))
    return next((line.strip() for line in text.splitlines() if "num_replicas" in line), "")


async def test_a_field_that_the_server_does_not_know_is_told_and_the_last_good_state_scales_on(
    stage: Stage,
) -> None:
    await stage.play_ray()
    operator = await stage.operator()
    await operator.until_leading()
    await stage.apply(pool_document("chat", autoscaling=AUTOSCALING))
    await stage.until_ready(MODEL_POOL, "chat")
    before = await stage.get(RAY_SERVICE, "chat")
    wrong = backend(tolerationz=[{"key": "gpu"}])
    await stage.apply(pool_document("chat", autoscaling=AUTOSCALING, backend=wrong))
    pool = await stage.until_condition(MODEL_POOL, "chat", "Accepted", "False", reason="Invalid")
    accepted = condition_in(pool, "Accepted")
    assert accepted is not None
    assert "tolerationz" in accepted["message"]
    assert "what was accepted last stays in force" in accepted["message"]
    for condition, status in (("Ready", "True"), ("Progressing", "False")):
        found = condition_in(pool, condition)
        assert found is not None
        assert status == found["status"]
    after = await stage.get(RAY_SERVICE, "chat")
    assert before is not None
    assert after is not None
    assert before["spec"] == after["spec"]
    # It serves on, and as many replicas as its requests need.
    stage.gateway.queued[f"{stage.namespace}/chat"] = 35

    async def scaled() -> bool:
        return await replicas_in(stage) == "num_replicas: 4"

    await until(scaled)
    assert await stage.until_condition(MODEL_POOL, "chat", "Accepted", "False", reason="Invalid")
    # Replicas came, and each of their events asked for another round: but not for another try.
    await asyncio.sleep(2.0)
    tries = operator.log.read_text().count("refused by the API server")
    assert 1 <= tries <= 2
    stage.gateway.queued.clear()
    await stage.apply(pool_document("chat", autoscaling=AUTOSCALING))
    await stage.until_condition(MODEL_POOL, "chat", "Accepted", "True")


async def test_a_new_pool_waits_for_its_correction_when_the_server_does_not_know_a_field(
    stage: Stage,
) -> None:
    await stage.play_ray()
    operator = await stage.operator()
    await operator.until_leading()
    await stage.apply(pool_document("chat", replicas=1, backend=backend(tolerationz=[])))
    pool = await stage.until_condition(MODEL_POOL, "chat", "Accepted", "False", reason="Invalid")
    ready = condition_in(pool, "Ready")
    assert ready is not None
    assert "tolerationz: field not declared in schema" in ready["message"]
    await asyncio.sleep(3.0)
    assert operator.log.read_text().count("refused by the API server") <= 2
    await stage.apply(pool_document("chat", replicas=1))
    await stage.until_ready(MODEL_POOL, "chat")


async def test_replicas_follow_the_load_again_when_a_roll_out_is_past_its_deadline(
    stage: Stage,
) -> None:
    ray = await stage.play_ray()
    slow = Behaviour(react=0.05, pod_start=0.1, pod_problem=PodProblem.IMAGE_PULL)
    ray.behave(slow)
    operator = await stage.operator()
    await operator.until_leading()
    key = f"{stage.namespace}/chat"
    stage.gateway.queued[key] = 35
    rollout = {"progressDeadline": "4s"}
    await stage.apply(pool_document("chat", autoscaling=AUTOSCALING, rollout=rollout))
    await until(lambda: stage.get(RAY_SERVICE, "chat"))
    await asyncio.sleep(2.5)
    assert "num_replicas: 1" == await replicas_in(stage)
    await stage.until_condition(
        MODEL_POOL, "chat", "Progressing", "False", reason="ProgressDeadlineExceeded", seconds=40
    )

    async def scaled() -> bool:
        return await replicas_in(stage) == "num_replicas: 4"

    await until(scaled)
    stage.gateway.queued.clear()


def strangers_service() -> dict[str, Any]:
    """A RayService that somebody runs by hand."""
    container = {"name": "head", "image": "example.com/ray:1"}
    head = {"rayStartParams": {}, "template": {"spec": {"containers": [container]}}}
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayService",
        "metadata": {"name": "chat"},
        "spec": {"serveConfigV2": "applications: []", "rayClusterConfig": {"headGroupSpec": head}},
    }


async def test_a_strangers_objects_are_left_alone_and_the_pool_starts_when_they_are_gone(
    stage: Stage,
) -> None:
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "chat-access"},
        "stringData": {"password": "theirs"},
    }
    await stage.apply(secret, strangers_service())
    operator = await stage.operator()
    await operator.until_leading()
    await stage.apply(pool_document("chat", replicas=1))
    pool = await stage.until_condition(MODEL_POOL, "chat", "ReplicasReady", "False")
    told = condition_in(pool, "ReplicasReady")
    assert told is not None
    assert "was not made for this pool" in told["message"]
    await asyncio.sleep(2.0)
    for kind, name in ((SECRET, "chat-access"), (RAY_SERVICE, "chat")):
        theirs = await stage.get(kind, name)
        assert theirs is not None
        assert "pointsman-operator" not in str(theirs)
        await stage.delete(kind, name)
        await until(functools.partial(is_gone, stage, kind, name))
    await stage.play_ray()

    async def made() -> bool:
        service, access = (
            await stage.get(RAY_SERVICE, "chat"),
            await stage.get(SECRET, "chat-access"),
        )
        return all("pointsman-operator" in str(item) for item in (service, access))

    await until(made, seconds=30)


async def test_a_running_pool_stays_in_use_when_its_secret_is_deleted(stage: Stage) -> None:
    await stage.play_ray()
    operator = await stage.operator(resync_seconds=2)
    await operator.until_leading()
    await stage.apply(pool_document("chat", replicas=1))
    await stage.until_ready(MODEL_POOL, "chat")
    before = await stage.get(SECRET, "chat-access")
    service = await stage.get(RAY_SERVICE, "chat")
    assert before is not None
    await stage.delete(SECRET, "chat-access")

    async def back() -> bool:
        secret = await stage.get(SECRET, "chat-access")
        return secret is not None and secret["data"] == before["data"]

    await until(back, seconds=30)
    after = await stage.get(RAY_SERVICE, "chat")
    assert service is not None
    assert after is not None
    assert service["spec"] == after["spec"]


async def test_a_second_cluster_takes_over_when_a_restarted_operator_finds_the_secret_deleted(
    stage: Stage,
) -> None:
    ray = await stage.play_ray()
    operator = await stage.operator()
    await operator.until_leading()
    await stage.apply(pool_document("chat", replicas=1, rollout={"drainTimeout": "1s"}))
    await stage.until_ready(MODEL_POOL, "chat")
    first = set(ray.replicas(stage.namespace, "chat"))
    before = await stage.get(SECRET, "chat-access")
    assert before is not None
    await operator.stop()
    await stage.delete(SECRET, "chat-access")
    again = await stage.operator(name="again")
    await again.until_leading()

    async def replaced() -> bool:
        living = set(ray.replicas(stage.namespace, "chat"))
        return bool(living) and living.isdisjoint(first)

    await until(replaced, seconds=60)
    await stage.until_condition(MODEL_POOL, "chat", "Progressing", "False", reason="RolledOut")
    await stage.until_ready(MODEL_POOL, "chat")
    after = await stage.get(SECRET, "chat-access")
    assert after is not None
    assert before["data"]["auth_token"] != after["data"]["auth_token"]
    # The gateways had it, so requests were answered all the time.
    assert before["data"]["replica_token"] == after["data"]["replica_token"]
