"""One decision: score the candidates of the eligible pools and take the best."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from xxhash import xxh3_64_intdigest

from pointsman_api.route_table import OverloadAction, Route, RouteTable, Rule
from pointsman_serving.routing import reasons
from pointsman_serving.routing.breaker import BreakerState
from pointsman_serving.routing.candidates import SCORE_ALL_UP_TO, rejection, ring_names, select
from pointsman_serving.routing.objective import PoolTerms, Scored
from pointsman_serving.routing.quality import prior_quality
from pointsman_serving.routing.types import (
    Api,
    Candidate,
    Decision,
    Outcome,
    RejectReason,
    ReplicaKey,
    RouteRequest,
)

if TYPE_CHECKING:
    from collections.abc import Container, Mapping, Sequence

    from pointsman_serving.routing.pool import PoolState
    from pointsman_serving.routing.replica import ReplicaState
    from pointsman_serving.routing.stickiness import Stay
    from pointsman_serving.routing.targets import Eligible

_FOREVER: Final = float("inf")
# What rounding can make of equal terms; also far below a millisecond at the least price of time.
_EQUAL: Final = 1e-13
_EXPLAINED_PER_POOL: Final = 64
_CLOSED: Final = BreakerState.CLOSED
_DOUBTFUL: Final = (RejectReason.SILENT, RejectReason.ON_TRIAL)


@dataclass(slots=True, kw_only=True)
class Question:
    """What is asked: a request, its rule, and what narrows the choice."""

    request: RouteRequest
    route: Route
    rule: Rule
    eligible: Eligible
    stay: Stay | None
    holders: Sequence[ReplicaKey]
    exclude: Container[ReplicaKey]
    seed: int
    now: float
    also: ReplicaKey | None = None
    """The quick choice: it is looked at in any case, and stands where not all are."""
    score_all_up_to: int = SCORE_ALL_UP_TO
    careful: bool = False
    """The client is in the middle of its answer: it is not what a replica is tried with."""
    ttft_seconds_left: float = _FOREVER
    """What remains of the TTFT objective; infinite where there is none."""

    def __post_init__(self) -> None:
        """Take what the request has waited off its objective."""
        stated = self.request.ttft_slo_seconds
        if stated is None:
            stated = self.rule.slo.ttft_seconds
        if stated is not None:
            self.ttft_seconds_left = stated - self.waited_seconds

    @property
    def waited_seconds(self) -> float:
        """What the request has spent in the queue."""
        arrived_at = self.request.arrived_at
        return 0.0 if arrived_at is None else max(0.0, self.now - arrived_at)


@dataclass(slots=True)
class _Field:
    """The candidates, scored, and the replicas that are none."""

    scored: list[Scored]
    rejected: list[tuple[PoolTerms, ReplicaState, RejectReason]]


def choose(question: Question, pools: Mapping[str, PoolState], *, explain: bool) -> Decision:
    """Score the eligible candidates; the decision's candidates are filled in where asked for."""
    field = _score(question)
    if not field.scored:
        return _without_choice(question, pools, field, explain=explain)
    best = _chosen_before(question, field.scored)
    if best is None:
        best = best_of(field.scored, question.request.prompt.root ^ question.seed)
    if not best.meets_slo and _gives_up(question, field.scored):
        soonest = min(field.scored, key=lambda each: each.ttft_seconds)
        waited = question.waited_seconds
        reason = reasons.hopeless(soonest, question.ttft_seconds_left + waited, waited)
        return _decision(question, pools, field, Outcome.HOPELESS, reason, explain=explain)
    if not explain:
        return Decision(
            outcome=Outcome.CHOSEN,
            reason=reasons.chosen_briefly(best, len(field.scored)),
            policy=question.route.policy,
            rule=question.rule.name,
            winner=best.candidate(),
        )
    losers = [each for each in field.scored if each is not best]
    rejected = [(terms.score(state), why) for terms, state, why in field.rejected]
    reason = reasons.chosen(best, losers, rejected, question.eligible)
    return _decision(question, pools, field, Outcome.CHOSEN, reason, explain=True, best=best)


