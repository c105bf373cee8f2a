"""Small clusters to decide about: pools, and what the API, Ray and the gateways say of them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from pointsman_api.modelpool import ModelPool
from pointsman_api.routepolicy import RoutePolicy
from pointsman_operator.observed import (
    GatewayReport,
    GatewayView,
    PoolObserved,
    PoolReport,
    ServeReading,
    read_serve,
)
from pointsman_operator.plan import AccessTokens, PoolPlan, plan_pool
from pointsman_operator.revision import application_in
from pointsman_operator.settings import OperatorSettings

NOW = 1_800_000_000.0
FRESH = AccessTokens(auth_token="a" * 32, replica_token="r" * 32)
SETTINGS = OperatorSettings()
QUICKSTART = Path(__file__).resolve().parents[3] / "examples" / "quickstart"


def made_pool(
    *,
    name: str = "chat",
    namespace: str = "team",
    engine: Mapping[str, Any] | None = None,
    ray_serve: Mapping[str, Any] | None = None,
    status: Mapping[str, Any] | None = None,
    annotations: Mapping[str, str] | None = None,
    generation: int = 1,
    **spec: Any,
) -> ModelPool:
    """A Simulated pool, unless the arguments say otherwise; keys as YAML names them."""
    backend = {"engine": {"type": "Simulated", **(engine or {})}, **(ray_serve or {})}
    return ModelPool.model_validate(
        {
            "apiVersion": "pointsman.dev/v1alpha1",
            "kind": "ModelPool",
            "metadata": {
                "name": name,
                "namespace": namespace,
                "uid": f"uid-{name}",
                "generation": generation,
                "annotations": dict(annotations or {}),
            },
            "spec": {
                "servedModelName": name,
                "backend": {"type": "RayServe", "rayServe": backend},
                **spec,
            },
            **({} if status is None else {"status": status}),
        }
    )


def external_pool(name: str = "provider", namespace: str = "team", **external: Any) -> ModelPool:
    """A pool of somebody else's addresses."""
    return ModelPool.model_validate(
        {
            "metadata": {"name": name, "namespace": namespace, "uid": f"uid-{name}"},
            "spec": {
                "servedModelName": name,
                "backend": {
                    "type": "External",
                    "external": {"endpoints": [{"url": "https://api.example.com/v1"}], **external},
                },
            },
        }
    )


def selector_pool(name: str = "vllm", namespace: str = "team") -> ModelPool:
    """A pool of pods that somebody else runs."""
    return ModelPool.model_validate(
        {
            "metadata": {"name": name, "namespace": namespace, "uid": f"uid-{name}"},
            "spec": {
                "servedModelName": name,
                "backend": {
                    "type": "PodSelector",
                    "podSelector": {"selector": {"matchLabels": {"app": name}}, "port": 8000},
                },
            },
        }
    )


def made_policy(
    name: str = "assistant",
    namespace: str = "team",
    *,
    pools: tuple[str, ...] = ("chat",),
    names: tuple[str, ...] | None = None,
    gateway: str = "default",
    created: str = "2026-01-01T00:00:00Z",
) -> RoutePolicy:
    """A policy with one rule over some pools of its namespace."""
    return RoutePolicy.model_validate(
        {
            "metadata": {
                "name": name,
                "namespace": namespace,
                "generation": 1,
                "creationTimestamp": created,
            },
            "spec": {
                "gatewayRef": {"name": gateway},
                "modelNames": list(names or (name,)),
                "rules": [
                    {
                        "name": "default",
                        "targets": [{"poolRef": {"name": pool}} for pool in pools],
                    }
                ],
            },
        }
    )


def quickstart_pool(name: str) -> ModelPool:
    """A pool of the quickstart, as the API server returns it."""
    document = yaml.safe_load((QUICKSTART / f"modelpool-{name}.yaml").read_text())
    document["metadata"] |= {"uid": f"uid-{name}", "generation": 1}
    return ModelPool.model_validate(document)


def planned(
    pool: ModelPool,
    observed: PoolObserved | None = None,
    *,
    replicas: int = 2,
    settings: OperatorSettings = SETTINGS,
) -> PoolPlan:
    """The plan for a pool that wants some replicas."""
    return plan_pool(
        pool,
        observed or PoolObserved(now=NOW),
        settings,
        wanted_replicas=replicas,
        fresh=FRESH,
    )


def with_applied(observed: PoolObserved, plan: PoolPlan) -> PoolObserved:
    """What the API server has after a plan was carried out."""
    secret, service = observed.access_secret, observed.ray_service
    revisions = {item["metadata"]["name"]: item for item in observed.revisions}
    for obj in (*plan.create, *plan.apply):
        live = copy.deepcopy(obj)
        if obj["kind"] == "Secret":
            before = {} if secret is None else secret["data"]
            secret = {**live, "data": {**before, **live["data"]}}
        elif obj["kind"] == "ControllerRevision":
            live["metadata"]["creationTimestamp"] = "2026-11-01T00:00:00Z"
            revisions[live["metadata"]["name"]] = live
        else:
            old = {} if service is None else service
            generation = (old.get("metadata") or {}).get("generation", 0) + 1
            live["metadata"] |= {"generation": generation}
            service = {**live, "status": old.get("status") or {}}
    for ref in plan.delete:
        if ref.kind.name == "ControllerRevision":
            revisions.pop(ref.name, None)
        elif ref.kind.name == "RayService":
            service = None
    return replace(
        observed,
        access_secret=secret,
        ray_service=service,
        revisions=tuple(revisions.values()),
    )


