"""RoutePolicy: which pools answer to a model name, and what decides among them."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

import re2
from pydantic import Field, StrictInt

from pointsman_api.meta import (
    API_VERSION,
    LABEL_PATTERN,
    Amount,
    Conditions,
    Duration,
    Fraction,
    LocalObjectReference,
    ModelName,
    Namespace,
    ObjectMeta,
    ObjectName,
    PositiveDuration,
)
from pointsman_api.route_table import (
    CacheIsolation,
    HeaderMatchType,
    OverloadAction,
    StrategyType,
)
from pointsman_api.rules import ApiModel, CelRule, MapList, SetList, union_rule

_OPTIONS = re2.Options()
_OPTIONS.log_errors = False


def is_regular_expression(text: str) -> bool:
    """Whether RE2, the syntax of the API server and of the gateways, takes the expression."""
    try:
        re2.compile(text, _OPTIONS)
    except re2.error:
        return False
    return True


class StickinessType(StrEnum):
    """What keeps its model."""

    CONVERSATION = "Conversation"
    NONE = "None"


class ContinuationType(StrEnum):
    """How a broken stream goes on."""

    TOKEN_IDS = "TokenIds"
    NONE = "None"


class HedgingType(StrEnum):
    """What makes a request go to a second replica."""

    NONE = "None"
    TIME_TO_FIRST_TOKEN = "TimeToFirstToken"


class HeaderCondition(ApiModel):
    """A condition on one request header."""

    cel_rules = (
        CelRule(
            cel=(
                "self.type != 'RegularExpression' || "
                "''.matches(self.value) || !''.matches(self.value)"
            ),
            message=(
                "value must be a regular expression that RE2 takes (no look-around, no "
                "back-references) when type is RegularExpression"
            ),
            holds=lambda self: (
                self.type != HeaderMatchType.REGULAR_EXPRESSION or is_regular_expression(self.value)
            ),
            field="value",
        ),
    )
    type: HeaderMatchType = HeaderMatchType.EXACT
    """Exact: the value is equal. RegularExpression: the whole value matches."""
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9!#$%&'*+.^_`|~-]+$", max_length=256)]
    """Name of the header; upper and lower case are alike."""
    value: Annotated[str, Field(min_length=1, max_length=256)]
    """What the header's value must be."""


class TokenRange(ApiModel):
    """A range of token counts, ends included."""

    cel_rules = (
        CelRule(
            cel="has(self.min) || has(self.max)",
            message="min or max must be set",
            holds=lambda self: self.min is not None or self.max is not None,
        ),
        CelRule(
            cel="!has(self.min) || !has(self.max) || self.min <= self.max",
            message="min must not be above max",
            holds=lambda self: self.min is None or self.max is None or self.min <= self.max,
            field="min",
        ),
    )
    min: Annotated[StrictInt, Field(ge=0, le=100_000_000)] | None = None
    """The fewest tokens."""
    max: Annotated[StrictInt, Field(ge=0, le=100_000_000)] | None = None
    """The most tokens."""


class RequestMatch(ApiModel):
    """Conditions on a request that must all hold."""

    headers: Annotated[tuple[HeaderCondition, ...], Field(max_length=16), MapList("name")] = ()
    """Conditions on headers."""
    input_tokens: TokenRange | None = None
    """Range of the prompt's length, which the gateway estimates from its bytes."""


class PoolReference(ApiModel):
    """A ModelPool."""

    name: ObjectName
    """Name of the ModelPool."""
    namespace: Namespace | None = None
    """Its namespace; the policy's own if absent. Another one must allow it in allowedRoutes."""


class PolicyTarget(ApiModel):
    """A pool that may be chosen."""

    pool_ref: PoolReference
    """The pool."""
    weight: Annotated[StrictInt, Field(ge=0, le=1_000_000)] | None = None
    """Share of the conversations, against the other targets' weights (strategy Weighted);
    1 if absent, 0 takes the pool out."""
    quality: Fraction | None = None
    """How good this pool is for this rule, from 0 to 1 (strategy Fused); the pool's own quality
    if absent."""


class Objective(ApiModel):
    """What a second and a dollar are worth, in points of quality (from 0 to 1)."""

    quality_per_second: Amount = Amount("0.01")
    """Quality that one second of a request's time is worth: with "0.01", a pool that is 0.02
    better may take two seconds longer."""
    quality_per_dollar: Amount = Amount("20")
    """Quality that one dollar is worth: with "20", a pool that is 0.02 better may cost a tenth of
    a cent more."""


class FusedStrategy(ApiModel):
    """Settings of the strategy Fused."""

    objective: Objective = Objective()
    """How quality, time and money are weighed."""


