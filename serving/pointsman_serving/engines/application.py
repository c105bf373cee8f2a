"""From a ModelPool to a Ray Serve application: pure, and the same for every way to deploy.

``pointsman up`` sends the result to Ray's REST API, the operator puts it into a RayService's
``serveConfigV2``. Nothing here depends on the machine it runs on.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pointsman_api.modelpool import EngineType, Rollout
from pointsman_serving.engines.options import ReplicaOptions
from pointsman_serving.engines.revision import token_revision

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pointsman_api.modelpool import ModelPool, RayServeBackend

IMPORT_PATH = "pointsman_serving.engines.replica:build"
DEPLOYMENT_NAME = "engine"
"""The one deployment of each application."""
ENGINE_CONTAINER = "engine"

HEALTH_CHECK_PERIOD_SECONDS = 2.0
"""A killed replica leaves Ray's list of targets within this time."""
HEALTH_CHECK_TIMEOUT_SECONDS = 30.0
"""A replica whose loop is blocked for longer is replaced. Loading a large prompt batch may block
an engine's front end for seconds, so this is not short."""
DRAIN_POLL_SECONDS = 0.5
"""How often a stopping replica looks whether its last request is done."""
SPARE_REQUESTS = 32
"""What Serve admits beyond the engine's sequence slots at least: the gateways' dispatch credit,
and requests that take no slot (metrics, model lists). What is beyond that waits unseen inside
Serve, so there has to be room enough."""

_CPUS = {EngineType.SIMULATED: 0.1}
"""Processors of a replica whose template states none; others take 1."""

_QUANTITY = re.compile(r"^(?P<number>[0-9]+(\.[0-9]+)?)(?P<milli>m?)$")


def serve_application(
    pool: ModelPool,
    *,
    model_path: str = "",
    model_revision: str = "",
    accelerated: bool = False,
    resources: Mapping[str, float] | None = None,
    replicas: int | None = None,
    hosts: int | None = None,
) -> dict[str, object]:
    """The entry of ``applications`` in a Ray Serve configuration that runs this pool.

    Args:
        pool: a pool with the backend RayServe and at least one replica.
        model_path: where the replicas find the model: a folder, or a name that the engine
            resolves. Must be given unless the engine is Simulated.
        model_revision: branch, tag or commit where the model is a repository; else empty.
        accelerated: the nodes have GPUs. A replica then takes as many as its parallelism says,
            unless the pool's template says how many.
        resources: custom Ray resources that one replica takes, to bind it to some nodes.
        replicas: how many run, where the caller scales the pool itself; None: as the pool says,
            with its autoscaling left to Serve.
        hosts: nodes that one replica spreads over; None: as the pool says, else 1. With
            ``resources`` they are as many nodes of Ray; without, the caller has one machine, and
            the replica's processes share it.

    Returns:
        JSON types only; equal for equal arguments.

    Raises:
        ValueError: the pool has no replicas of its own, or the model's place is not given.
    """
    backend = pool.spec.backend.ray_serve
    name = pool.metadata.name
    if backend is None:
        raise ValueError(
            f"pool {name!r} has the backend {pool.spec.backend.type}: only RayServe pools are "
            "deployed as applications"
        )
    if (pool.spec.replicas if replicas is None else replicas) == 0:
        raise ValueError(
            f"pool {name!r} has 0 replicas, and Ray Serve runs no application without one: "
            "leave it out of the configuration"
        )
    if not model_path and backend.engine.type != EngineType.SIMULATED:
        raise ValueError(
            f"pool {name!r} runs the engine {backend.engine.type} without a model path: give the "
            "folder that holds its model"
        )
    hosts = hosts or backend.parallelism.hosts or 1
    options = _replica_options(pool, backend, model_path, model_revision)
    actor = _actor_options(backend, accelerated, resources or {}, hosts)
    return {
        "name": name,
        "route_prefix": f"/{name}",
        "import_path": IMPORT_PATH,
        "args": replace(options, hosts=hosts).to_args(),
        "deployments": [
            {
                "name": DEPLOYMENT_NAME,
                **_scale(pool, replicas),
                "max_ongoing_requests": admitted_requests(backend.engine.max_sequences),
                **_lifecycle(pool),
                "ray_actor_options": actor,
                **_placement(actor, hosts, apart=bool(resources)),
            }
        ],
    }


def serve_config(
    applications: Sequence[Mapping[str, object]], *, host: str, proxy_port: int
) -> dict[str, object]:
    """A whole Ray Serve configuration: the body of ``PUT /api/serve/applications/``.

    Args:
        applications: entries of :func:`serve_application`.
        host: the address that every replica's own port listens on.
        proxy_port: port of Serve's proxy. Nothing of ours uses it, but without a proxy Serve
            opens no ports for the replicas either.
    """
    return {
        "proxy_location": "HeadOnly",
        "http_options": {"host": host, "port": proxy_port},
        "logging_config": {"enable_access_log": False},
        "applications": [dict(application) for application in applications],
    }


