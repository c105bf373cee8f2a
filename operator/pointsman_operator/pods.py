"""The two kinds of pods of a pool's RayClusters: the head, and the workers with one replica each.

Pure. What KubeRay adds by itself (the start command, the wait for the head, /dev/shm, the token of
Ray's API) is left to it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pointsman_api.labels import (
    REPLICA_TOKEN_KEY,
    REPLICA_TOKEN_VARIABLE,
    access_secret_name,
)
from pointsman_api.modelpool import EngineType, ModelPool, RayServeBackend, Rollout
from pointsman_operator.merge import merge_pod_spec
from pointsman_operator.objects import digest, pool_labels
from pointsman_operator.problem import RefusedSpecError
from pointsman_operator.settings import OperatorSettings
from pointsman_operator.sources import MountedModel, check_template_volumes
from pointsman_serving.engines.application import ENGINE_CONTAINER

CODE_MOUNT = "/opt/pointsman"
"""Where Pointsman's own packages lie in every Ray pod."""
HEAD_CONTAINER = "head"

UNSEEN_ANNOTATION = "pointsman.dev/unseen-hash"
"""Digest of the parts of a pod template that KubeRay leaves out of its comparison."""
GRACE_BEYOND_DRAIN_SECONDS = 30
"""What a pod has, beyond its drain timeout, to end Ray's processes."""

_CODE_VOLUME = "pointsman-code"
_RAYLET_PORT = 52365
_RAYLET_HEALTH = "/api/local_raylet_healthz"
_LONE_HEAD_GRACE_SECONDS = 10

_CONTAINER_SECURITY = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
}
# Whether an image can do without root is not known: it is not forced.
_POD_SECURITY = {"seccompProfile": {"type": "RuntimeDefault"}}


def engine_image(backend: RayServeBackend, settings: OperatorSettings) -> str:
    """The image of the replicas."""
    return backend.engine.image or settings.engine_image(backend.engine.type)


def head_template(
    pool: ModelPool, backend: RayServeBackend, settings: OperatorSettings
) -> dict[str, Any]:
    """The pod template of the head: Ray's control processes, and no replica."""
    drain = drain_seconds(pool)
    image = settings.head_image or engine_image(backend, settings)
    resources: dict[str, Any] = {
        "requests": {"cpu": settings.head_cpu, "memory": settings.head_memory}
    }
    if settings.head_memory_limit:
        resources["limits"] = {"memory": settings.head_memory_limit}
    container = {
        "name": HEAD_CONTAINER,
        "image": image,
        "imagePullPolicy": settings.image_pull_policy,
        "env": _ray_env(settings),
        "ports": [
            {"containerPort": 6379, "name": "gcs-server"},
            {"containerPort": 8265, "name": "dashboard"},
            {"containerPort": settings.serve_port, "name": "serve"},
        ],
        "resources": resources,
        "securityContext": _CONTAINER_SECURITY,
        "volumeMounts": [_code_mount()],
    }
    grace = _LONE_HEAD_GRACE_SECONDS
    if not settings.redis_address:
        # Without Redis the workers end with their head, so it waits for their last request.
        container["lifecycle"] = _drain_hook(drain, "--head")
        grace = drain + GRACE_BEYOND_DRAIN_SECONDS
    spec: dict[str, Any] = {
        "containers": [container],
        "initContainers": [_code_container(settings)],
        "volumes": [{"name": _CODE_VOLUME, "emptyDir": {}}],
        "securityContext": _POD_SECURITY,
        # As the first process of a container Ray's autoscaler would not hear SIGTERM, and a head
        # that failed would be replaced only when the whole grace period is over.
        "shareProcessNamespace": True,
        "terminationGracePeriodSeconds": grace,
    }
    if settings.head_node_selector:
        spec["nodeSelector"] = dict(settings.head_node_selector)
    if settings.head_tolerations:
        spec["tolerations"] = [dict(item) for item in settings.head_tolerations]
    # The head pulls from the same registry as the workers.
    pull_secrets = _template_spec(backend).get("imagePullSecrets")
    if pull_secrets:
        spec["imagePullSecrets"] = pull_secrets
    return _template(pool, "head", spec)


def worker_template(
    pool: ModelPool, backend: RayServeBackend, settings: OperatorSettings, model: MountedModel
) -> dict[str, Any]:
    """The pod template of the workers, with the pool's own template merged over it.

    Raises:
        RefusedSpecError: the pool's template takes something that is not allowed.
    """
    patch = _template_spec(backend)
    check_template_volumes(patch, allow_host_path=settings.allow_host_path)
    drain = drain_seconds(pool)
    probe = {"httpGet": {"path": _RAYLET_HEALTH, "port": _RAYLET_PORT}, "timeoutSeconds": 5}
    container: dict[str, Any] = {
        "name": ENGINE_CONTAINER,
        "image": engine_image(backend, settings),
        "imagePullPolicy": settings.image_pull_policy,
        "env": [*_ray_env(settings), _replica_token(pool), *map(dict, model.env)],
        "resources": _default_resources(backend, patch, settings),
        # KubeRay's own readiness probe asks Serve's proxy, which runs on the head alone; and Ray's
        # health page takes long while there is no head, though the replica answers.
        "readinessProbe": {
            "tcpSocket": {"port": _RAYLET_PORT},
            "timeoutSeconds": 5,
            "periodSeconds": 2,
            "failureThreshold": 5,
        },
        "livenessProbe": {
            **probe,
            "initialDelaySeconds": 30,
            "periodSeconds": 5,
            "failureThreshold": 120,
        },
        "lifecycle": _drain_hook(drain),
        "securityContext": _CONTAINER_SECURITY,
        "volumeMounts": [_code_mount(), *map(dict, model.mounts)],
    }
    if model.env_from:
        container["envFrom"] = [dict(item) for item in model.env_from]
    base = {
        "containers": [container],
        "initContainers": [_code_container(settings)],
        "volumes": [{"name": _CODE_VOLUME, "emptyDir": {}}, *map(dict, model.volumes)],
        "securityContext": _POD_SECURITY,
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": drain + GRACE_BEYOND_DRAIN_SECONDS,
    }
    spec = merge_pod_spec(base, patch)
    _check_merged(spec)
    return _template(pool, "replica", spec)


