"""What can be set about the operator, and how the environment says it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from pointsman_api.modelpool import EngineType

PREFIX = "POINTSMAN_OPERATOR_"
"""Each field is read from the environment variable of this prefix and its name in upper case."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorSettings:
    """One operator process. What is rendered from these is stored with a pool's revision: a
    changed setting reaches a pool at its next roll-out."""

    namespace: str = "pointsman-system"
    """Namespace of the operator and of its gateways. Route tables, merged credentials and
    EndpointSlices are written here and nowhere else."""

    deployment: str = ""
    """Name of the Deployment that runs the operator. It owns what is written into the operator's
    namespace, which then goes when it is uninstalled. Empty: all of that stays."""

    gateways: tuple[str, ...] = ("default",)
    """Names of the gateways, separated by commas; RoutePolicies attach to one by name. Others get
    GatewayNotFound."""

    gateway_admin_port: int = 9090
    """TCP port of every gateway pod that answers ``/status``."""

    gateway_stale_seconds: float = 10.0
    """A gateway's report that is older counts as none: it proves nothing about routes, and never
    makes a pool scale down."""

    runtime_image: str = "pointsman:latest"
    """Image that holds Pointsman's own packages; its init container copies them into every Ray
    pod. Usually the operator's own image."""

    vllm_image: str = "vllm/vllm-openai:v0.32.0"
    """Image with Ray and vLLM, for pools that name none."""

    transformers_image: str = "rayproject/ray-llm:2.60.0-py311-cu128"
    """Image with Ray and Transformers, for pools that name none."""

    simulated_image: str = "rayproject/ray:2.60.0-py311"
    """Image with Ray, for Simulated pools that name none."""

    head_image: str = ""
    """Image of the Ray heads; needs Ray alone, of the engine's version and with the same Python.
    Empty: the engine's image, which is large and is pulled to the head's node too."""

    image_pull_policy: str = "IfNotPresent"
    """Of every container of ours: Always, IfNotPresent or Never."""

    ray_version: str = "2.60.0"
    """Ray's version in the images. KubeRay wants to be told; it must be 2.52 or newer for
    token authentication."""

    accelerated: bool = True
    """The nodes have GPUs: VLLM and Transformers pools take as many as their parallelism says
    unless their template names a number. False: they take none."""

    gpu_resource: str = "nvidia.com/gpu"
    """Kubernetes' name for a GPU, for pools whose template names none."""

    allow_host_path: bool = False
    """Let pools mount folders of their node (HostPath models and caches, hostPath volumes in
    templates). Whoever may write a ModelPool then reads, and with a cache writes, such folders."""

    redis_address: str = ""
    """``host:port`` of a Redis that keeps the state of Ray's heads. Empty: a killed head restarts
    its workers too."""

    redis_password: str = field(default="", repr=False)
    """Its password; each pool's Secret ``NAME-access`` gets a copy for the head. Empty: none."""

    ray_dashboard_url_template: str = "http://{host}:8265"
    """Where a RayCluster's REST API answers. ``{host}`` is the head pod's address, ``{namespace}``
    and ``{cluster}`` say which cluster it is."""

    serve_port: int = 8000
    """TCP port of Ray Serve's proxy inside the head pods. Nothing of ours asks it, but without a
    proxy Serve opens no ports for the replicas."""

    min_drain_seconds: float = 10.0
    """A replica that stops serves on for this long at least. Gateways must have noticed by then
    that it is going, which takes up to seven seconds; a roll-out takes this long for each step."""

    object_store_memory_bytes: int = 200_000_000
    """Memory of Ray's object store in each pod; replicas hardly use it. Without a number Ray
    takes 30% of the pod's memory from /dev/shm."""

    head_cpu: str = "250m"
    """Processor time that a Ray head asks for; it runs no replica."""

    head_memory: str = "1Gi"
    """Memory that a Ray head asks for."""

    head_memory_limit: str = ""
    """Memory at which a Ray head is killed; empty: no limit."""

    head_node_selector: Mapping[str, str] = field(default_factory=dict)
    """Labels of the nodes for Ray heads, as a JSON object; empty: any node."""

    head_tolerations: tuple[Mapping[str, Any], ...] = ()
    """Tolerations of Ray heads, as a JSON array."""

    autoscaler_cpu: str = "50m"
    """Processor time that Ray's autoscaler, beside the head, asks for."""

    autoscaler_memory: str = "256Mi"
    """Memory that Ray's autoscaler asks for."""

    worker_idle_seconds: int = 300
    """A worker pod goes when it has had no replica for this long. One that waits for the first
    deployment counts as idle too: below the time of a start it is replaced before it works."""

    max_worker_pods: int = 10_000
    """The most worker pods of one pool, whatever its replicas ask for."""

    def engine_image(self, engine: EngineType) -> str:
        """The image of pools that name none."""
        return {
            EngineType.VLLM: self.vllm_image,
            EngineType.TRANSFORMERS: self.transformers_image,
            EngineType.SIMULATED: self.simulated_image,
        }[engine]


def settings_from(environment: Mapping[str, str]) -> OperatorSettings:
    """Read the settings from ``POINTSMAN_OPERATOR_…`` variables; what is absent keeps its default.

    Other variables, also of the same prefix, are passed over: the process has settings that are
    not about pools.

    Raises:
        ValueError: a value has the wrong form; names the variable, the value and what is allowed.
    """
    values: dict[str, Any] = {}
    for item in fields(OperatorSettings):
        variable = PREFIX + item.name.upper()
        if variable in environment:
            values[item.name] = _parse(variable, environment[variable], str(item.type))
    return OperatorSettings(**values)


_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}


def _parse(variable: str, text: str, annotation: str) -> object:
    kind, allowed = annotation.partition("[")[0], "text"
    try:
        if annotation == "tuple[str, ...]":
            return tuple(part.strip() for part in text.split(",") if part.strip())
        if kind == "bool":
            allowed = "true or false"
            return _BOOLEANS[text.strip().lower()]
        if kind == "int":
            allowed = "a whole number"
            return int(text)
        if kind == "float":
            allowed = "a number"
            return float(text)
        if kind == "Mapping":
            allowed = 'a JSON object such as {"pool": "cheap"}'
            return _json(text, dict)
        if kind == "tuple":
            allowed = 'a JSON array such as [{"key": "dedicated", "operator": "Exists"}]'
            return tuple(_json(text, list))
    except (KeyError, ValueError):
        raise ValueError(f"{variable} is {text!r}: it must be {allowed}") from None
    return text


def _json(text: str, shape: type[Any]) -> Any:
    value = json.loads(text or "null")
    if value is None:
        return shape()
    if not isinstance(value, shape):
        raise ValueError(f"not a JSON {shape.__name__}")
    return value
