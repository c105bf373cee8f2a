"""Life and death of operators: restarts, kills, two of them, and an API server that goes away."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from pointsman_kube.client import Kube
from pointsman_kube.kinds import (
    CONTROLLER_REVISION,
    ENDPOINT_SLICE,
    LEASE,
    MODEL_POOL,
    RAY_CLUSTER,
    RAY_SERVICE,
    ROUTE_POLICY,
    Ref,
)
from pointsman_operator.permissions import PERMISSIONS, Scope
from tests.api.operator.process import OperatorProcess
from tests.api.operator.stage import Stage, is_gone, until
from tests.api.operator.stuck import make_stuck_cluster
from tests.cluster.api_server import ApiServer
from tests.cluster.cluster import Cluster
from tests.contract.samples import policy_document, pool_document, rule_document

pytestmark = [pytest.mark.usefixtures("kuberay_installed"), pytest.mark.timeout(240)]

NAMES = [f"pool-{number}" for number in range(6)]


async def converge(stage: Stage) -> None:
    pools = [pool_document(name, replicas=1) for name in NAMES]
    await stage.apply(*pools, policy_document("all", rule_document(*NAMES)))
    await stage.until_ready(MODEL_POOL, *NAMES, seconds=60)
    await stage.until_ready(ROUTE_POLICY, "all")


def writes_since(server: Cluster, moment: datetime) -> list[str]:
    """What operators wrote, but for leases: each write as a line."""
    assert isinstance(server, ApiServer)
    return [
        f"{call.verb} {call.resource} {call.namespace}/{call.name} {call.code}"
        for call in server.calls()
        if call.writes and call.at >= moment and call.resource != "leases"
        if call.user_agent.startswith(("pointsman-operator", "kopf"))
    ]


async def test_restart_writes_nothing_when_nothing_has_changed(
    stage: Stage, api_server: Cluster
) -> None:
    if not isinstance(api_server, ApiServer):
        pytest.skip("the audit log of this cluster is not ours to read")
    await stage.play_ray()
    first = await stage.operator(name="first")
    await first.until_leading()
    await converge(stage)
    await asyncio.sleep(3.0)
    await first.stop()
    moment = datetime.now(UTC)
    second = await stage.operator(name="second")
    await second.until_leading()
    await until(lambda: _reconciled(second, len(NAMES)))
    await asyncio.sleep(8.0)
    assert [] == await asyncio.to_thread(writes_since, api_server, moment)


async def _reconciled(operator: OperatorProcess, count: int) -> bool:
    return await operator.metric("pointsman_operator_reconciles_total") >= count


@pytest.mark.pain_25
async def test_pools_keep_no_trace_of_the_operator_and_go_without_it(stage: Stage) -> None:
    await stage.play_ray()
    operator = await stage.operator()
    await operator.until_leading()
    await stage.apply(pool_document("chat", replicas=1))
    await stage.until_ready(MODEL_POOL, "chat")
    for kind, name in ((MODEL_POOL, "chat"),):
        metadata = (await stage.get(kind, name) or {})["metadata"]
        assert "finalizers" not in metadata
        assert "annotations" not in metadata
        managers = {
            (entry["manager"], entry.get("subresource", "")) for entry in metadata["managedFields"]
        }
        assert managers == {("test", ""), ("pointsman-operator", "status")}
    await operator.stop(grace_seconds=0)
    await stage.delete(MODEL_POOL, "chat")
    assert await stage.get(MODEL_POOL, "chat") is None
    # What happened while nobody was there is caught up with.
    again = await stage.operator(name="again")
    await again.until_leading()

    async def swept() -> bool:
        return not (await stage.admin.list(ENDPOINT_SLICE, stage.namespace))[0]

    await until(swept, 15.0)
    await until(lambda: stage.gateway.table is not None and not stage.gateway.table.pools)


async def test_other_operator_takes_over_when_the_leader_is_killed(stage: Stage) -> None:
    await stage.play_ray()
    first = await stage.operator(name="first")
    await first.until_leading()
    second = await stage.operator(name="second")
    await second.until_ready()
    await converge(stage)
    assert 0.0 == await second.metric("pointsman_operator_leader")
    killed = time.monotonic()
    await first.stop(grace_seconds=0)
    await stage.apply(pool_document("late", replicas=1))
    await until(lambda: stage.get(RAY_SERVICE, "late"), 25.0)
    took = time.monotonic() - killed
    print(f"kill -9 of the leader to the next one's first write: {took:.1f} s")
    assert took < 20.0


async def test_other_operator_takes_over_at_once_when_the_leader_is_ended(stage: Stage) -> None:
    first = await stage.operator(name="first")
    await first.until_leading()
    second = await stage.operator(name="second")
    await second.until_ready()
    process = first.running
    ended = time.monotonic()
    await first.stop()
    took = time.monotonic() - ended
    assert not process.is_alive
    assert took < 5.0
    await second.until_leading(10.0)
    print(f"SIGTERM: ended after {took:.1f} s, led after {time.monotonic() - ended:.1f} s")


async def test_leader_ends_when_another_one_has_the_lease(stage: Stage, admin: Kube) -> None:
    operator = await stage.operator()
    await operator.until_leading()
    ref = Ref(kind=LEASE, namespace=stage.namespace, name="pointsman-operator")
    await admin.merge(ref, {"spec": {"holderIdentity": "somebody else"}})
    stolen = time.monotonic()
    process = operator.running
    await until(lambda: not process.is_alive, 20.0)
    print(f"lease stolen: ended after {time.monotonic() - stolen:.1f} s")
    assert "the lease is lost" in operator.log.read_text()
    lease = await admin.get(ref)
    assert "somebody else" == lease["spec"]["holderIdentity"]


async def test_converges_when_it_is_killed_again_and_again(stage: Stage) -> None:
    await stage.play_ray()
    short = {"lease_seconds": 5, "renew_deadline_seconds": 4, "retry_seconds": 0.5}
    for name in NAMES:
        await stage.apply(pool_document(name, replicas=1))
    for life in range(3):
        operator = await stage.operator(name=f"life-{life}", **short)
        await operator.until_leading()
        await asyncio.sleep(0.15 * life)
        await operator.stop(grace_seconds=0)
    operator = await stage.operator(name="last", **short)
    await operator.until_leading()
    await stage.until_ready(MODEL_POOL, *NAMES, seconds=60)
    revisions, _ = await stage.admin.list(CONTROLLER_REVISION, stage.namespace)
    assert len(NAMES) == len(revisions)


@pytest.mark.pain_2
async def test_sees_deletions_when_the_api_server_was_away(
    stage: Stage, stoppable_api_server: ApiServer
) -> None:
    """The server forgets what happened meanwhile, so no watch can tell it."""
    await stage.play_ray()
    operator = await stage.operator(
        sweep_seconds=5, lease_seconds=60, renew_deadline_seconds=50, retry_seconds=2
    )
    await operator.until_leading()
    await converge(stage)
    server = stoppable_api_server
    assert operator.process is not None

    def gap() -> None:
        # The operator sleeps while pools go: its watches cannot tell it.
        server.stop(grace_seconds=0)
        server.forget_history()
        server.start()

    os.kill(operator.running.pid, signal.SIGSTOP)
    try:
        await stage.delete(MODEL_POOL, NAMES[0])
        await stage.apply(pool_document(NAMES[1], replicas=2))
        await asyncio.to_thread(gap)
    finally:
        os.kill(operator.running.pid, signal.SIGCONT)
    key = f"{stage.namespace}/{NAMES[0]}"
    await until(
        lambda: stage.gateway.table is not None and key not in stage.gateway.table.pools, 60.0
    )

    async def changed() -> bool:
        pool = await stage.get(MODEL_POOL, NAMES[1])
        return bool((pool or {})["status"]["readyReplicas"] == 2)

    await until(changed, 60.0)

    async def healthy() -> bool:
        return (await operator.ask("/healthz"))[0] == 200

    # The process stood still for longer than a loop may; it recovers by itself.
    await until(healthy, 30.0)


async def test_says_what_to_do_when_the_crds_are_missing(stage: Stage, tmp_path: Path) -> None:
    with ApiServer() as bare:
        operator = OperatorProcess(bare, tmp_path, name="bare", namespace="default")
        operator.start()
        process = operator.running
        await until(lambda: not process.is_alive, 30.0)
    text = operator.log.read_text()
    assert "kubectl apply --server-side -f crds/modelpools.yaml" in text


async def test_needs_no_more_rights_than_its_table_says(
    stage: Stage, api_server: Cluster, tmp_path: Path
) -> None:
    if not isinstance(api_server, ApiServer):
        pytest.skip("the audit log of this cluster is not ours to read")
    moment = datetime.now(UTC)
    token = await asyncio.to_thread(
        api_server.service_account_token, stage.namespace, "pointsman-operator"
    )
    for item in roles(stage.namespace):
        await asyncio.to_thread(api_server.kubectl, "apply", "-f", "-", stdin=item)
    kubeconfig = api_server.write_kubeconfig(tmp_path / "limited", token=token)
    await stage.play_ray()
    await stage.make_deployment("release-operator")
    await make_stuck_cluster(stage, "stuck")
    operator = await stage.operator(
        kubeconfig=kubeconfig, deployment="release-operator", stuck_seconds=2
    )
    await operator.until_leading()
    await converge(stage)
    await until(lambda: is_gone(stage, RAY_CLUSTER, "stuck"))
    await stage.delete(MODEL_POOL, NAMES[0])
    await stage.apply(pool_document(NAMES[1], replicas=0))

    await until(lambda: is_gone(stage, RAY_SERVICE, NAMES[1]))
    await operator.stop()
    user = f"system:serviceaccount:{stage.namespace}:pointsman-operator"
    calls = [c for c in api_server.calls() if c.user == user and c.at >= moment]
    assert [] == [call for call in calls if call.code == 403]
    allowed = {
        (permission.group, permission.resource, verb)
        for permission in PERMISSIONS
        for verb in permission.verbs
    }
    used = {(c.group, c.resource, c.verb) for c in calls if not c.resource.startswith("/")}
    assert set() == used - allowed
    unused = {item for item in allowed - used if item not in NOT_IN_THIS_STORY}
    assert set() == unused


NOT_IN_THIS_STORY = {
    ("", "pods/log", "get"),
    ("", "configmaps", "delete"),
    ("", "secrets", "delete"),
    ("apps", "controllerrevisions", "delete"),
    # Server-side apply of what is not there asks for `create` without being counted as one.
    ("", "configmaps", "create"),
    ("ray.io", "rayservices", "create"),
    ("apps", "controllerrevisions", "create"),
    ("discovery.k8s.io", "endpointslices", "create"),
}


def roles(namespace: str) -> list[dict[str, Any]]:
    """The roles that the table asks for, bound to the account ``pointsman-operator``."""
    subject = {"kind": "ServiceAccount", "name": "pointsman-operator", "namespace": namespace}
    made = []
    for scope, prefix in ((Scope.CLUSTER, "Cluster"), (Scope.OWN_NAMESPACE, "")):
        name = f"pointsman-{namespace}"
        metadata = {"name": name} if prefix else {"name": name, "namespace": namespace}
        rules = [
            {
                "apiGroups": [item.group],
                "resources": [item.resource],
                "verbs": list(item.verbs),
            }
            for item in PERMISSIONS
            if item.scope is scope
        ]
        group = "rbac.authorization.k8s.io"
        made.append(
            {
                "apiVersion": f"{group}/v1",
                "kind": f"{prefix}Role",
                "metadata": metadata,
                "rules": rules,
            }
        )
        made.append(
            {
                "apiVersion": f"{group}/v1",
                "kind": f"{prefix}RoleBinding",
                "metadata": metadata,
                "roleRef": {"apiGroup": group, "kind": f"{prefix}Role", "name": name},
                "subjects": [subject],
            }
        )
    return made