def admitted_requests(max_sequences: int) -> int:
    """How many requests Serve lets into a replica at once (``max_ongoing_requests``)."""
    return max_sequences + max(SPARE_REQUESTS, max_sequences // 4)


def _replica_options(
    pool: ModelPool, backend: RayServeBackend, model_path: str, model_revision: str
) -> ReplicaOptions:
    derived = [f"--revision={model_revision}"] if model_revision else []
    if backend.engine.type == EngineType.VLLM:
        derived += _vllm_parallelism(backend)
    options = ReplicaOptions(
        pool=pool.metadata.name,
        engine=backend.engine.type,
        served_model_name=pool.spec.served_model_name,
        model_path=model_path,
        max_sequences=backend.engine.max_sequences,
        context_tokens=pool.spec.context_tokens,
        experts=backend.experts.implementation,
        prefix_index=backend.engine.prefix_index,
        arguments=(*derived, *backend.engine.args),
    )
    env = {variable.name: variable.value for variable in backend.engine.env}
    revision = token_revision(options, env=env, image=backend.engine.image)
    return replace(options, revision=revision)


def _vllm_parallelism(backend: RayServeBackend) -> list[str]:
    parallelism = backend.parallelism
    flags = {
        "--tensor-parallel-size": parallelism.tensor,
        "--pipeline-parallel-size": parallelism.pipeline,
        "--data-parallel-size": parallelism.data,
    }
    arguments = [f"{flag}={size}" for flag, size in flags.items() if size > 1]
    return [*arguments, "--enable-expert-parallel"] if parallelism.expert_parallel else arguments


def _scale(pool: ModelPool, replicas: int | None) -> dict[str, object]:
    autoscaling = pool.spec.autoscaling
    if replicas is not None or autoscaling is None:
        return {"num_replicas": replicas or pool.spec.replicas or 1}
    return {
        "autoscaling_config": {
            "min_replicas": autoscaling.min_replicas,
            "max_replicas": autoscaling.max_replicas,
            "target_ongoing_requests": autoscaling.target.value,
            "upscale_delay_s": autoscaling.scale_up_delay.seconds,
            "downscale_delay_s": autoscaling.scale_down_delay.seconds,
        }
    }


def _lifecycle(pool: ModelPool) -> dict[str, object]:
    rollout = pool.spec.rollout or Rollout()
    autoscaling = pool.spec.autoscaling
    replicas = autoscaling.min_replicas if autoscaling else pool.spec.replicas or 1
    surge = rollout.max_surge.percent_of(replicas)
    return {
        "graceful_shutdown_timeout_s": rollout.drain_timeout.seconds,
        "graceful_shutdown_wait_loop_s": DRAIN_POLL_SECONDS,
        "health_check_period_s": HEALTH_CHECK_PERIOD_SECONDS,
        "health_check_timeout_s": HEALTH_CHECK_TIMEOUT_SECONDS,
        "max_surge_percent": surge,
        # With a surge Serve stops an old replica only when a new one has taken its place, and
        # this only bounds how many at once. Without one it is the share that goes down first.
        "rolling_update_percentage": 1.0 if surge else 0.2,
    }


def _actor_options(
    backend: RayServeBackend, accelerated: bool, resources: Mapping[str, float], hosts: int
) -> dict[str, Any]:
    """What one process of a replica takes; it has as many as hosts."""
    stated = _engine_resources(backend)
    gpus = stated.get("nvidia.com/gpu")
    if gpus is None:
        needs_gpus = accelerated and backend.engine.type != EngineType.SIMULATED
        gpus = backend.parallelism.size // hosts if needs_gpus else 0
    options: dict[str, Any] = {
        "num_cpus": stated.get("cpu", _CPUS.get(backend.engine.type, 1.0)),
        "num_gpus": float(gpus),
    }
    if resources:
        options["resources"] = {name: resources[name] for name in sorted(resources)}
    if backend.engine.env:
        options["runtime_env"] = {
            "env_vars": {variable.name: variable.value for variable in backend.engine.env}
        }
    return options


def _placement(actor: Mapping[str, Any], hosts: int, *, apart: bool) -> dict[str, object]:
    """Where the processes of a replica with several hosts go: one bundle for each.

    Serve puts the replica itself into the first; see :mod:`pointsman_serving.engines.ray_group`.
    """
    if hosts == 1:
        return {}
    bundle = {"CPU": actor["num_cpus"], "GPU": actor["num_gpus"], **actor.get("resources", {})}
    return {
        "placement_group_bundles": [
            {name: value for name, value in bundle.items() if value} for _ in range(hosts)
        ],
        "placement_group_strategy": "STRICT_SPREAD" if apart else "PACK",
    }


def _engine_resources(backend: RayServeBackend) -> dict[str, float]:
    """What the template's container ``engine`` asks for, by resource; requests before limits."""
    spec: Mapping[str, Any] = backend.template.spec if backend.template else {}
    containers = spec.get("containers")
    stated: dict[str, float] = {}
    for container in containers if isinstance(containers, list) else []:
        if not isinstance(container, dict) or container.get("name") != ENGINE_CONTAINER:
            continue
        asked = container.get("resources")
        for part in ("limits", "requests"):
            quantities = asked.get(part) if isinstance(asked, dict) else None
            for resource, quantity in (quantities or {}).items():
                if resource in ("cpu", "nvidia.com/gpu"):
                    stated[resource] = _quantity(resource, quantity)
    return stated


def _quantity(resource: str, quantity: object) -> float:
    match = _QUANTITY.match(str(quantity))
    if match is None:
        raise ValueError(
            f"template.spec.containers[{ENGINE_CONTAINER}].resources: {resource} is {quantity!r}: "
            'give a number of units such as 2 or "500m"'
        )
    return float(match["number"]) / (1000 if match["milli"] else 1)
