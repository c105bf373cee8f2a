"""What the operator writes in its own namespace: in which order, and who owns it."""

from __future__ import annotations

import asyncio

import pytest

from pointsman_api.route_config import read_config
from pointsman_kube.kinds import (
    CONFIG_MAP,
    ENDPOINT_SLICE,
    LEASE,
    MODEL_POOL,
    SECRET,
)
from tests.api.operator.stage import Stage, until
from tests.contract.samples import pool_document

pytestmark = [pytest.mark.usefixtures("kuberay_installed"), pytest.mark.timeout(240)]

CREDENTIALS = "pointsman-default-credentials"


async def test_all_goes_with_the_deployment_when_it_is_named(stage: Stage) -> None:
    await stage.play_ray()
    # What an operator without the setting has written gets its owner, too.
    before = await stage.operator(name="before", lease_name="other")
    await before.until_leading()
    await stage.apply(pool_document("chat", replicas=1))
    await stage.until_ready(MODEL_POOL, "chat")
    await before.stop()
    deployment = await stage.make_deployment("release-operator")
    operator = await stage.operator(deployment="release-operator")
    await operator.until_leading()
    owner = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "name": "release-operator",
        "uid": deployment["metadata"]["uid"],
        "controller": False,
        "blockOwnerDeletion": False,
    }

    async def all_owned() -> bool:
        slices, _ = await stage.admin.list(ENDPOINT_SLICE, stage.namespace)
        maps, _ = await stage.admin.list(
            CONFIG_MAP, stage.namespace, label_selector="pointsman.dev/gateway"
        )
        secret = await stage.get(SECRET, CREDENTIALS)
        lease = await stage.get(LEASE, "pointsman-operator")
        owners = [
            (item or {"metadata": {}})["metadata"].get("ownerReferences")
            for item in (*slices, *maps, secret, lease)
        ]
        return bool(slices and maps) and owners == [[owner]] * len(owners)

    await until(all_owned)
    # What lies beside its pool is the pool's.
    access = await stage.get(SECRET, "chat-access")
    assert access is not None
    assert ["ModelPool"] == [each["kind"] for each in access["metadata"]["ownerReferences"]]


async def test_works_without_owner_when_the_deployment_is_not_there(stage: Stage) -> None:
    operator = await stage.operator(deployment="somebody-elses")
    await operator.until_leading()
    await until(lambda: stage.get(SECRET, CREDENTIALS))
    secret = await stage.get(SECRET, CREDENTIALS)
    assert secret is not None
    assert "ownerReferences" not in secret["metadata"]
    assert "cannot be read" in operator.log.read_text()


async def test_the_route_table_is_written_when_there_is_nothing_to_route(stage: Stage) -> None:
    """A gateway is Ready only once it has one."""
    operator = await stage.operator()
    await operator.until_leading()
    await until(lambda: stage.get(CONFIG_MAP, "pointsman-default-routes-0"), 5.0)
    config_map = await stage.get(CONFIG_MAP, "pointsman-default-routes-0")
    assert {} == read_config([config_map or {}]).table.pools
    assert await stage.get(SECRET, CREDENTIALS)


async def test_gateways_have_the_token_when_the_first_replica_is_told(stage: Stage) -> None:
    await stage.play_ray()
    first = await stage.operator(name="first")
    await first.until_leading()
    await stage.apply(pool_document("chat", replicas=1))
    await stage.until_ready(MODEL_POOL, "chat")
    await first.stop()
    # The replicas run, and everything about them is to be written at once.
    slices, version = await stage.admin.list(ENDPOINT_SLICE, stage.namespace)
    for item in slices:
        await stage.delete(ENDPOINT_SLICE, item["metadata"]["name"])
    await stage.delete(SECRET, CREDENTIALS)
    second = await stage.operator(name="second")

    async def token_at_first_slice() -> bool:
        events = stage.admin.watch(ENDPOINT_SLICE, stage.namespace, resource_version=version)
        async for event, _ in events:
            if event == "ADDED":
                secret = await stage.get(SECRET, CREDENTIALS)
                return f"token.{stage.namespace}.chat" in ((secret or {}).get("data") or {})
        return False

    async with asyncio.timeout(30):
        assert await token_at_first_slice()
    await second.until_leading()
    await stage.until_ready(MODEL_POOL, "chat")
