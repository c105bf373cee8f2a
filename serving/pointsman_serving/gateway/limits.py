"""For how long a request may be in each phase, by its rule."""

from __future__ import annotations

from pointsman_api.route_table import Rule

_RESUMED_SECONDS = 1.0


def queue_seconds(rule: Rule, *, again: bool) -> float:
    """How long it may wait for room.

    Args:
        again: it was let through before.
    """
    limit_seconds = rule.overload.max_queue_seconds
    if again:
        # Not turned away for waiting: it would have its answer, had its replica not failed.
        return max(limit_seconds, rule.resilience.first_token_timeout_seconds)
    return limit_seconds


def first_token_seconds(rule: Rule, *, stream: bool) -> float:
    """How long the replica may be silent at first."""
    limits = rule.resilience
    # A whole answer begins when it ends: only the whole request's limit says that it is late.
    return limits.first_token_timeout_seconds if stream else limits.request_timeout_seconds


def resumed_token_seconds(rule: Rule, *, predicted_seconds: float) -> float:
    """How long a replica that goes on with a stream may be silent at first.

    The client is in the middle of a stream, and others could go on as well: not much longer than
    reading the prompt again should take.

    Args:
        predicted_seconds: until the first token, by the scheduler.
    """
    limits = rule.resilience
    most = _RESUMED_SECONDS + 4.0 * predicted_seconds
    return min(most, max(limits.between_tokens_timeout_seconds, predicted_seconds))


def next_token_seconds(rule: Rule, *, stream: bool) -> float:
    """How long the replica may be silent later."""
    limits = rule.resilience
    return limits.between_tokens_timeout_seconds if stream else limits.request_timeout_seconds