def unroutable(request: RouteRequest, table: RouteTable) -> Decision:
    """The decision on a request that no rule takes."""
    if request.model not in table.routes:
        return Decision(outcome=Outcome.NO_MODEL, reason=reasons.no_model(request, table))
    return Decision(
        outcome=Outcome.NO_RULE,
        reason=reasons.no_rule(request, table),
        policy=table.routes[request.model].policy,
    )


def _score(question: Question) -> _Field:
    eligible = question.eligible
    now = question.now
    exclude = question.exclude
    states = [pool for _, pool in eligible.targets]
    for pool in states:
        if pool.warming:
            pool.warm(now)
    chosen = select(
        states,
        question.request.prompt,
        stay=question.stay,
        holders=question.holders,
        exclude=exclude,
        also=question.also,
        score_all_up_to=question.score_all_up_to,
        now=now,
    )
    scored: list[Scored] = []
    rejected: list[tuple[PoolTerms, ReplicaState, RejectReason]] = []
    for (target, pool), replicas in zip(eligible.targets, chosen, strict=True):
        if not replicas:
            continue
        ring = ring_names(pool, question.request.prompt)
        quality = prior_quality(target, pool.entry, question.request.task)
        terms = _terms(question, pool, quality, ring)
        for replica in replicas:
            why = rejection(replica, exclude, now)
            if why is None and question.careful and replica.breaker.state is not _CLOSED:
                why = RejectReason.ON_TRIAL
            if why is None:
                scored.append(terms.score(replica))
            else:
                rejected.append((terms, replica, why))
    if not scored:
        # Who hesitates or is on trial is passed over, but is better than nobody.
        scored = [terms.score(state) for terms, state, why in rejected if why in _DOUBTFUL]
        if scored:
            rejected = [each for each in rejected if each[2] not in _DOUBTFUL]
    if not scored and not any(why is RejectReason.FULL for _, _, why in rejected):
        # Rather the last replica than none: it may be back before its time is over.
        scored = [terms.score(state) for terms, state, why in rejected if _may_be_last(state, why)]
        if scored:
            rejected = [each for each in rejected if not _may_be_last(each[1], each[2])]
    return _Field(scored, rejected)


def _may_be_last(state: ReplicaState, why: RejectReason) -> bool:
    return why is RejectReason.EJECTED and state.breaker.last_resort and not state.full


def _terms(
    question: Question,
    pool: PoolState,
    quality: float,
    ring: tuple[str, ...],
) -> PoolTerms:
    request = question.request
    now = question.now
    fresh = question.stay is None and not request.prompt.continues
    tpot_slo = question.rule.slo.tpot_seconds
    return PoolTerms(
        pool=pool,
        request=request,
        quality=quality,
        objective=question.rule.strategy.objective,
        ring=ring,
        fresh=fresh,
        least_assigned_tokens=pool.least_assigned_tokens(now) if fresh else 0.0,
        answers=request.api is not Api.EMBEDDINGS,
        ttft_slo_seconds=question.ttft_seconds_left,
        tpot_slo_seconds=_FOREVER if tpot_slo is None else tpot_slo,
        now=now,
    )


def _chosen_before(question: Question, scored: Sequence[Scored]) -> Scored | None:
    """The quick choice, where it was made among more than are scored here."""
    live = sum(len(pool.states) for _, pool in question.eligible.targets)
    if question.also is None or live <= question.score_all_up_to:
        return None
    return next((each for each in scored if each.replica.key == question.also), None)


