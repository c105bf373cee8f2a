"""What is written down of a request when it is sent."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pointsman_serving.routing.ticket import Ticket

if TYPE_CHECKING:
    from pointsman_serving.routing.pool import PoolState
    from pointsman_serving.routing.replica import ReplicaState
    from pointsman_serving.routing.types import Candidate, RouteRequest


def issue(
    request: RouteRequest, replica: ReplicaState, winner: Candidate, pool: PoolState, now: float
) -> Ticket:
    """The ticket of a request that is being sent: what is expected of it, and how it counts."""
    blocks = request.prompt.blocks
    tokens = pool.tokens
    cache = replica.cache
    prompt_tokens = tokens.prompt_tokens(request.prompt.total_bytes)
    told = None
    if cache.held is not None:
        told = cache.exact_tokens(blocks, pool.chains.find(request.prompt), tokens.prompt[1])
    belief = cache.begin(blocks)
    predicted = min(belief.cached_bytes * tokens.prompt[1], prompt_tokens - 1.0)
    expected = predicted * cache.confidence if told is None else told
    accuracy = pool.estimated if told is None else pool.exact
    accuracy.predictions += 1
    factor = replica.latency.prefill_factor.at(now)
    return Ticket(
        replica=replica,
        request=request,
        belief=belief,
        now=now,
        predicted_cached_tokens=predicted,
        expected_cached_tokens=expected,
        told=told is not None,
        accuracy=accuracy,
        predicted_ttft_seconds=winner.predicted_ttft_seconds,
        uncached_tokens=max(1.0, prompt_tokens - expected),
        tokens_ahead=replica.load.pending_ahead(now, pool.latency.prefill[1] * factor),
        slot_was_free=replica.load.in_flight < replica.slots,
        probe=replica.breaker.sent(now),
    )
