"""What a complete answer teaches: lengths, tokens, the cache's truth, latencies."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pointsman_serving.routing.types import Api, Usage

if TYPE_CHECKING:
    from pointsman_serving.routing.ticket import Ticket

# Shorter answers say more about the network than about the engine's step.
_FEWEST_TIMED_TOKENS: Final = 4
# Engines outside may count anything.
_MOST_TOKENS: Final = 10_000_000


def learn_from(ticket: Ticket, usage: Usage | None, *, now: float) -> None:
    """Learn from an answer that ended well; call it while the request still counts as load."""
    usage = usage or Usage()
    replica = ticket.replica
    request = ticket.request
    answered = ticket.tokens if usage.completion_tokens is None else usage.completion_tokens
    answered = min(answered, _MOST_TOKENS)
    if usage.prompt_tokens is not None:
        replica.tokens.learn_prompt(
            request.prompt.total_bytes, min(usage.prompt_tokens, _MOST_TOKENS)
        )
    if request.api is not Api.EMBEDDINGS:
        replica.tokens.learn_output(answered)
    if usage.cached_tokens is not None:
        cached = min(max(usage.cached_tokens, 0), _MOST_TOKENS)
        replica.cache.learn(ticket.belief, ticket.predicted_cached_tokens, cached)
        ticket.accuracy.judge(ticket.expected_cached_tokens, cached)
        if ticket.told and replica.cache.held is not None:
            replica.cache.held.judge(ticket.expected_cached_tokens, cached)
    if not ticket.slot_was_free:
        # Its time says when a slot became free, not how fast the replica is.
        return
    ahead = ticket.tokens_ahead + _uncached_tokens(ticket, usage)
    # Pieces that all came at the end were not streamed, whatever the request said.
    if ticket.first_token_at is not None and (ticket.tokens >= 2 or answered <= 1):
        _learn_streamed(ticket, ahead, answered, now)
    else:
        _learn_whole(ticket, ahead, answered, now)


def _uncached_tokens(ticket: Ticket, usage: Usage) -> float:
    if usage.prompt_tokens is None or usage.cached_tokens is None:
        return ticket.uncached_tokens
    return float(min(max(1, usage.prompt_tokens - max(0, usage.cached_tokens)), _MOST_TOKENS))


def _learn_streamed(ticket: Ticket, ahead: float, answered: int, now: float) -> None:
    if ticket.first_token_at is None:
        return
    latency = ticket.replica.latency
    latency.learn_prefill(ahead, ticket.first_token_at - ticket.dispatched_at, now=now)
    seconds = now - ticket.first_token_at
    if answered < _FEWEST_TIMED_TOKENS or seconds <= 0.0:
        return
    batch_seconds = ticket.replica.load.batch_seconds(now) - ticket.batch_seconds_at_first_token
    batch = max(1.0, batch_seconds / seconds)
    latency.learn_decode(batch, seconds / (answered - 1), now=now)


def _learn_whole(ticket: Ticket, ahead: float, answered: int, now: float) -> None:
    """Divide the time of an answer that came at once as the prediction divides it."""
    latency = ticket.replica.latency
    seconds = now - ticket.dispatched_at
    prefill = latency.pool.prefill_at(ahead) * latency.prefill_factor.at(now)
    batch = float(max(1, ticket.replica.load.in_flight))
    step = latency.pool.decode_at(batch) * latency.decode_factor.at(now)
    steps = max(0, answered - 1)
    expected = prefill + steps * step
    if expected <= 0.0:
        return
    latency.learn_prefill(ahead, prefill * seconds / expected, now=now)
    if answered >= _FEWEST_TIMED_TOKENS:
        latency.learn_decode(batch, step * seconds / expected, now=now)
