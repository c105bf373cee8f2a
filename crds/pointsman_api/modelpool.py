"""ModelPool: one model served by interchangeable replicas, or by external addresses."""

from __future__ import annotations

import math
import re
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import Field, GetCoreSchemaHandler, StrictInt
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from pointsman_api.backend import (
    Backend,
    Engine,
    EngineType,
    EnvironmentVariable,
    Experts,
    ExpertsImplementation,
    ExternalAddress,
    ExternalBackend,
    Parallelism,
    PodSelectorBackend,
    PodTemplate,
    RayServeBackend,
)
from pointsman_api.meta import (
    API_VERSION,
    Amount,
    Conditions,
    Duration,
    Fraction,
    LabelSelector,
    ModelName,
    ObjectMeta,
    PositiveDuration,
)
from pointsman_api.model_source import (
    MODELS_FOLDER,
    HostPathSource,
    HuggingFaceSource,
    Model,
    ModelCache,
    ModelCacheType,
    ModelSource,
    ModelSourceType,
    PersistentVolumeClaimSource,
    S3Source,
)
from pointsman_api.route_table import BackendType
from pointsman_api.rules import (
    ApiModel,
    CelRule,
    FieldRules,
    MapList,
    immutable_rule,
    union_rule,
)

__all__ = [
    "MODELS_FOLDER",
    "POOL_NAME_MAX_LENGTH",
    "POOL_NAME_PATTERN",
    "AllowedNamespaces",
    "AllowedRoutes",
    "Autoscaling",
    "Backend",
    "Currency",
    "Engine",
    "EngineType",
    "EnvironmentVariable",
    "Experts",
    "ExpertsImplementation",
    "ExternalAddress",
    "ExternalBackend",
    "HostPathSource",
    "HuggingFaceSource",
    "Model",
    "ModelCache",
    "ModelCacheType",
    "ModelPool",
    "ModelPoolSpec",
    "ModelPoolStatus",
    "ModelSource",
    "ModelSourceType",
    "NamespacesFrom",
    "Parallelism",
    "PersistentVolumeClaimSource",
    "PodSelectorBackend",
    "PodTemplate",
    "PoolMeta",
    "PoolPricing",
    "RayServeBackend",
    "Rollout",
    "S3Source",
    "ScalingTarget",
    "ScalingTargetType",
    "SurgeLimit",
    "TaskQuality",
    "TokenPrices",
]

POOL_NAME_PATTERN = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"
POOL_NAME_MAX_LENGTH = 40
"""Ray clusters, services and pods are named after the pool with suffixes of their own."""


class ScalingTargetType(StrEnum):
    """What autoscaling keeps at its target."""

    ONGOING_REQUESTS = "OngoingRequests"


class NamespacesFrom(StrEnum):
    """Whose RoutePolicies may use a pool."""

    SAME = "Same"
    ALL = "All"
    SELECTOR = "Selector"


class Currency(StrEnum):
    """The currency of prices."""

    USD = "USD"


class SurgeLimit(str):
    """A count of replicas or a percentage of them, kept as text: ``1`` or ``25%``."""

    __slots__ = ()
    _PATTERN = r"^([0-9]|[1-9][0-9]|100)%$"

    def percent_of(self, replicas: int) -> int:
        """The limit as a whole percentage from 0 to 100, rounded up, of so many replicas."""
        if self.endswith("%"):
            return int(self[:-1])
        return min(100, math.ceil(100 * int(self) / max(replicas, 1)))

    @classmethod
    def _parse(cls, value: object) -> SurgeLimit:
        if isinstance(value, SurgeLimit):
            return value
        if isinstance(value, str) and re.fullmatch(cls._PATTERN, value):
            return cls(value)
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 10_000:
            return cls(str(value))
        raise PydanticCustomError(
            "not_in_pattern",
            "it must be {allowed}",
            {"allowed": 'a number of replicas such as 1, or a percentage from "0%" to "100%"'},
        )

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            cls._parse,
            serialization=core_schema.plain_serializer_function_ser_schema(
                lambda limit: int(limit) if limit.isdigit() else str(limit)
            ),
        )

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: Any) -> dict[str, object]:
        return {
            "x-kubernetes-int-or-string": True,
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "pattern": cls._PATTERN,
            "minimum": 0,
            "maximum": 10_000,
            "maxLength": 4,
        }


