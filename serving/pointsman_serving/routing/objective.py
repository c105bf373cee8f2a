"""One utility over (pool, replica): quality, time and money in the same unit.

    utility = quality - qualityPerSecond * social seconds - qualityPerDollar * dollars

Social seconds are the request's own predicted latency and the delay that it causes to others:
three times its own prefill (everything that comes behind it), and what one more sequence costs
each sequence of the batch. Source: the congestion toll on RouteBalance's objective, and
``argmin TTFT + 3 * prefill`` with blocks in flight counted as cached.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pointsman_serving.routing.types import Candidate, RejectReason, RouteRequest

if TYPE_CHECKING:
    from pointsman_api.route_table import FusedObjective
    from pointsman_serving.routing.pool import PoolState
    from pointsman_serving.routing.replica import ReplicaState

PREFILL_TOLL: Final = 3.0
"""How many times its own prefill a request delays others."""
EVENNESS: Final = 0.05
"""Cached tokens that outweigh each token that a replica was sent more than its peers."""
MOST_EVENNESS_TOKENS: Final = 64.0
RING_TOKENS: Final = 16.0
"""Cached tokens that outweigh being a prefix's ring candidate; so gateways choose alike."""

# Time keeps deciding among equals where the objective gives it no price.
LEAST_QUALITY_PER_SECOND: Final = 1e-9


class Scored:
    """One candidate's terms."""

    __slots__ = (
        "ahead_tokens",
        "cached_tokens",
        "dollars",
        "latency_seconds",
        "meets_slo",
        "replica",
        "terms",
        "tpot_seconds",
        "ttft_seconds",
        "utility",
    )

    replica: ReplicaState
    terms: PoolTerms
    ahead_tokens: float
    cached_tokens: float
    ttft_seconds: float
    tpot_seconds: float
    latency_seconds: float
    dollars: float
    utility: float
    meets_slo: bool

    def candidate(self, rejected: RejectReason | None = None) -> Candidate:
        """The same for people and for the wire."""
        return Candidate(
            key=self.replica.key,
            quality=self.terms.quality,
            predicted_ttft_seconds=self.ttft_seconds,
            predicted_tpot_seconds=self.tpot_seconds,
            predicted_latency_seconds=self.latency_seconds,
            predicted_cached_tokens=int(self.cached_tokens),
            predicted_cost_dollars=self.dollars,
            in_flight=self.replica.load.in_flight,
            score=self.utility,
            meets_slo=self.meets_slo,
            rejected=rejected,
        )


