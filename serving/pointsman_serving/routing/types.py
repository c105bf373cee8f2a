"""The words that the scheduler and its callers share. Times are seconds of the caller's clock."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

from pointsman_serving.routing.blocks import Blocks
from pointsman_serving.routing.blocks import PrefixBlock as PrefixBlock

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


class ReplicaKey(NamedTuple):
    """Which replica of which pool."""

    pool: str
    replica: str


class Api(StrEnum):
    """The endpoints that are routed."""

    CHAT = "chat/completions"
    COMPLETIONS = "completions"
    EMBEDDINGS = "embeddings"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaAddress:
    """Where a replica listens."""

    key: ReplicaKey
    host: str
    port: int
    tls: bool = False
    base_path: str = "/v1"
    """Path before the endpoint's name."""
    model_name: str = ""
    """The name to ask this replica for; empty: the pool's served model name."""
    sequence_slots: int = 64
    health_path: str = ""
    """A path that answers GET with 200 while the replica is well; empty: it is never asked."""
    alive_path: str = ""
    """A path that answers GET while the process lives, however busy; empty: the health path."""


# What is made anew for every request is not frozen: a frozen dataclass of a dozen fields takes
# two microseconds more to make. Nobody changes one all the same.


@dataclass(slots=True, kw_only=True, init=False)
class Prompt:
    """What the scheduler knows of a prompt without a tokenizer."""

    blocks: Blocks
    total_bytes: int
    estimated_tokens: int
    root: int
    """Hash of what a conversation keeps from turn to turn (model, tenant, first messages)."""
    continues: bool
    """An answer is among the messages: a later turn, not a conversation's first."""

    def __init__(
        self,
        *,
        blocks: Iterable[tuple[int, int]],
        total_bytes: int,
        estimated_tokens: int,
        root: int,
        continues: bool = False,
    ) -> None:
        self.blocks = blocks if type(blocks) is Blocks else Blocks.of(blocks)
        self.total_bytes = total_bytes
        self.estimated_tokens = estimated_tokens
        self.root = root
        self.continues = continues


@dataclass(slots=True, kw_only=True)
class RouteRequest:
    """One request as the scheduler sees it."""

    request_id: str
    model: str
    api: Api
    prompt: Prompt
    headers: Mapping[str, str] = field(default_factory=dict)
    """Names in lower case."""
    max_output_tokens: int | None = None
    conversation: str = ""
    """x-session-id, or empty: then the prompt's root stands for it."""
    tenant: str = ""
    fairness_id: str = ""
    """Whose share of the queue it takes; empty ids share one."""
    task: str = "Default"
    ttft_slo_seconds: float | None = None
    """The request's own objective; overrides the rule's."""
    stream: bool = True
    """False: the first token cannot be seen, so that the prefill's end is predicted instead."""
    features: frozenset[str] = frozenset()
    """What the body asks for that not every engine has; see ``features.features_of``."""
    arrived_at: float | None = None
    """When the gateway got the request, on the scheduler's clock; None: now. What it waited in
    the queue counts against its TTFT objective."""


class RejectReason(StrEnum):
    """Why a candidate could not be chosen."""

    CONTEXT_TOO_SMALL = "ContextTooSmall"
    FULL = "Full"
    EJECTED = "Ejected"
    SILENT = "Silent"
    ON_TRIAL = "OnTrial"
    EXCLUDED = "Excluded"
    DRAINING = "Draining"
    STICKY_TO_OTHER_POOL = "StickyToOtherPool"
    WEIGHTED_TO_OTHER_POOL = "WeightedToOtherPool"
    API_NOT_SERVED = "ApiNotServed"
    FEATURE_NOT_SERVED = "FeatureNotServed"


@dataclass(slots=True, kw_only=True)
class Candidate:
    """One (pool, replica) with every term of its score."""

    key: ReplicaKey
    quality: float
    predicted_ttft_seconds: float
    predicted_tpot_seconds: float
    predicted_latency_seconds: float
    predicted_cached_tokens: int
    predicted_cost_dollars: float
    in_flight: int
    score: float
    meets_slo: bool = True
    rejected: RejectReason | None = None


class Outcome(StrEnum):
    """What came of asking the scheduler."""

    CHOSEN = "Chosen"
    WAIT = "Wait"
    """Every candidate is full: keep the request in the queue and ask again."""
    NO_MODEL = "NoModel"
    NO_REPLICA = "NoReplica"
    """The pools have no replica that could take it now."""
    NO_RULE = "NoRule"
    TOO_LONG = "TooLong"
    """The prompt fits the context of no target."""
    HOPELESS = "Hopeless"
    """No candidate can meet the TTFT objective and the rule rejects such requests."""
    API_NOT_SERVED = "ApiNotServed"


@dataclass(slots=True, kw_only=True)
class Decision:
    """What the scheduler chose, and why."""

    outcome: Outcome
    reason: str
    """A sentence for people."""
    policy: str = ""
    rule: str = ""
    winner: Candidate | None = None
    candidates: tuple[Candidate, ...] = ()
    """Every candidate with its terms where asked for (explain); else empty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadReport:
    """What a replica said of itself in an endpoint-load-metrics (ORCA) header or on /metrics."""

    waiting_requests: float | None = None
    running_requests: float | None = None
    kv_cache_usage: float | None = None
    """0 to 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """The tokens that an engine counted."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None
