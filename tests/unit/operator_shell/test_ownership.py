from __future__ import annotations

import asyncio
from typing import Any

from pointsman_operator.lease import Election
from pointsman_operator.ownership import read_owner
from tests.unit.operator_shell.fake_kube import FakeKube

LEASE = "leases.coordination.k8s.io system/operator"
OWNER = {
    "apiVersion": "apps/v1",
    "kind": "Deployment",
    "name": "pointsman-operator",
    "uid": "uid-1",
    "controller": False,
    "blockOwnerDeletion": False,
}


async def owner_of(kube: FakeKube, deployment: str) -> Any:
    return await read_owner(
        kube,  # type: ignore[arg-type]
        namespace="system",
        deployment=deployment,
    )


async def test_the_deployment_owns_when_it_is_named_and_there() -> None:
    kube = FakeKube()
    kube.objects["deployments.apps system/pointsman-operator"] = {"metadata": {"uid": "uid-1"}}
    assert OWNER == await owner_of(kube, "pointsman-operator")


async def test_nobody_owns_when_no_deployment_is_named_or_it_is_not_there() -> None:
    kube = FakeKube()
    assert None is await owner_of(kube, "")
    assert [] == kube.calls
    assert None is await owner_of(kube, "another")


async def test_the_lease_is_owned_when_it_is_made() -> None:
    kube = FakeKube()
    election = Election(
        kube,  # type: ignore[arg-type]
        namespace="system",
        name="operator",
        identity="first",
        owner=OWNER,
    )
    async with asyncio.timeout(3):
        await election.win()
    assert [OWNER] == kube.objects[LEASE]["metadata"]["ownerReferences"]