class ScalingTarget(ApiModel):
    """What autoscaling aims at."""

    type: ScalingTargetType = ScalingTargetType.ONGOING_REQUESTS
    """OngoingRequests: requests running or waiting, per replica."""
    value: Annotated[StrictInt, Field(ge=1, le=4096)] = 32
    """The average per replica that is kept; below the engine's maxSequences."""


class Autoscaling(ApiModel):
    """A number of replicas that follows the load."""

    cel_rules = (
        CelRule(
            cel="self.minReplicas <= self.maxReplicas",
            message="minReplicas must not be above maxReplicas",
            holds=lambda self: self.min_replicas <= self.max_replicas,
            field="minReplicas",
        ),
    )
    min_replicas: Annotated[StrictInt, Field(ge=0, le=10_000)] = 1
    """The fewest replicas. With 0 the pool goes to zero when it was idle for scaleDownDelay, and
    comes back when a request waits for it; that needs the operator."""
    max_replicas: Annotated[StrictInt, Field(ge=1, le=10_000)]
    """The most replicas."""
    target: ScalingTarget = ScalingTarget()
    """What is kept per replica."""
    scale_up_delay: Duration = Duration("10s")
    """How long the load must call for more replicas before they start."""
    scale_down_delay: Duration = Duration("300s")
    """How long the load must call for fewer replicas before some stop."""


class Rollout(ApiModel):
    """How a changed pool replaces its replicas."""

    max_surge: SurgeLimit = SurgeLimit("100%")
    """Extra replicas while old ones are replaced, as a number or a percentage of the replicas.
    With 0 old replicas stop before their successors start, which costs capacity but needs no
    spare hardware."""
    drain_timeout: PositiveDuration = Duration("600s")
    """How long a replica that is going may finish its running requests."""
    progress_deadline: PositiveDuration = Duration("30m")
    """How long a roll-out, or the first start, may take until the condition Progressing says
    ProgressDeadlineExceeded. Nothing is rolled back: the old replicas serve on meanwhile."""


class TokenPrices(ApiModel):
    """Prices of a million tokens."""

    input: Amount
    """Prompt tokens."""
    cached_input: Amount | None = None
    """Prompt tokens found in the prefix cache; the price of ``input`` if absent."""
    output: Amount
    """Generated tokens."""


class PoolPricing(ApiModel):
    """What the tokens of this pool cost; the objective of a RoutePolicy weighs it."""

    currency: Currency = Currency.USD
    """The currency; one for all pools, so that prices compare."""
    per_million_tokens: TokenPrices
    """Prices of a million tokens."""


class TaskQuality(ApiModel):
    """How good the model is at one task."""

    task: Annotated[str, Field(pattern=r"^[A-Za-z]([-_A-Za-z0-9]*[A-Za-z0-9])?$", max_length=63)]
    """The task, as requests name it in the header ``x-pointsman-task``; ``Default`` holds for
    every other."""
    score: Fraction
    """Expected quality from 0 to 1."""


class AllowedNamespaces(ApiModel):
    """The namespaces whose RoutePolicies may use the pool."""

    cel_rules = (union_rule("from", NamespacesFrom.SELECTOR, "selector"),)
    from_: Annotated[NamespacesFrom, Field(alias="from")] = NamespacesFrom.SAME
    """Same: the pool's own namespace. All: every namespace. Selector: those with the labels."""
    selector: LabelSelector | None = None
    """Labels of the namespaces."""


class AllowedRoutes(ApiModel):
    """Which RoutePolicies may use the pool."""

    namespaces: AllowedNamespaces = AllowedNamespaces()
    """The namespaces whose RoutePolicies may use the pool."""


