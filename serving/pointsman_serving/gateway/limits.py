"""For how long a request may be in each phase, by its rule."""

from __future__ import annotations

from pointsman_api.route_table import Rule


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


def next_token_seconds(rule: Rule, *, stream: bool) -> float:
    """How long the replica may be silent later."""
    limits = rule.resilience
    return limits.between_tokens_timeout_seconds if stream else limits.request_timeout_seconds