def best_of(scored: Sequence[Scored], salt: int) -> Scored:
    """Who meets the objectives, then the highest utility, then who was longest without work.

    Args:
        salt: orders those who are equal in all of that.
    """
    if len(scored) == 1:
        return scored[0]
    best = max(scored, key=lambda each: (each.meets_slo, each.utility))
    utility = best.utility
    least = utility - _EQUAL
    ties = [each for each in scored if each.utility >= least and each.meets_slo == best.meets_slo]
    if len(ties) == 1:
        return best
    root = salt & 0xFFFFFFFFFFFFFFFF
    return min(
        ties,
        key=lambda each: (
            each.replica.last_assigned,
            xxh3_64_intdigest(each.replica.key.replica.encode(), root),
            each.replica.key,
        ),
    )


def _gives_up(question: Question, scored: list[Scored]) -> bool:
    """Whether to refuse a request that misses its TTFT objective: only on fresh evidence."""
    if not _rejects(question):
        return False
    left = question.ttft_seconds_left
    return all(
        each.ttft_seconds > left and each.terms.pool.latency.trusted(question.now)
        for each in scored
    )


def _rejects(question: Question) -> bool:
    return question.rule.overload.action is OverloadAction.REJECT


def _without_choice(
    question: Question, pools: Mapping[str, PoolState], field: _Field, *, explain: bool
) -> Decision:
    request, rule = question.request, question.rule
    eligible = question.eligible
    full = [state.key for _, state, why in field.rejected if why is RejectReason.FULL]
    outcome: Outcome
    if eligible.outcome is Outcome.API_NOT_SERVED:
        outcome, reason = eligible.outcome, reasons.api_not_served(request, rule)
    elif eligible.outcome is Outcome.TOO_LONG:
        serving = [
            pools[name]
            for name, why in eligible.rejected.items()
            if why is RejectReason.CONTEXT_TOO_SMALL
        ]
        outcome, reason = eligible.outcome, reasons.too_long(request, rule, serving)
    elif eligible.outcome is not None and eligible.rejected:
        outcome, reason = eligible.outcome, reasons.no_weight(rule)
    elif full and question.ttft_seconds_left <= 0.0 and _rejects(question):
        outcome, reason = Outcome.HOPELESS, reasons.waited_too_long(question.waited_seconds)
    elif full:
        outcome, reason = Outcome.WAIT, reasons.all_full(full)
    else:
        outcome = Outcome.NO_REPLICA
        causes = [(state.key, why) for _, state, why in field.rejected]
        reason = reasons.no_replica(rule, causes)
    return _decision(question, pools, field, outcome, reason, explain=explain)


def _decision(
    question: Question,
    pools: Mapping[str, PoolState],
    field: _Field,
    outcome: Outcome,
    reason: str,
    *,
    explain: bool,
    best: Scored | None = None,
) -> Decision:
    candidates: tuple[Candidate, ...] = ()
    if explain:
        candidates = _candidates(question, pools, field, best)
    return Decision(
        outcome=outcome,
        reason=reason,
        policy=question.route.policy,
        rule=question.rule.name,
        winner=None if best is None else best.candidate(),
        candidates=candidates,
    )


def _candidates(
    question: Question, pools: Mapping[str, PoolState], field: _Field, best: Scored | None
) -> tuple[Candidate, ...]:
    """The best, all others that were looked at, and the rejected, also those of rejected pools."""
    ranked = sorted(
        field.scored,
        key=lambda each: (each is not best, not each.meets_slo, -each.utility, each.replica.key),
    )
    found = [each.candidate() for each in ranked]
    found += [terms.score(state).candidate(why) for terms, state, why in field.rejected]
    for target in question.rule.targets:
        why = question.eligible.rejected.get(target.pool)
        if why is None:
            continue
        pool = pools[target.pool]
        replicas = list(pool.states[:_EXPLAINED_PER_POOL])
        if not replicas:
            continue
        ring = ring_names(pool, question.request.prompt)
        quality = prior_quality(target, pool.entry, question.request.task)
        terms = _terms(question, pool, quality, ring)
        found += [terms.score(state).candidate(why) for state in replicas]
    return tuple(found)
