"""500 pools, 50 policies, and a restart that writes nothing: ``python -m tests.api.scale``.

On a real API server, with Ray and a gateway played by doubles. Prints a table; refuses to report
numbers when something did not converge.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from pointsman_kube.client import Kube
from pointsman_kube.kinds import ENDPOINT_SLICE, MODEL_POOL, RAY_SERVICE, ROUTE_POLICY
from tests.api.operator.process import OperatorProcess
from tests.api.operator.stage import Stage, condition_in
from tests.cluster.api_server import ApiServer
from tests.cluster.audit import ApiCall
from tests.cluster.binaries import kuberay_crds
from tests.cluster.fixtures import CRDS
from tests.cluster.ray_double import Behaviour
from tests.contract.samples import policy_document, pool_document, rule_document

NAMESPACE = "scale"
BEHAVIOUR = Behaviour(
    react=0.3, pod_start=1.0, replica_start=1.0, drain=0.3, blank=2.0, flap_every=0.0
)


class ScaleError(RuntimeError):
    """It did not converge; the message says what is missing."""


async def scale(pools: int, policies: int, *, still_seconds: float, folder: Path) -> dict[str, Any]:
    """Run it; the numbers by name."""
    with ApiServer() as server:
        await asyncio.to_thread(server.apply_crds, *sorted(CRDS.glob("*.yaml")), *kuberay_crds())
        server.create_namespace(NAMESPACE)
        async with (
            await Kube.connect(str(server.kubeconfig), field_manager="scale") as admin,
            Stage(server, admin, NAMESPACE, folder, behaviour=BEHAVIOUR) as stage,
        ):
            await stage.play_ray()
            return await _story(stage, server, pools, policies, still_seconds)


async def _story(
    stage: Stage, server: ApiServer, pools: int, policies: int, still_seconds: float
) -> dict[str, Any]:
    operator = await stage.operator(name="first")
    await operator.until_leading(60)
    names = [f"pool-{number:03}" for number in range(pools)]
    began, moment = time.monotonic(), datetime.now(UTC)
    await _in_parallel(
        stage, [pool_document(name, servedModelName=name, replicas=1) for name in names]
    )
    share = max(1, pools // policies)
    await _in_parallel(
        stage,
        [
            policy_document(
                f"policy-{number:02}",
                rule_document(*names[number * share : number * share + 4] or names[:1]),
                modelNames=[f"model-{number:02}"],
            )
            for number in range(policies)
        ],
    )
    created = time.monotonic() - began
    await _until_converged(stage, names, policies, seconds=600)
    converged = time.monotonic() - began
    cpu_until_converged = _cpu_by_process(stage, operator, server)
    calls = _calls(server, moment)
    reconciles = await operator.metric("pointsman_operator_reconciles_total")
    # Let what was last written settle before the still time is looked at.
    await asyncio.sleep(5)
    still_from = datetime.now(UTC)
    await asyncio.sleep(still_seconds)
    still = _calls(server, still_from)
    rss, cpu = operator.running.rss_bytes(), _cpu_seconds(operator.running.pid)
    took = await _edit_seconds(stage, names)
    # The last edit's status is written by the one that made it.
    await asyncio.sleep(5)
    await operator.stop()
    restarted_at = datetime.now(UTC)
    again = await stage.operator(name="again")
    await again.until_leading(60)
    await _until_reconciled(again, pools)
    await asyncio.sleep(10)
    after = _calls(server, restarted_at)
    return {
        "pools": pools,
        "policies": policies,
        "seconds_to_create": round(created, 1),
        "seconds_to_converge": round(converged, 1),
        "cpu_seconds_until_converged": cpu_until_converged,
        "operator_cpu_seconds": cpu,
        "rss_mb": round(rss / 1e6),
        "rss_mb_after_restart": round(again.running.rss_bytes() / 1e6),
        "api_calls": len(calls),
        "api_calls_per_pool": round(len(calls) / pools, 1),
        "calls_of_doubles_per_pool": round(len(_calls(server, moment, "ray-double")) / pools, 1),
        "reconciles": int(reconciles),
        "api_calls_per_reconcile": round(len(calls) / max(1.0, reconciles), 2),
        "calls_by_kind": dict(
            Counter(f"{call.verb} {call.resource}" for call in calls).most_common(14)
        ),
        "idle_calls_per_second": round(len(still) / still_seconds, 2),
        "idle_writes": [_line(call) for call in still if _is_write(call)],
        "restart_writes": [_line(call) for call in after if _is_write(call)],
        "restart_calls": len(after),
        "policy_edit_ms": [round(seconds * 1000) for seconds in took],
    }


async def _in_parallel(stage: Stage, objects: list[dict[str, Any]], workers: int = 8) -> None:
    waiting = list(reversed(objects))

    async def work() -> None:
        while waiting:
            await stage.apply(waiting.pop())

    await asyncio.gather(*(work() for _ in range(workers)))


async def _until_converged(
    stage: Stage, names: list[str], policies: int, *, seconds: float
) -> None:
    deadline = time.monotonic() + seconds
    while True:
        missing = await _missing(stage, names, policies)
        if not missing:
            return
        if time.monotonic() > deadline:
            raise ScaleError("; ".join(missing))
        await asyncio.sleep(1)


async def _missing(stage: Stage, names: list[str], policies: int) -> list[str]:
    """What is not yet as it should be, in words."""
    table = stage.gateway.table
    if table is None or len(table.pools) < len(names):
        return [f"the route table has {0 if table is None else len(table.pools)} pools"]
    # What the gateway knows costs no call: 500 pools listed every second are work for the server.
    serving = [
        pool for pool in stage.gateway.pools.values() if any(e.ready for e in pool.endpoints)
    ]
    if len(serving) < len(names):
        return [f"the gateway has replicas of {len(serving)} of {len(names)} pools"]
    found, _ = await stage.admin.list(MODEL_POOL)
    ready = [pool for pool in found if _is_ready(pool)]
    if len(ready) < len(names):
        return [f"{len(ready)} of {len(names)} pools are ready"]
    routes, _ = await stage.admin.list(ROUTE_POLICY)
    if sum(map(_is_ready, routes)) < policies:
        return [f"{sum(map(_is_ready, routes))} of {policies} policies are ready"]
    services, _ = await stage.admin.list(RAY_SERVICE, metadata_only=True)
    slices, _ = await stage.admin.list(ENDPOINT_SLICE, NAMESPACE)
    serving = [s for s in slices if any(e["conditions"]["ready"] for e in s["endpoints"])]
    if len(services) != len(names) or len(serving) != len(names):
        return [f"{len(services)} RayServices, {len(serving)} EndpointSlices"]
    return []


def _is_ready(item: dict[str, Any]) -> bool:
    ready = condition_in(item, "Ready")
    return (
        ready is not None
        and ready["status"] == "True"
        and ready["observedGeneration"] == item["metadata"]["generation"]
    )


async def _edit_seconds(stage: Stage, names: list[str]) -> list[float]:
    """From the API's reply to a policy edit until a gateway has it, ten times."""
    took = []
    for number in range(10):
        model = f"edited-{number}"
        await stage.apply(policy_document("policy-00", rule_document(names[0]), modelNames=[model]))
        replied = time.monotonic()
        while stage.gateway.table is None or model not in stage.gateway.table.routes:
            await asyncio.sleep(0.005)
            if time.monotonic() - replied > 30:
                raise ScaleError("a policy edit did not reach the gateway within 30 s")
        took.append(time.monotonic() - replied)
        await asyncio.sleep(0.5)
    return sorted(took)


