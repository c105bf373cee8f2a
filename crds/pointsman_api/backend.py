"""What serves a ModelPool's model: replicas of Ray Serve, pods that run, external addresses."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import Field, JsonValue, StrictBool, StrictInt

from pointsman_api.meta import LabelSelector, ModelName, SecretKeyReference
from pointsman_api.model_source import Model
from pointsman_api.route_table import BackendType, PrefixIndex
from pointsman_api.rules import (
    ApiModel,
    CelRule,
    FieldRules,
    MapList,
    immutable_rule,
    union_rule,
)

IMAGE_PATTERN = r"^([A-Za-z0-9][-A-Za-z0-9._:/@]*)?$"


class EngineType(StrEnum):
    """What runs the model inside a replica."""

    VLLM = "VLLM"
    TRANSFORMERS = "Transformers"
    SIMULATED = "Simulated"


class ExpertsImplementation(StrEnum):
    """Who computes the experts of a mixture-of-experts model."""

    DEFAULT = "Default"
    POINTSMAN = "Pointsman"


class EnvironmentVariable(ApiModel):
    """One environment variable of the engine's process."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=128)]
    """Name of the variable."""
    value: Annotated[str, Field(max_length=4096)] = ""
    """Value as it is; nothing is expanded."""


class Engine(ApiModel):
    """The program that runs the model."""

    cel_rules = (
        CelRule(
            cel="self.prefixIndex == 'Estimate' || self.type == 'VLLM'",
            message="prefixIndex may be Events only when type is VLLM",
            holds=lambda self: (
                self.prefix_index == PrefixIndex.ESTIMATE or self.type == EngineType.VLLM
            ),
            field="prefixIndex",
        ),
    )
    type: EngineType
    """VLLM: vLLM in process. Transformers: Hugging Face Transformers with continuous batching.
    Simulated: a timing model of an engine with a prefix cache, without weights or GPUs."""
    image: Annotated[str, Field(pattern=IMAGE_PATTERN, max_length=512)] = ""
    """Container image with Ray and the engine; Pointsman's own code is brought along by an init
    container. Empty: the operator's default for this type. ``pointsman up`` runs no containers and
    leaves it aside."""
    args: Annotated[
        tuple[Annotated[str, Field(min_length=1, max_length=4096)], ...],
        Field(max_length=128, json_schema_extra={"x-kubernetes-list-type": "atomic"}),
    ] = ()
    """Arguments of the engine's own command line, one item each: ``--max-model-len=2048``. They
    win over what Pointsman derives from the other fields."""
    env: Annotated[tuple[EnvironmentVariable, ...], Field(max_length=64), MapList("name")] = ()
    """Environment variables of the engine's process."""
    max_sequences: Annotated[StrictInt, Field(ge=1, le=4096)] = 64
    """How many requests one replica runs at once. The engine batches this many, Ray Serve lets
    this many in (and a few more to keep the batch full), and the gateway holds the rest in its
    own queue."""
    prefix_index: PrefixIndex = PrefixIndex.ESTIMATE
    """How gateways know which prompts a replica has cached. Estimate: from what they sent there
    and the engine's counts of cached tokens. Events: each replica also publishes every block that
    enters or leaves its cache over ZeroMQ, on two more ports that every gateway must reach. The
    blocks name the tokens of prompts, so only gateways should reach these ports."""


class Parallelism(ApiModel):
    """How one replica spreads over GPUs: it takes tensor x pipeline x data of them."""

    tensor: Annotated[StrictInt, Field(ge=1, le=64)] = 1
    """GPUs that share each layer."""
    pipeline: Annotated[StrictInt, Field(ge=1, le=64)] = 1
    """Groups of layers, one after the other."""
    data: Annotated[StrictInt, Field(ge=1, le=64)] = 1
    """Copies of the attention layers inside one replica, which share one set of experts."""
    expert_parallel: StrictBool = False
    """Spread a mixture-of-experts model's experts over the GPUs instead of cutting each one."""
    hosts: Annotated[StrictInt, Field(ge=1, le=64)] | None = None
    """Pods that one replica spreads over. They are ready as one and fail as one, and each takes
    the same number of GPUs. Absent: as many as its GPUs need with what the template gives one pod,
    and 1 where it gives none."""

    @property
    def size(self) -> int:
        """How many GPUs one replica takes."""
        return self.tensor * self.pipeline * self.data


