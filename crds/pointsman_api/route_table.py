"""The route table: what the gateways run, compiled from ModelPools and RoutePolicies.

It is the contract between whoever compiles it (the operator, ``pointsman up``) and the
gateways, which may be of another version: what is at its default is not written, so a default
never changes, and a new field has one. Prices are US dollars for one token, durations seconds,
sizes tokens.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

_Entry = TypeVar("_Entry")

POOL_ROUTE = "pool:"
"""Instead of a policy's key, before a pool's: the route by which it answers to its own name."""


class BackendType(StrEnum):
    """What stands behind a pool."""

    RAY_SERVE = "RayServe"
    POD_SELECTOR = "PodSelector"
    EXTERNAL = "External"


class PrefixIndex(StrEnum):
    """How gateways know which prompts a pool's replicas have in their prefix caches."""

    ESTIMATE = "Estimate"
    EVENTS = "Events"


class StrategyType(StrEnum):
    """How a rule chooses among its targets."""

    FUSED = "Fused"
    WEIGHTED = "Weighted"


class CacheIsolation(StrEnum):
    """Who may profit from whose prefix cache."""

    TENANT = "Tenant"
    GATEWAY = "Gateway"


class OverloadAction(StrEnum):
    """What happens to a request that cannot meet its TTFT objective."""

    REJECT = "Reject"
    QUEUE = "Queue"


class HeaderMatchType(StrEnum):
    """How a header's value is compared."""

    EXACT = "Exact"
    REGULAR_EXPRESSION = "RegularExpression"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExternalEndpoint:
    """One OpenAI-compatible address outside the cluster."""

    url: str
    """Base address up to and including the version, such as ``https://host/v1``."""
    model_name: str
    """The name that this address knows the model by."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CredentialReference:
    """Where a gateway finds an external pool's API key: a secret's key, or a file."""

    secret_namespace: str = ""
    secret_name: str = ""
    secret_key: str = ""
    path: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pricing:
    """Dollars for one token."""

    input_dollars: float = 0.0
    cached_input_dollars: float = 0.0
    output_dollars: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolEntry:
    """A pool as the gateways see it."""

    name: str
    """The key of the pool in the table: ``name``, or ``namespace/name`` outside ``default``."""
    served_model_name: str
    backend: BackendType
    engine: str = ""
    """VLLM, Transformers or Simulated; empty where somebody else runs it."""
    prefix_index: PrefixIndex = PrefixIndex.ESTIMATE
    """Whether the replicas publish what is in their caches."""
    context_tokens: int | None = None
    """Prompt and output together; None where it is not stated."""
    sequence_slots: int = 64
    """How many requests one replica runs at once."""
    pricing: Pricing = field(default_factory=Pricing)
    quality: dict[str, float] = field(default_factory=dict)
    """Prior of the quality in [0, 1] by task; ``Default`` holds for the others."""
    external_endpoints: tuple[ExternalEndpoint, ...] = ()
    credential: CredentialReference | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HeaderMatch:
    """A condition on one request header; the name is in lower case."""

    name: str
    value: str
    type: HeaderMatchType = HeaderMatchType.EXACT


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleMatch:
    """All that is stated must hold."""

    headers: tuple[HeaderMatch, ...] = ()
    min_input_tokens: int | None = None
    max_input_tokens: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A pool that a rule may choose."""

    pool: str
    weight: int = 1
    quality: float | None = None
    """Overrides the pool's own prior."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FusedObjective:
    """What a second and a dollar are worth, in quality (0 to 1)."""

    quality_per_second: float = 0.01
    quality_per_dollar: float = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Stickiness:
    """How long a conversation keeps its model; 0 seconds: it does not."""

    ttl_seconds: float = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Strategy:
    """The rule that scores the candidates."""

    type: StrategyType = StrategyType.FUSED
    objective: FusedObjective = field(default_factory=FusedObjective)
    stickiness: Stickiness = field(default_factory=Stickiness)


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyObjective:
    """Service level objectives; None where none is stated."""

    ttft_seconds: float | None = None
    tpot_seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Overload:
    """Bounds of the gateway's own queue."""

    priority: int = 0
    """Higher goes first, over all rules of the gateway."""
    max_queue_seconds: float = 30.0
    max_cold_start_seconds: float = 300.0
    """How long a request is held while no pool of the rule has a replica."""
    max_queued_requests: int = 2000
    action: OverloadAction = OverloadAction.QUEUE