def service_status(
    service: Mapping[str, Any], *, active: str = "", pending: str = ""
) -> dict[str, Any]:
    """The RayService after KubeRay has acted on it."""
    status: dict[str, Any] = {"observedGeneration": service["metadata"]["generation"]}
    if active:
        status["activeServiceStatus"] = {"rayClusterName": active}
    if pending:
        status["pendingServiceStatus"] = {"rayClusterName": pending}
    return {**service, "status": status}


def replica_args_in(service: Mapping[str, Any]) -> dict[str, Any]:
    """What Ray is told about the replicas."""
    return dict(application_in(service["spec"])["args"])


def ray_cluster(name: str, **metadata: Any) -> dict[str, Any]:
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayCluster",
        "metadata": {"name": name, "namespace": "team", **metadata},
    }


def worker_pod(
    name: str,
    ip: str,
    *,
    cluster: str = "one",
    ready: bool = True,
    going: bool = False,
    status: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """A worker pod of a RayCluster."""
    metadata: dict[str, Any] = {
        "name": name,
        "namespace": "team",
        "uid": f"uid-{name}",
        "labels": {"ray.io/cluster": cluster, "ray.io/node-type": "worker", "app": "vllm"},
    }
    if going:
        metadata["deletionTimestamp"] = "2026-11-01T00:00:00Z"
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata,
        "spec": {"nodeName": "node-1"},
        "status": {
            "podIP": ip,
            "podIPs": [{"ip": ip}],
            "conditions": [{"type": "Ready", "status": "True" if ready else "False"}],
            **(status or {}),
        },
    }


def serve_document(
    replicas: Mapping[str, tuple[str, int]],
    *,
    pool: str = "chat",
    status: str = "RUNNING",
    deployment: str = "HEALTHY",
    message: str = "",
    args: Mapping[str, Any] | None = None,
    env: Mapping[str, str] | None = None,
    deployed_at: float = NOW - 1000,
    started_at: Mapping[str, float] | None = None,
    states: Mapping[str, str] | None = None,
    listed: bool = True,
    total: int | None = None,
) -> dict[str, Any]:
    """An answer of ``GET /api/serve/applications/``, in Ray's shape."""
    began, state = started_at or {}, states or {}
    deployments = {
        "engine": {
            "name": "engine",
            "status": deployment,
            "message": "",
            "target_num_replicas": len(replicas) if total is None else total,
            "replicas": [
                {
                    "replica_id": name,
                    "state": state.get(name, "RUNNING"),
                    "pid": 1,
                    "start_time_s": began.get(name, NOW - 900),
                }
                for name in replicas
            ],
        }
    }
    return {
        "applications": {
            pool: {
                "name": pool,
                "status": status,
                "message": message,
                "route_prefix": f"/{pool}",
                "last_deployed_time_s": deployed_at,
                "deployed_app_config": {
                    "args": dict(args or {}),
                    "deployments": [
                        {"ray_actor_options": {"runtime_env": {"env_vars": dict(env or {})}}}
                    ],
                },
                "deployments": deployments if listed else {},
            }
        },
        "target_groups": [
            {
                "app_name": pool,
                "protocol": "HTTP",
                "route_prefix": f"/{pool}",
                "targets": [
                    {"name": f"SERVE_REPLICA::{pool}#engine#{name}", "ip": ip, "port": port}
                    for name, (ip, port) in replicas.items()
                ],
            }
        ]
        if listed
        else [],
    }


def reading_of(document: Mapping[str, Any], *, cluster: str = "one") -> ServeReading:
    return read_serve(document, cluster=cluster, application="chat", read_at=NOW)


def running(
    pool: ModelPool,
    *,
    replicas: int = 2,
    ready: int | None = None,
    settings: OperatorSettings = SETTINGS,
    **serve: Any,
) -> tuple[PoolObserved, PoolPlan]:
    """A pool that was rolled out to one RayCluster, and the plan of its next round."""
    plan = planned(pool, replicas=replicas, settings=settings)
    observed = with_applied(PoolObserved(now=NOW), plan)
    assert observed.ray_service is not None
    service = service_status(observed.ray_service, active="one")
    there = replicas if ready is None else ready
    addresses = {f"replica{n}": (f"10.0.0.{n + 1}", 30000) for n in range(there)}
    document = serve_document(addresses, args=replica_args_in(service), total=replicas, **serve)
    observed = replace(
        observed,
        ray_service=service,
        ray_clusters=(ray_cluster("one"),),
        pods=tuple(worker_pod(f"pod-{n}", f"10.0.0.{n + 1}") for n in range(there)),
        serve={"one": reading_of(document)},
    )
    return observed, planned(pool, observed, replicas=replicas, settings=settings)


def gateway(
    *,
    name: str = "default",
    hashes: tuple[str, ...] = ("", ""),
    pools: Mapping[str, PoolReport] | None = None,
    ages: tuple[float, ...] = (),
) -> GatewayView:
    """A gateway with one pod for each hash; an age says how old a pod's report is."""
    return GatewayView(
        name=name,
        pods=tuple(f"{name}-{n}" for n in range(len(hashes))),
        reports=tuple(
            GatewayReport(
                pod=f"{name}-{n}",
                read_at=NOW - (ages[n] if n < len(ages) else 0.5),
                config_hash=config_hash,
                ready=True,
                pools=pools or {},
            )
            for n, config_hash in enumerate(hashes)
        ),
    )
