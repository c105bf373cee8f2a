"""What the API server, or the time, does not allow: it is told, and holds up nothing else."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from pointsman_kube.kinds import MODEL_POOL, RAY_SERVICE
from tests.api.operator.stage import Stage, condition_in, until
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
