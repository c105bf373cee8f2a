"""From a ModelPool to the RayService that runs it. Pure.

What a roll-out inside the cluster can change (arguments, model revision, numbers) is in
``serveConfigV2``; what needs other pods (image, hardware, volumes) is in ``rayClusterConfig``, and
KubeRay answers a change of it with a second RayCluster.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pointsman_api.labels import (
    RESTARTED_AT_ANNOTATION,
    REVISION_ANNOTATION,
    access_secret_name,
)
from pointsman_api.modelpool import ModelPool
from pointsman_kube.kinds import Object
from pointsman_operator.hosts import hosts_of
from pointsman_operator.objects import (
    annotation_of,
    owner_reference,
    pool_labels,
    with_hash,
)
from pointsman_operator.pods import (
    drain_seconds,
    engine_container,
    gpus_of,
    head_template,
    worker_template,
)
from pointsman_operator.problem import RefusedSpecError
from pointsman_operator.revision import (
    Revision,
    replica_hosts,
    serve_config_text,
    with_replicas,
)
from pointsman_operator.settings import OperatorSettings
from pointsman_operator.sources import mounted_model
from pointsman_serving.engines.application import serve_application, serve_config
from pointsman_serving.engines.arguments import check_arguments

REPLICA_RESOURCE = "pointsman_replica"
"""Ray's name for a place for a replica: each worker pod offers one, and each replica takes one in
every pod that it spreads over."""
WORKER_GROUP = "replica"
REDIS_PASSWORD_KEY = "redis_password"
"""In the pool's Secret ``NAME-access``, where the operator's Redis has one."""
RESTARTED_VARIABLE = "POINTSMAN_RESTARTED_AT"
REPLICAS_ANNOTATION = "pointsman.dev/replicas"
"""How many replicas the RayService asks for."""
HOSTS_ANNOTATION = "pointsman.dev/hosts"
"""How many pods each replica takes, where that is more than one."""


def render_spec(pool: ModelPool, settings: OperatorSettings) -> dict[str, Any]:
    """The RayService's spec with one replica; :func:`with_replicas` puts the real number in.

    Raises:
        RefusedSpecError: the pool says something that cannot be run here.
    """
    backend = pool.spec.backend.ray_serve
    if backend is None:
        raise ValueError(f"the ModelPool {pool.key} is not of type RayServe: it has no RayService")
    model = mounted_model(pool, allow_host_path=settings.allow_host_path)
    worker = worker_template(pool, backend, settings, model)
    gpus = gpus_of(engine_container(worker["spec"]))
    hosts = hosts_of(backend, gpus)
    try:
        check_arguments(backend.engine.type, backend.engine.args)
        application: dict[str, Any] = serve_application(
            pool,
            model_path=model.path,
            model_revision=model.revision,
            accelerated=gpus > 0,
            resources={REPLICA_RESOURCE: 1.0},
            replicas=1,
            hosts=hosts,
        )
    except ValueError as error:
        raise RefusedSpecError(f"spec.backend.rayServe: {error}") from error
    _ask_for_restart(pool, application)
    config = serve_config([application], host="0.0.0.0", proxy_port=settings.serve_port)
    return {
        "rayClusterDeletionDelaySeconds": drain_seconds(pool),
        "serveConfigV2": serve_config_text(config),
        "rayClusterConfig": {
            "rayVersion": settings.ray_version,
            "authOptions": {"mode": "token", "secretName": access_secret_name(pool.metadata.name)},
            **_fault_tolerance(pool, settings),
            "enableInTreeAutoscaling": True,
            "autoscalerOptions": _autoscaler(settings),
            "headGroupSpec": {
                # Replicas stay off the head, so that it can go without any of them.
                "resources": {"CPU": "0"},
                "rayStartParams": {
                    "dashboard-host": "0.0.0.0",
                    "object-store-memory": str(settings.object_store_memory_bytes),
                },
                "template": head_template(pool, backend, settings),
            },
            "workerGroupSpecs": [
                {
                    "groupName": WORKER_GROUP,
                    "replicas": hosts,
                    "minReplicas": 0,
                    "maxReplicas": settings.max_worker_pods,
                    # KubeRay would count groups of pods where Ray's autoscaler counts pods.
                    "numOfHosts": 1,
                    "resources": _ray_resources(application, gpus),
                    "rayStartParams": {
                        "object-store-memory": str(settings.object_store_memory_bytes)
                    },
                    "template": worker,
                }
            ],
        },
    }


def ray_service(pool: ModelPool, revision: Revision, replicas: int) -> Object:
    """The RayService of a revision with a number of replicas."""
    rollout = pool.spec.rollout
    hosts = replica_hosts(revision.spec)
    return with_hash(
        {
            "apiVersion": "ray.io/v1",
            "kind": "RayService",
            "metadata": {
                "name": pool.metadata.name,
                "namespace": pool.metadata.namespace,
                "labels": pool_labels(pool, "ray-service"),
                "annotations": {
                    REVISION_ANNOTATION: revision.name,
                    REPLICAS_ANNOTATION: str(replicas),
                    **({HOSTS_ANNOTATION: str(hosts)} if hosts > 1 else {}),
                },
                "ownerReferences": [owner_reference(pool)],
            },
            "spec": with_replicas(
                revision.spec,
                replicas,
                max_surge=None if rollout is None else rollout.max_surge,
            ),
        }
    )


def replicas_of(service: Mapping[str, Any]) -> int | None:
    """How many replicas a live RayService asks for; None where it does not say."""
    text = annotation_of(service, REPLICAS_ANNOTATION)
    return int(text) if text.isdigit() else None


def hosts_in(service: Mapping[str, Any] | None) -> int:
    """How many pods each replica of a live RayService takes."""
    text = annotation_of(service or {}, HOSTS_ANNOTATION)
    return int(text) if text.isdigit() and int(text) else 1


def _ask_for_restart(pool: ModelPool, application: dict[str, Any]) -> None:
    """Have Serve replace its replicas one by one when the pool asks for a restart.

    Serve replaces them when their environment changes; nobody reads this variable.
    """
    asked = pool.metadata.annotations.get(RESTARTED_AT_ANNOTATION)
    if asked:
        options = application["deployments"][0]["ray_actor_options"]
        variables = options.setdefault("runtime_env", {}).setdefault("env_vars", {})
        variables[RESTARTED_VARIABLE] = asked


def _ray_resources(application: Mapping[str, Any], gpus: int) -> dict[str, str]:
    """What a worker offers Ray: just what its one replica takes there."""
    options = application["deployments"][0]["ray_actor_options"]
    resources = {
        "CPU": str(max(1, math.ceil(options["num_cpus"]))),
        REPLICA_RESOURCE: "1",
    }
    if gpus:
        resources["GPU"] = str(gpus)
    return resources


def _fault_tolerance(pool: ModelPool, settings: OperatorSettings) -> dict[str, Any]:
    if not settings.redis_address:
        return {}
    options: dict[str, Any] = {"redisAddress": settings.redis_address}
    if settings.redis_password:
        reference = {"name": access_secret_name(pool.metadata.name), "key": REDIS_PASSWORD_KEY}
        options["redisPassword"] = {"valueFrom": {"secretKeyRef": reference}}
    return {"gcsFaultToleranceOptions": options}


def _autoscaler(settings: OperatorSettings) -> dict[str, Any]:
    return {
        "version": "v2",
        "idleTimeoutSeconds": settings.worker_idle_seconds,
        "imagePullPolicy": settings.image_pull_policy,
        "resources": {
            "requests": {"cpu": settings.autoscaler_cpu, "memory": settings.autoscaler_memory},
            "limits": {"memory": "1Gi"},
        },
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        },
    }
