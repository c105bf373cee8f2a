"""Which pools of a rule may answer a request at all, before any replica is looked at."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from pointsman_api.route_table import Rule, StrategyType, Target
from pointsman_serving.routing.table import weighted_order
from pointsman_serving.routing.types import Outcome, RejectReason, ReplicaKey, RouteRequest

if TYPE_CHECKING:
    from collections.abc import Container, Mapping

    from pointsman_serving.routing.pool import PoolState
    from pointsman_serving.routing.stickiness import Stay

# Tokens are estimated from bytes: only a prompt that is too long by far is refused here. The
# engine, which counts, refuses the others.
_SURELY_TOKENS: Final = 0.6


@dataclass(slots=True, kw_only=True)
class Eligible:
    """The pools that may answer, and why the others may not."""

    targets: list[tuple[Target, PoolState]] = field(default_factory=list)
    rejected: dict[str, RejectReason] = field(default_factory=dict)
    outcome: Outcome | None = None
    """Set where no pool may answer."""
    sticky: bool = False
    weighted: bool = False


def eligible_targets(
    rule: Rule,
    pools: Mapping[str, PoolState],
    request: RouteRequest,
    *,
    conversation: int,
    stay: Stay | None,
    exclude: Container[ReplicaKey],
    now: float,
    only: str = "",
) -> Eligible:
    """Apply, in this order: endpoint, features, context, weights, the conversation's pool.

    Args:
        only: the one pool that is asked for, whatever the others' merits; empty: any.
    """
    found = Eligible()
    if only:
        found.targets = [
            (target, pools[only]) for target in rule.targets if target.pool == only in pools
        ][:1]
        found.outcome = None if found.targets else Outcome.NO_REPLICA
        return found
    targets = [(target, pools[target.pool]) for target in rule.targets if target.pool in pools]
    if not targets:
        found.outcome = Outcome.NO_REPLICA
        return found
    serving = [pair for pair in targets if pair[1].serves(request.api)]
    if not serving:
        return _none_left(found, targets, RejectReason.API_NOT_SERVED, Outcome.API_NOT_SERVED)
    _reject_others(found, targets, serving, RejectReason.API_NOT_SERVED)
    serving = _with_features(found, serving, request)
    fitting = _fitting(serving, request, exclude, now)
    if not fitting:
        return _none_left(found, serving, RejectReason.CONTEXT_TOO_SMALL, Outcome.TOO_LONG)
    _reject_others(found, serving, fitting, RejectReason.CONTEXT_TOO_SMALL)
    chosen = fitting
    weighted = rule.strategy.type is StrategyType.WEIGHTED
    if weighted:
        chosen = [pair for pair in fitting if pair[0].weight > 0]
        if not chosen:
            reason = RejectReason.WEIGHTED_TO_OTHER_POOL
            return _none_left(found, fitting, reason, Outcome.NO_REPLICA)
        _reject_others(found, fitting, chosen, RejectReason.WEIGHTED_TO_OTHER_POOL)
    if stay is not None:
        kept = [pair for pair in chosen if pair[1].name == stay.pool]
        if kept and usable(kept[0][1], exclude, now):
            _reject_others(found, chosen, kept, RejectReason.STICKY_TO_OTHER_POOL)
            found.targets = kept
            found.sticky = True
            return found
    if weighted and len(chosen) > 1:
        drawn = _drawn(chosen, conversation, exclude, now)
        _reject_others(found, chosen, drawn, RejectReason.WEIGHTED_TO_OTHER_POOL)
        chosen = drawn
        found.weighted = True
    found.targets = chosen
    return found


def usable(pool: PoolState, exclude: Container[ReplicaKey], now: float) -> bool:
    """Whether any replica may be tried, now or when a request there ends."""
    return any(state.key not in exclude and state.breaker.allows(now) for state in pool.states)


def needed_tokens(pool: PoolState, request: RouteRequest) -> int:
    """Estimated tokens of the prompt and the longest answer asked for."""
    return int(pool.tokens.prompt_tokens(request.prompt.total_bytes)) + (
        request.max_output_tokens or 1
    )


def _with_features(
    found: Eligible, targets: list[tuple[Target, PoolState]], request: RouteRequest
) -> list[tuple[Target, PoolState]]:
    """Those whose engine knows what is asked; all where none does, so that one says so itself."""
    if not request.features:
        return targets
    able = [pair for pair in targets if pair[1].serves_features(request.features)]
    if not able:
        return targets
    _reject_others(found, targets, able, RejectReason.FEATURE_NOT_SERVED)
    return able


def _fitting(
    targets: list[tuple[Target, PoolState]],
    request: RouteRequest,
    exclude: Container[ReplicaKey],
    now: float,
) -> list[tuple[Target, PoolState]]:
    by_estimate = []
    perhaps = []
    for pair in targets:
        pool = pair[1]
        context = pool.entry.context_tokens
        if context is None or needed_tokens(pool, request) <= context:
            by_estimate.append(pair)
            perhaps.append(pair)
            continue
        prompt = pool.tokens.prompt_tokens(request.prompt.total_bytes)
        if prompt * _SURELY_TOKENS + (request.max_output_tokens or 1) <= context:
            perhaps.append(pair)
    if len(by_estimate) == len(perhaps) or any(
        usable(pool, exclude, now) for _, pool in by_estimate
    ):
        return by_estimate
    return perhaps


def _drawn(
    targets: list[tuple[Target, PoolState]],
    conversation: int,
    exclude: Container[ReplicaKey],
    now: float,
) -> list[tuple[Target, PoolState]]:
    pools = {target.pool: (target, pool) for target, pool in targets}
    order = [pools[each.pool] for each in weighted_order([t for t, _ in targets], conversation)]
    for pair in order:
        if usable(pair[1], exclude, now):
            return [pair]
    return order[:1]


def _reject_others(
    found: Eligible,
    before: list[tuple[Target, PoolState]],
    after: list[tuple[Target, PoolState]],
    reason: RejectReason,
) -> None:
    if len(before) == len(after):
        return
    kept = {pool.name for _, pool in after}
    for _, pool in before:
        if pool.name not in kept:
            found.rejected[pool.name] = reason


def _none_left(
    found: Eligible,
    targets: list[tuple[Target, PoolState]],
    reason: RejectReason,
    outcome: Outcome,
) -> Eligible:
    for _, pool in targets:
        found.rejected[pool.name] = reason
    found.outcome = outcome
    return found