class ModelPoolSpec(ApiModel):
    """What is wanted."""

    cel_rules = (
        CelRule(
            cel="!(has(self.replicas) && has(self.autoscaling))",
            message="replicas must not be set together with autoscaling, which owns the number",
            holds=lambda self: self.replicas is None or self.autoscaling is None,
            field="replicas",
        ),
        CelRule(
            cel=(
                "self.backend.type == 'RayServe' || "
                "(!has(self.replicas) && !has(self.autoscaling) && !has(self.rollout))"
            ),
            message=(
                "replicas, autoscaling and rollout may be set only when backend.type is RayServe"
            ),
            holds=lambda self: (
                self.backend.type == BackendType.RAY_SERVE
                or (self.replicas is None and self.autoscaling is None and self.rollout is None)
            ),
            field="backend",
        ),
    )
    served_model_name: Annotated[ModelName, FieldRules((immutable_rule("servedModelName"),))]
    """The name that the engine serves the model under. Clients of the gateway ``default`` may ask
    for it directly; a RoutePolicy that lists it in modelNames takes the name over. Immutable."""
    backend: Backend
    """What serves the model."""
    context_tokens: Annotated[StrictInt, Field(ge=1, le=100_000_000)] | None = None
    """The longest prompt and answer together, in tokens. Requests that do not fit are not routed
    here; a vLLM engine is started with this length. Absent: the engine's own limit, which the
    gateway then does not know."""
    replicas: Annotated[StrictInt, Field(ge=0, le=10_000)] | None = None
    """How many replicas run; 1 if neither this nor autoscaling is set."""
    autoscaling: Autoscaling | None = None
    """Let the number of replicas follow the load."""
    rollout: Rollout | None = None
    """How a changed pool replaces its replicas; the defaults of its fields hold if absent."""
    pricing: PoolPricing | None = None
    """What the tokens cost; free if absent."""
    quality: Annotated[tuple[TaskQuality, ...], Field(max_length=64), MapList("task")] = ()
    """How good the model is, by task; the prior that a RoutePolicy's objective starts from."""
    allowed_routes: AllowedRoutes = AllowedRoutes()
    """Which RoutePolicies may use the pool."""


class ModelPoolStatus(ApiModel):
    """What is."""

    observed_generation: Annotated[StrictInt, Field(ge=0, le=2**53 - 1)] | None = None
    """The generation of the spec that this status is about."""
    replicas: Annotated[StrictInt, Field(ge=0, le=2**31 - 1)] | None = None
    """Replicas that exist."""
    ready_replicas: Annotated[StrictInt, Field(ge=0, le=2**31 - 1)] | None = None
    """Replicas that would serve a request now."""
    updated_replicas: Annotated[StrictInt, Field(ge=0, le=2**31 - 1)] | None = None
    """Ready replicas of updateRevision."""
    current_revision: Annotated[str, Field(max_length=253)] | None = None
    """The revision that is served: the name of a ControllerRevision."""
    update_revision: Annotated[str, Field(max_length=253)] | None = None
    """The revision that is wanted; differs from currentRevision during a roll-out."""
    last_scale_time: (
        Annotated[str, Field(max_length=64, json_schema_extra={"format": "date-time"})] | None
    ) = None
    """When the number of replicas last changed (RFC 3339)."""
    selector: Annotated[str, Field(max_length=1024)] | None = None
    """Label selector of the replicas' pods, for ``kubectl scale`` and autoscalers."""
    conditions: Conditions = ()
    """Accepted, ModelReady, ReplicasReady, Progressing, Active and Ready."""


class PoolMeta(ObjectMeta):
    """Metadata of a ModelPool, whose name also names Ray's applications and services."""

    name: Annotated[str, Field(pattern=POOL_NAME_PATTERN, max_length=POOL_NAME_MAX_LENGTH)]
    """Name of the pool."""


class ModelPool(ApiModel):
    """A model and what serves it: replicas of Ray Serve, pods that run, or external addresses."""

    api_version: Literal["pointsman.dev/v1alpha1"] = API_VERSION
    kind: Literal["ModelPool"] = "ModelPool"
    metadata: PoolMeta
    spec: ModelPoolSpec
    """What is wanted."""
    status: ModelPoolStatus | None = None
    """What is; written by the operator."""

    @property
    def key(self) -> str:
        """The pool's key in the route table."""
        return self.metadata.key