def drain_seconds(pool: ModelPool) -> int:
    """How long a pod that is going may finish its requests, in whole seconds."""
    return math.ceil((pool.spec.rollout or Rollout()).drain_timeout.seconds)


def gpus_of(container: Mapping[str, Any]) -> int:
    """How many GPUs a container takes, whoever makes them.

    Raises:
        RefusedSpecError: the number is not a whole one.
    """
    resources = container.get("resources") or {}
    for part in ("limits", "requests"):
        for name, quantity in (resources.get(part) or {}).items():
            if not name.endswith("gpu"):
                continue
            if not str(quantity).isdigit():
                raise RefusedSpecError(
                    f"spec.backend.rayServe.template.spec.containers[{ENGINE_CONTAINER}]."
                    f"resources.{part}.{name} is {quantity!r}: GPUs are given as a whole number"
                )
            return int(quantity)
    return 0


def engine_container(spec: Mapping[str, Any]) -> Mapping[str, Any]:
    """The container of a pod spec that runs the engine; empty where there is none."""
    containers = spec.get("containers")
    for container in containers if isinstance(containers, list) else []:
        if isinstance(container, Mapping) and container.get("name") == ENGINE_CONTAINER:
            return container
    return {}


def _template(pool: ModelPool, component: str, spec: dict[str, Any]) -> dict[str, Any]:
    metadata: dict[str, Any] = {"labels": pool_labels(pool, component)}
    # KubeRay compares pod templates without these, and would let their change pass.
    unseen = {name: spec[name] for name in ("tolerations", "schedulingGates") if spec.get(name)}
    if unseen:
        metadata["annotations"] = {UNSEEN_ANNOTATION: digest(unseen)[:16]}
    return {"metadata": metadata, "spec": spec}


def _template_spec(backend: RayServeBackend) -> Mapping[str, Any]:
    return backend.template.spec if backend.template is not None else {}


def _default_resources(
    backend: RayServeBackend, patch: Mapping[str, Any], settings: OperatorSettings
) -> dict[str, Any]:
    """What a replica takes where its template does not say."""
    stated = engine_container(patch).get("resources") or {}
    names = {name for part in stated.values() if isinstance(part, Mapping) for name in part}
    resources: dict[str, Any] = {}
    if "cpu" not in names:
        cpu = "100m" if backend.engine.type == EngineType.SIMULATED else "1"
        resources["requests"] = {"cpu": cpu}
    takes_gpus = settings.accelerated and backend.engine.type != EngineType.SIMULATED
    if takes_gpus and not any(name.endswith("gpu") for name in names):
        parallelism = backend.parallelism
        gpus = -(-parallelism.size // (parallelism.hosts or 1))
        resources["limits"] = {settings.gpu_resource: str(gpus)}
    return resources


def _ray_env(settings: OperatorSettings) -> list[dict[str, Any]]:
    return [
        {"name": "PYTHONPATH", "value": CODE_MOUNT},
        # Every replica listens on a port of its own.
        {"name": "RAY_SERVE_ENABLE_DIRECT_INGRESS", "value": "1"},
        {
            "name": "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S",
            "value": f"{settings.min_drain_seconds:g}",
        },
        {"name": "RAY_USAGE_STATS_ENABLED", "value": "0"},
    ]


def _replica_token(pool: ModelPool) -> dict[str, Any]:
    reference = {"name": access_secret_name(pool.metadata.name), "key": REPLICA_TOKEN_KEY}
    return {"name": REPLICA_TOKEN_VARIABLE, "valueFrom": {"secretKeyRef": reference}}


def _code_mount() -> dict[str, Any]:
    return {"name": _CODE_VOLUME, "mountPath": CODE_MOUNT, "readOnly": True}


def _code_container(settings: OperatorSettings) -> dict[str, Any]:
    return {
        "name": "pointsman-code",
        "image": settings.runtime_image,
        "imagePullPolicy": settings.image_pull_policy,
        "command": ["python3", "-m", "pointsman_operator.inject", CODE_MOUNT],
        "resources": {
            "requests": {"cpu": "50m", "memory": "64Mi"},
            "limits": {"memory": "256Mi"},
        },
        "securityContext": {**_CONTAINER_SECURITY, "readOnlyRootFilesystem": True},
        "volumeMounts": [{"name": _CODE_VOLUME, "mountPath": CODE_MOUNT}],
    }


def _drain_hook(seconds: int, *options: str) -> dict[str, Any]:
    command = ["python3", "-m", "pointsman_serving.engines.drain", *options]
    return {"preStop": {"exec": {"command": [*command, "--timeout", str(seconds)]}}}


def _check_merged(spec: Mapping[str, Any]) -> None:
    if spec.get("restartPolicy", "Never") != "Never":
        raise RefusedSpecError(
            f"spec.backend.rayServe.template.spec.restartPolicy is {spec['restartPolicy']!r}: "
            "Ray's autoscaler replaces pods that end and wants Never; leave it out"
        )
    if spec.get("hostNetwork"):
        raise RefusedSpecError(
            "spec.backend.rayServe.template.spec.hostNetwork is true: replicas of one node would "
            "take each other's ports; leave it out"
        )
