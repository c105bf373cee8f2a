"""The same choice as ``choice.choose`` makes, for nearly all requests, at a fraction of its cost.

Nothing is made for a candidate that cannot be the best, and nothing for a person to read. Where it
is not that simple (nobody is free, an objective is missed), there is no quick answer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pointsman_serving.routing import reasons
from pointsman_serving.routing.choice import best_of
from pointsman_serving.routing.holders import prefix_key
from pointsman_serving.routing.quality import prior_quality
from pointsman_serving.routing.shortlist import Shortlist
from pointsman_serving.routing.stickiness import conversation_of
from pointsman_serving.routing.targets import eligible_targets, needed_tokens
from pointsman_serving.routing.types import Api, Decision, Outcome

if TYPE_CHECKING:
    from collections.abc import Container, Mapping

    from pointsman_serving.routing.holders import PrefixHolders
    from pointsman_serving.routing.plan import RulePlan
    from pointsman_serving.routing.pool import PoolState
    from pointsman_serving.routing.stickiness import Stay
    from pointsman_serving.routing.types import ReplicaKey, RouteRequest


def quick_decision(
    plan: RulePlan,
    policy: str,
    known: Mapping[str, PoolState],
    request: RouteRequest,
    *,
    stay: Stay | None,
    holders: PrefixHolders,
    exclude: Container[ReplicaKey],
    score_all_up_to: int,
    seed: int,
    now: float,
) -> Decision | None:
    """Choose; None where every candidate must be looked at.

    Args:
        plan: of the request's rule.
        policy: whose rule it is.
        known: all pools.
        stay: where the conversation was answered last.
        holders: which replicas got a prefix lately.
    """
    pools = plan.pools
    if stay is None and _all_may_answer(plan, request):
        qualities = plan.qualities(request.task)
    else:
        eligible = eligible_targets(
            plan.rule,
            known,
            request,
            conversation=0 if plan.fused else conversation_of(request),
            stay=stay,
            exclude=exclude,
            now=now,
        )
        pools = [pool for _, pool in eligible.targets]
        qualities = [
            prior_quality(each, pool.entry, request.task) for each, pool in eligible.targets
        ]
    live = 0
    for pool in pools:
        live += len(pool.states)
        if pool.warming:
            pool.warm(now)
    ttft_seconds = request.ttft_slo_seconds
    if ttft_seconds is None:
        ttft_seconds = plan.ttft_seconds
    if ttft_seconds is None:
        ttft_seconds = float("inf")
    elif request.arrived_at is not None:
        ttft_seconds -= max(0.0, now - request.arrived_at)
    search = Shortlist(
        plan,
        request,
        fresh=stay is None and not request.prompt.continues,
        exclude=exclude,
        ttft_seconds_left=ttft_seconds,
        now=now,
    )
    every = live <= score_all_up_to
    likely = () if every else holders.find(prefix_key(request.prompt))
    scored = search.find(pools, qualities, every=every, stay=stay, holders=likely)
    if not scored:
        return None
    best = best_of(scored, request.prompt.root ^ seed)
    if not best.meets_slo:
        return None
    return Decision(
        outcome=Outcome.CHOSEN,
        reason=reasons.chosen_briefly(best, live),
        policy=policy,
        rule=plan.rule.name,
        winner=best.candidate(),
    )


def _all_may_answer(plan: RulePlan, request: RouteRequest) -> bool:
    """Whether no target of the rule is out of the question, by a look that costs nothing."""
    if not plan.fused or request.features or request.api is Api.EMBEDDINGS:
        return False
    if not plan.limited:
        return True
    return all(
        pool.entry.context_tokens is None
        or needed_tokens(pool, request) <= pool.entry.context_tokens
        for pool in plan.pools
    )
