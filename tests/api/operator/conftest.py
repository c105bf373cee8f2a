from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from pointsman_kube.client import Kube
from pointsman_kube.kinds import (
    CONTROLLER_REVISION,
    MODEL_POOL,
    POD,
    RAY_CLUSTER,
    RAY_SERVICE,
    ROUTE_POLICY,
    SECRET,
    Kind,
    Object,
    Ref,
)
from tests.api.operator.stage import Stage
from tests.cluster.cluster import Cluster


@pytest.fixture
async def admin(api_server: Cluster) -> AsyncIterator[Kube]:
    """A connection that may do everything."""
    async with await Kube.connect(str(api_server.kubeconfig), field_manager="test") as kube:
        yield kube


@pytest.fixture
async def stage(
    api_server: Cluster, admin: Kube, namespace: str, tmp_path: Path
) -> AsyncIterator[Stage]:
    """Everything that an operator needs but KubeRay's CRDs: see :class:`Stage`."""
    await clean(admin)
    async with Stage(api_server, admin, namespace, tmp_path) as ready:
        yield ready
    await clean(admin)


async def clean(admin: Kube) -> None:
    """Delete what tests have made, in this folder or another: operators act on every namespace."""
    for kind in (ROUTE_POLICY, MODEL_POOL, RAY_SERVICE, RAY_CLUSTER, CONTROLLER_REVISION, POD):
        with contextlib.suppress(Exception):
            items, _ = await admin.list(kind, metadata_only=True)
            await asyncio.gather(*(admin.delete(_ref(kind, item)) for item in items))
    with contextlib.suppress(Exception):
        items, _ = await admin.list(SECRET, label_selector="app.kubernetes.io/part-of=pointsman")
        await asyncio.gather(*(admin.delete(_ref(SECRET, item)) for item in items))


def _ref(kind: Kind, item: Object) -> Ref:
    metadata = item["metadata"]
    return Ref(kind=kind, namespace=metadata.get("namespace", ""), name=metadata["name"])