async def _until_reconciled(operator: OperatorProcess, pools: int) -> None:
    deadline = time.monotonic() + 300
    while await operator.metric("pointsman_operator_reconciles_total") < pools:
        if time.monotonic() > deadline:
            raise ScaleError("the restarted operator did not look at all pools within 300 s")
        await asyncio.sleep(1)


def _cpu_by_process(stage: Stage, operator: OperatorProcess, server: ApiServer) -> dict[str, float]:
    """Who needed how much: the doubles and this program are one process."""
    pids = {"operator": operator.running.pid, "doubles": os.getpid(), **server.pids()}
    return {name: _cpu_seconds(pid) for name, pid in pids.items()}


def _cpu_seconds(pid: int) -> float:
    """Processor time until now: what is needed on a machine that others use, too."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return round((int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"), 1)


def _calls(server: ApiServer, since: datetime, *agents: str) -> list[ApiCall]:
    """The calls of the operator, or of somebody else."""
    return [
        call
        for call in server.calls()
        if call.at >= since - timedelta(milliseconds=1)
        and call.user_agent.startswith(agents or ("pointsman-operator", "kopf"))
    ]


def _is_write(call: ApiCall) -> bool:
    return call.writes and call.resource != "leases"


def _line(call: ApiCall) -> str:
    return f"{call.verb} {call.resource} {call.namespace}/{call.name} {call.code}"


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pools", type=int, default=500)
    parser.add_argument("--policies", type=int, default=50)
    parser.add_argument("--still-seconds", type=float, default=30.0)
    parser.add_argument("--out", type=Path, help="write the numbers as JSON, too")
    parser.add_argument("--folder", type=Path, help="keep the operator's logs here")
    options = parser.parse_args()
    # The API server shares the machine with what is measured; it would collect garbage for a third
    # of its time.
    os.environ.setdefault("GOGC", "400")
    with tempfile.TemporaryDirectory() as temporary:
        try:
            numbers = asyncio.run(
                scale(
                    options.pools,
                    options.policies,
                    still_seconds=options.still_seconds,
                    folder=options.folder or Path(temporary),
                )
            )
        except ScaleError as error:
            sys.exit(f"did not converge: {error}")
    for name, value in numbers.items():
        shown = f"{len(value)}: {value[:5]}" if name.endswith("writes") else value
        print(f"{name:28} {shown}")
    if options.out:
        options.out.write_text(json.dumps(numbers, indent=2) + "\n")


if __name__ == "__main__":
    main()