@dataclass(frozen=True, slots=True, kw_only=True)
class Hedging:
    """Whether a request may be sent to a second replica, and how much may be sent twice."""

    enabled: bool = False
    budget_percent: float = 5.0
    """Prompt tokens sent twice, in percent of all prompt tokens sent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resilience:
    """Attempts (the first included), what failures may cost, and time limits."""

    attempts: int = 2
    retry_budget_percent: float = 20.0
    """Retries in percent of the requests."""
    continues: bool = True
    """A stream whose replica fails goes on at another."""
    hedging: Hedging = field(default_factory=Hedging)
    connect_timeout_seconds: float = 1.0
    first_token_timeout_seconds: float = 120.0
    between_tokens_timeout_seconds: float = 30.0
    request_timeout_seconds: float = 1800.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """Rules are tried in order; the first that matches decides."""

    name: str
    targets: tuple[Target, ...]
    matches: tuple[RuleMatch, ...] = ()
    """Any one is enough; empty matches everything."""
    strategy: Strategy = field(default_factory=Strategy)
    slo: LatencyObjective = field(default_factory=LatencyObjective)
    overload: Overload = field(default_factory=Overload)
    resilience: Resilience = field(default_factory=Resilience)
    cache_isolation: CacheIsolation = CacheIsolation.TENANT


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """What answers to a model name: a RoutePolicy, or a pool by its own name."""

    policy: str
    """The policy's name, or ``pool:NAME`` for the route that every pool has."""
    rules: tuple[Rule, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteTable:
    """Everything a gateway needs to know to route."""

    pools: dict[str, PoolEntry] = field(default_factory=dict)
    routes: dict[str, Route] = field(default_factory=dict)
    """By model name, as requests state it."""

    def digest(self) -> str:
        """Sixteen hex digits that change when anything in the table changes."""
        return digest_of(dump_route_table(self))


_ADAPTER: TypeAdapter[RouteTable] = TypeAdapter(RouteTable)
_POOL_ADAPTER: TypeAdapter[PoolEntry] = TypeAdapter(PoolEntry)
_ROUTE_ADAPTER: TypeAdapter[Route] = TypeAdapter(Route)


def dump_route_table(table: RouteTable) -> bytes:
    """The table as JSON, without what is at its default: a fifth of the text."""
    return _ADAPTER.dump_json(table, exclude_defaults=True)


def digest_of(document: bytes) -> str:
    """The digest of the table that a document holds."""
    return hashlib.sha256(document).hexdigest()[:16]


def load_route_table(document: bytes | str) -> RouteTable:
    """Read what :func:`dump_route_table` wrote.

    Raises:
        pydantic.ValidationError: the document is not a route table.
    """
    return _ADAPTER.validate_json(document)


def load_readable(document: bytes | str) -> RouteTable:
    """The pools and routes of a table that this version can read, without the others.

    A later version may have written values that this one does not know. A route may name a pool
    that is left out.

    Raises:
        ValueError: the document is no object with pools and routes.
    """
    found = json.loads(document)
    if not isinstance(found, dict):
        raise ValueError(f"the route table is {type(found).__name__}; it must be an object")
    return RouteTable(
        pools=_readable(_POOL_ADAPTER, found, "pools"),
        routes=_readable(_ROUTE_ADAPTER, found, "routes"),
    )


def _readable(
    adapter: TypeAdapter[_Entry], document: dict[str, object], name: str
) -> dict[str, _Entry]:
    entries = document.get(name, {})
    if not isinstance(entries, dict):
        raise ValueError(f"{name} is {type(entries).__name__}; it must be an object")
    read: dict[str, _Entry] = {}
    for key, entry in entries.items():
        with contextlib.suppress(ValidationError):
            read[key] = adapter.validate_json(json.dumps(entry))
    return read