class RuleStrategy(ApiModel):
    """What decides among the targets."""

    cel_rules = (union_rule("type", StrategyType.FUSED, "fused", required=False),)
    type: StrategyType = StrategyType.FUSED
    """Fused: the pool and the replica are chosen together, by quality, predicted time (queue,
    prefix cache) and price. Weighted: the pool by weight, then the replica by predicted time."""
    fused: FusedStrategy | None = None
    """Settings of Fused; the defaults of its fields hold if absent."""


class ModelStickiness(ApiModel):
    """Whether later turns of a conversation keep the pool of the first."""

    type: StickinessType = StickinessType.CONVERSATION
    """Conversation: turns with the same x-session-id, or else the same first messages, keep their
    pool while it can serve. None: each request is decided anew."""
    ttl: PositiveDuration = Duration("1h")
    """How long after its last request a conversation is remembered."""


class LatencyTargets(ApiModel):
    """Times that a request should meet."""

    time_to_first_token: PositiveDuration | None = None
    """Candidates that meet it come before all others."""
    time_per_output_token: PositiveDuration | None = None
    """Mean time between output tokens."""


class OverloadPolicy(ApiModel):
    """What happens when every replica is full, or there is none."""

    priority: Annotated[StrictInt, Field(ge=-1000, le=1000)] = 0
    """Requests of a higher priority go first, over all rules of the gateway, for as long as there
    are any; where the queue is full they take the place of lower ones."""
    max_queue_time: PositiveDuration = Duration("30s")
    """How long a request waits in the gateway's queue before it is refused with 429; at once where
    the queue is already longer than that."""
    max_cold_start_time: PositiveDuration = Duration("5m")
    """How long a request is held while no pool of the rule has a replica that could serve it (at
    zero replicas, starting, or all failing) before it is refused with 503. Once there is one,
    maxQueueTime counts from then on."""
    max_queued_requests: Annotated[StrictInt, Field(ge=0, le=1_000_000)] = 2000
    """How many requests of this rule wait at once; more are refused with 429."""
    action: OverloadAction = OverloadAction.QUEUE
    """Queue: a request that cannot meet its timeToFirstToken is served late. Reject: it is refused
    at once."""


class Timeouts(ApiModel):
    """Limits of time for one request."""

    connect: PositiveDuration = Duration("1s")
    """Connecting to a replica."""
    first_token: PositiveDuration = Duration("120s")
    """From the dispatch to a replica until its first token."""
    between_tokens: PositiveDuration = Duration("30s")
    """Between two tokens of a stream."""
    request: PositiveDuration = Duration("30m")
    """The whole request with every attempt."""


class ContinuationPolicy(ApiModel):
    """What happens to a stream whose replica fails after its first token."""

    type: ContinuationType = ContinuationType.TOKEN_IDS
    """TokenIds: another replica goes on from the tokens that were sent. None: the stream ends with
    an error event."""


class HedgingPolicy(ApiModel):
    """When a request is sent to a second replica before the first has answered."""

    type: HedgingType = HedgingType.NONE
    """TimeToFirstToken: once the first token threatens to miss slo.timeToFirstToken; the replica
    that answers first goes on, and the other is cancelled. None: never."""
    budget_percent: Annotated[StrictInt, Field(ge=0, le=100)] = 5
    """How many prompt tokens may be sent twice, in percent of all prompt tokens."""


class ResiliencePolicy(ApiModel):
    """What happens when a replica fails."""

    attempts: Annotated[StrictInt, Field(ge=1, le=10)] = 2
    """How many replicas are sent the request, the first included, until one sends its first
    token. Up to eight that cannot be connected to do not count."""
    retry_budget_percent: Annotated[StrictInt, Field(ge=0, le=100)] = 20
    """How many retries there may be, in percent of the rule's requests, so that failing replicas
    do not multiply the load on the others."""
    continuation: ContinuationPolicy = ContinuationPolicy()
    """What happens to a stream whose replica fails after its first token."""
    hedging: HedgingPolicy = HedgingPolicy()
    """When a request is sent to a second replica before the first has answered."""
    timeouts: Timeouts = Timeouts()
    """Limits of time."""