class Experts(ApiModel):
    """How the experts of a mixture-of-experts model are computed."""

    implementation: ExpertsImplementation = ExpertsImplementation.DEFAULT
    """Default: the engine's own code. Pointsman: the fused kernels of this project."""


class PodTemplate(ApiModel):
    """A part of a pod template that is merged over what Pointsman makes."""

    spec: Annotated[
        dict[str, JsonValue],
        Field(
            json_schema_extra={
                "x-kubernetes-preserve-unknown-fields": True,
                "additionalProperties": None,
            },
            default_factory=dict,
        ),
    ]
    """Partial pod spec. The engine runs in the container ``engine``: its resources say what one
    replica takes (``cpu``, ``memory``, ``nvidia.com/gpu``)."""


class RayServeBackend(ApiModel):
    """Replicas that Pointsman runs through Ray Serve."""

    cel_rules = (
        CelRule(
            cel="self.engine.type == 'Simulated' || has(self.model)",
            message="model must be set unless engine.type is Simulated, which needs no weights",
            holds=lambda self: self.engine.type == EngineType.SIMULATED or self.model is not None,
            field="model",
        ),
        CelRule(
            cel="self.experts.implementation == 'Default' || self.engine.type == 'Transformers'",
            message="experts.implementation may be Pointsman only when engine.type is Transformers",
            holds=lambda self: (
                self.experts.implementation == ExpertsImplementation.DEFAULT
                or self.engine.type == EngineType.TRANSFORMERS
            ),
            field="experts",
        ),
        CelRule(
            cel=(
                "self.engine.type == 'VLLM' || (self.parallelism.tensor == 1 && "
                "self.parallelism.pipeline == 1 && self.parallelism.data == 1 && "
                "!self.parallelism.expertParallel)"
            ),
            message="parallelism other than hosts may be set only when engine.type is VLLM",
            holds=lambda self: (
                self.engine.type == EngineType.VLLM
                or self.parallelism == Parallelism(hosts=self.parallelism.hosts)
            ),
            field="parallelism",
        ),
        CelRule(
            cel=(
                "!has(self.parallelism.hosts) || self.parallelism.hosts == 1 || "
                "self.engine.type != 'Transformers'"
            ),
            message="parallelism.hosts may be above 1 only when engine.type is VLLM or Simulated",
            holds=lambda self: (
                (self.parallelism.hosts or 1) == 1 or self.engine.type != EngineType.TRANSFORMERS
            ),
            field="parallelism",
        ),
        CelRule(
            cel=(
                "!has(self.parallelism.hosts) || self.parallelism.hosts == 1 || "
                "self.parallelism.data == 1"
            ),
            message="parallelism.hosts may be above 1 only when parallelism.data is 1",
            holds=lambda self: (self.parallelism.hosts or 1) == 1 or self.parallelism.data == 1,
            field="parallelism",
        ),
        CelRule(
            cel=(
                "!has(self.parallelism.hosts) || self.engine.type != 'VLLM' || "
                "self.parallelism.tensor * self.parallelism.pipeline % self.parallelism.hosts == 0"
            ),
            message=(
                "parallelism.tensor x parallelism.pipeline must be a multiple of "
                "parallelism.hosts: each host takes the same number of GPUs"
            ),
            holds=lambda self: (
                self.parallelism.hosts is None
                or self.engine.type != EngineType.VLLM
                or (self.parallelism.tensor * self.parallelism.pipeline) % self.parallelism.hosts
                == 0
            ),
            field="parallelism",
        ),
        CelRule(
            cel="self.engine.prefixIndex == 'Estimate' || self.parallelism.data == 1",
            message="engine.prefixIndex may be Events only when parallelism.data is 1",
            holds=lambda self: (
                self.engine.prefix_index == PrefixIndex.ESTIMATE or self.parallelism.data == 1
            ),
            field="engine",
        ),
    )
    engine: Engine
    """The program that runs the model."""
    model: Model | None = None
    """The model; a Simulated engine needs none."""
    parallelism: Parallelism = Parallelism()
    """How one replica spreads over GPUs."""
    experts: Experts = Experts()
    """How a mixture-of-experts model's experts are computed."""
    template: PodTemplate | None = None
    """Changes to the pods of the replicas."""