class PoolTerms:
    """What the replicas of one pool share in one decision.

    Args:
        fresh: the request begins a conversation, so that an even spread may outweigh a cached
            prefix of a few tokens.
        ring: names of the prefix's ring candidates.
        least_assigned_tokens: the least that any replica of the pool was sent lately.
        answers: False where nothing is generated, as for embeddings.
        ttft_slo_seconds: what is left of the objective; infinite where there is none.
    """

    __slots__ = (
        "_base_seconds",
        "_blocks",
        "_cached_dollars",
        "_chain",
        "_evenness",
        "_input_dollars",
        "_least_assigned",
        "_mean_uncached",
        "_now",
        "_output_dollars",
        "_quality_per_dollar",
        "_quality_per_second",
        "_ring",
        "_seconds_per_sequence",
        "_seconds_per_token",
        "_step_seconds",
        "_steps",
        "_tokens_per_byte",
        "_tpot_slo",
        "_ttft_slo",
        "output_tokens",
        "pool",
        "prompt_tokens",
        "quality",
    )

    def __init__(
        self,
        *,
        pool: PoolState,
        request: RouteRequest,
        quality: float,
        objective: FusedObjective,
        ring: tuple[str, ...],
        fresh: bool,
        least_assigned_tokens: float,
        answers: bool,
        ttft_slo_seconds: float,
        tpot_slo_seconds: float,
        now: float,
    ) -> None:
        prompt = request.prompt
        self.pool = pool
        self.quality = quality
        (
            overhead,
            per_byte,
            output,
            self._base_seconds,
            self._seconds_per_token,
            self._step_seconds,
            self._seconds_per_sequence,
            self._input_dollars,
            self._cached_dollars,
            output_dollars,
        ) = pool.rates or pool.find_rates()
        self.prompt_tokens = max(1.0, overhead + per_byte * prompt.total_bytes)
        self._tokens_per_byte = per_byte
        self._steps = 0.0
        if not answers:
            output = 0.0
        else:
            asked = request.max_output_tokens
            if asked is not None:
                output = max(1.0, min(output, asked))
            self._steps = output - 1.0
        self.output_tokens = output
        self._output_dollars = output_dollars * output
        self._now = now
        self._blocks = prompt.blocks
        self._chain = pool.chains.find(prompt) if pool.chains.block_tokens else None
        self._mean_uncached = pool.mean_uncached_tokens
        self._ring = ring
        self._evenness = EVENNESS if fresh else 0.0
        self._least_assigned = least_assigned_tokens
        self._ttft_slo = ttft_slo_seconds
        self._tpot_slo = tpot_slo_seconds
        self._quality_per_second = max(objective.quality_per_second, LEAST_QUALITY_PER_SECOND)
        self._quality_per_dollar = objective.quality_per_dollar

    def score(self, replica: ReplicaState) -> Scored:
        """Predict one replica's terms and the utility of choosing it."""
        now = self._now
        load = replica.load
        latency = replica.latency
        prefill_factor = decode_factor = 1.0
        if not latency.usual:
            prefill_factor = latency.prefill_factor.at(now)
            decode_factor = latency.decode_factor.at(now)
        seconds_per_token = self._seconds_per_token * prefill_factor
        seconds_per_sequence = self._seconds_per_sequence * decode_factor

        cached = 0.0
        if self._blocks.hashes:
            cache = replica.cache
            told = None
            if self._chain is not None:
                told = cache.exact_tokens(self._blocks, self._chain, self._tokens_per_byte)
            if told is not None:
                cached = told
            else:
                cached = cache.cached_bytes(self._blocks) * self._tokens_per_byte * cache.confidence
                if cached > self.prompt_tokens - 1.0:
                    cached = self.prompt_tokens - 1.0
        # What an engine has told may be more than the prompt was thought to have.
        uncached = self.prompt_tokens - cached
        if uncached < 1.0:
            uncached = 1.0

        running = waiting = 0.0
        if load.reported:
            running, waiting = load.others(now)
        ahead = load.pending_ahead(now, seconds_per_token) + waiting * self._mean_uncached
        busy = load.in_flight + running + waiting
        slots = replica.slots
        batch = busy if busy < slots else slots - 1
        tpot = self._step_seconds * decode_factor + seconds_per_sequence * (batch + 1)
        prefill = seconds_per_token * uncached
        ttft = self._base_seconds * prefill_factor + seconds_per_token * ahead + prefill
        if busy >= slots:
            lasting = max(self.output_tokens * tpot, load.mean_age(now))
            ttft += (busy - slots + 1) * lasting / slots
        own = ttft + self._steps * tpot
        toll = PREFILL_TOLL * prefill + batch * seconds_per_sequence * self.output_tokens

        preference = 0.0
        if self._evenness:
            preference = self._evenness * (replica.assigned_tokens(now) - self._least_assigned)
            if preference > MOST_EVENNESS_TOKENS:
                preference = MOST_EVENNESS_TOKENS
        if replica.name not in self._ring:
            preference += RING_TOKENS

        scored = Scored()
        scored.replica = replica
        scored.terms = self
        scored.ahead_tokens = ahead
        scored.cached_tokens = cached
        scored.ttft_seconds = ttft
        scored.tpot_seconds = tpot
        scored.latency_seconds = own
        scored.dollars = dollars = (
            uncached * self._input_dollars + cached * self._cached_dollars + self._output_dollars
        )
        scored.meets_slo = ttft <= self._ttft_slo and tpot <= self._tpot_slo
        scored.utility = (
            self.quality
            - self._quality_per_second
            * (own + toll + (1.0 + PREFILL_TOLL) * preference * seconds_per_token)
            - self._quality_per_dollar * dollars
        )
        return scored