class PolicyRule(ApiModel):
    """Which requests go to which pools, and how the choice is made."""

    cel_rules = (
        CelRule(
            cel="self.strategy.type == 'Weighted' || self.targets.all(t, !has(t.weight))",
            message="targets may have a weight only when strategy.type is Weighted",
            holds=lambda self: (
                self.strategy.type == StrategyType.WEIGHTED
                or all(target.weight is None for target in self.targets)
            ),
            field="targets",
        ),
        CelRule(
            cel="self.strategy.type == 'Fused' || self.targets.all(t, !has(t.quality))",
            message="targets may have a quality only when strategy.type is Fused",
            holds=lambda self: (
                self.strategy.type == StrategyType.FUSED
                or all(target.quality is None for target in self.targets)
            ),
            field="targets",
        ),
        CelRule(
            cel=(
                # CEL reserves the word namespace; Kubernetes writes such fields with underscores.
                "self.targets.all(t, self.targets.exists_one(u, "
                "u.poolRef.name == t.poolRef.name && has(u.poolRef.__namespace__) == "
                "has(t.poolRef.__namespace__) && (!has(u.poolRef.__namespace__) || "
                "u.poolRef.__namespace__ == t.poolRef.__namespace__)))"
            ),
            message="targets must name each pool once",
            holds=lambda self: (
                len({target.pool_ref for target in self.targets}) == len(self.targets)
            ),
            field="targets",
        ),
        CelRule(
            cel="self.strategy.type != 'Weighted' || "
            "self.targets.exists(t, !has(t.weight) || t.weight > 0)",
            message="targets must have at least one weight above 0",
            holds=lambda self: (
                self.strategy.type != StrategyType.WEIGHTED
                or any(target.weight != 0 for target in self.targets)
            ),
            field="targets",
        ),
        CelRule(
            cel="self.resilience.hedging.type != 'TimeToFirstToken' || "
            "has(self.slo.timeToFirstToken)",
            message=(
                "slo.timeToFirstToken must be set when resilience.hedging.type is TimeToFirstToken"
            ),
            holds=lambda self: (
                self.resilience.hedging.type != HedgingType.TIME_TO_FIRST_TOKEN
                or self.slo.time_to_first_token is not None
            ),
            field="slo",
        ),
    )
    name: Annotated[str, Field(pattern=LABEL_PATTERN, max_length=63)]
    """Name of the rule, unique in the policy."""
    matches: Annotated[
        tuple[RequestMatch, ...],
        Field(max_length=16, json_schema_extra={"x-kubernetes-list-type": "atomic"}),
    ] = ()
    """The rule takes a request that meets any of these; every request if empty."""
    targets: Annotated[
        tuple[PolicyTarget, ...],
        Field(min_length=1, max_length=32, json_schema_extra={"x-kubernetes-list-type": "atomic"}),
    ]
    """The pools to choose from."""
    strategy: RuleStrategy = RuleStrategy()
    """What decides among the targets."""
    model_stickiness: ModelStickiness = ModelStickiness()
    """Whether later turns of a conversation keep the pool of the first."""
    slo: LatencyTargets = LatencyTargets()
    """Times that requests should meet."""
    overload: OverloadPolicy = OverloadPolicy()
    """What happens when every replica is full, or there is none."""
    resilience: ResiliencePolicy = ResiliencePolicy()
    """What happens when a replica fails."""
    cache_isolation: CacheIsolation = CacheIsolation.TENANT
    """Who profits from whose prefix cache. Tenant: each tenant only from its own. Gateway: all
    requests share, which is faster and lets a tenant measure what others have asked."""


class RoutePolicySpec(ApiModel):
    """What is wanted."""

    gateway_ref: LocalObjectReference = LocalObjectReference(name="default")
    """The gateway that the policy attaches to."""
    model_names: Annotated[tuple[ModelName, ...], Field(min_length=1, max_length=64), SetList()]
    """The names that clients ask for. A name belongs to one policy of a gateway: the oldest."""
    rules: Annotated[tuple[PolicyRule, ...], Field(min_length=1, max_length=16), MapList("name")]
    """Tried in order; the first that matches decides."""


class GatewayState(ApiModel):
    """What the gateways of one name said last."""

    name: ObjectName
    """Name of the gateway."""
    config_hash: Annotated[str, Field(max_length=64)] | None = None
    """Hash of the first route table that has the policy as it is now."""
    ready_gateways: Annotated[StrictInt, Field(ge=0, le=2**31 - 1)] = 0
    """Pods that run this route table."""
    total_gateways: Annotated[StrictInt, Field(ge=0, le=2**31 - 1)] = 0
    """Pods that there are."""


class RoutePolicyStatus(ApiModel):
    """What is."""

    observed_generation: Annotated[StrictInt, Field(ge=0, le=2**53 - 1)] | None = None
    """The generation of the spec that this status is about."""
    gateways: Annotated[tuple[GatewayState, ...], Field(max_length=16), MapList("name")] = ()
    """The gateways that the policy attaches to."""
    conditions: Conditions = ()
    """Accepted, ResolvedRefs, Programmed and Ready."""


class RoutePolicy(ApiModel):
    """Which pools answer to a model name on a gateway, and what decides among them."""

    api_version: Literal["pointsman.dev/v1alpha1"] = API_VERSION
    kind: Literal["RoutePolicy"] = "RoutePolicy"
    metadata: ObjectMeta
    spec: RoutePolicySpec
    """What is wanted."""
    status: RoutePolicyStatus | None = None
    """What is; written by the operator."""

    @property
    def key(self) -> str:
        """The policy's name in messages and in the route table."""
        return self.metadata.key