_PORT = "[1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5]"
URL_PATTERN = (
    r"^https?://([A-Za-z0-9]([-A-Za-z0-9.]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\])"
    rf"(:({_PORT}))?(/[-A-Za-z0-9._~/]*)?$"
)


class ExternalAddress(ApiModel):
    """One OpenAI-compatible address."""

    url: Annotated[
        str,
        Field(pattern=URL_PATTERN, max_length=512),
    ]
    """Base address up to and including the version: ``https://api.example.com/v1``."""
    model_name: ModelName | None = None
    """The name that this address knows the model by; the pool's servedModelName if absent."""


class ExternalBackend(ApiModel):
    """Addresses that somebody else runs."""

    endpoints: Annotated[
        tuple[ExternalAddress, ...], Field(min_length=1, max_length=64), MapList("url")
    ]
    """The addresses; each counts as one replica."""
    credential_secret_ref: SecretKeyReference | None = None
    """The API key, sent as a bearer token. ``pointsman up`` reads it from the file NAME/KEY under
    its ``--secrets-dir``, laid out as Kubernetes mounts Secrets."""
    max_ongoing_requests: Annotated[StrictInt, Field(ge=1, le=100_000)] = 256
    """How many requests one address gets at once; the gateway holds the rest in its queue."""


class PodSelectorBackend(ApiModel):
    """Pods with vLLM's OpenAI API that somebody already runs in the pool's namespace."""

    cel_rules = (
        CelRule(
            cel=(
                "(has(self.selector.matchLabels) && size(self.selector.matchLabels) > 0) || "
                "(has(self.selector.matchExpressions) && size(self.selector.matchExpressions) > 0)"
            ),
            message="selector must name at least one label: empty, it would take every pod",
            holds=lambda self: bool(self.selector.match_labels or self.selector.match_expressions),
            field="selector",
        ),
    )
    selector: LabelSelector
    """Labels of the pods. Each ready pod is one replica."""
    port: Annotated[StrictInt, Field(ge=1, le=65535)] = 8000
    """The port that the pods' OpenAI API listens on."""
    max_sequences: Annotated[StrictInt, Field(ge=1, le=100_000)] = 256
    """How many requests one pod runs at once (vLLM's ``--max-num-seqs``); the gateway holds the
    rest in its queue."""


class Backend(ApiModel):
    """What serves the model: exactly the member that ``type`` names."""

    cel_rules = (
        union_rule("type", BackendType.RAY_SERVE, "rayServe"),
        union_rule("type", BackendType.POD_SELECTOR, "podSelector"),
        union_rule("type", BackendType.EXTERNAL, "external"),
    )
    type: Annotated[BackendType, FieldRules((immutable_rule("backend.type"),))]
    """RayServe: replicas that Pointsman runs. PodSelector: pods of the cluster that already run.
    External: addresses that somebody else runs. Immutable."""
    ray_serve: RayServeBackend | None = None
    """Replicas that Pointsman runs through Ray Serve."""
    pod_selector: PodSelectorBackend | None = None
    """Pods of the cluster that already run."""
    external: ExternalBackend | None = None
    """Addresses that somebody else runs."""

    @property
    def prefix_index(self) -> PrefixIndex:
        """How gateways know what is in the replicas' prefix caches."""
        if self.ray_serve is None:
            return PrefixIndex.ESTIMATE
        return self.ray_serve.engine.prefix_index
