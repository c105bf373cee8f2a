"""Sentences for people: why a request goes where it goes, or nowhere."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

from pointsman_serving.routing.targets import Eligible, needed_tokens
from pointsman_serving.routing.types import RejectReason, ReplicaKey, RouteRequest

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pointsman_api.route_table import RouteTable, Rule
    from pointsman_serving.routing.objective import Scored
    from pointsman_serving.routing.pool import PoolState

_NAMES_SHOWN: Final = 20
_NOTABLY: Final = 1.02
_REJECTED: Final = {
    RejectReason.CONTEXT_TOO_SMALL: "its context is too small",
    RejectReason.FULL: "it is full",
    RejectReason.EJECTED: "it was taken out for a while after failures",
    RejectReason.ON_TRIAL: "it is on trial after failures",
    RejectReason.SILENT: "its streams have stopped for a moment",
    RejectReason.EXCLUDED: "it was tried already",
    RejectReason.DRAINING: "it is draining",
    RejectReason.STICKY_TO_OTHER_POOL: "the conversation stays with another pool",
    RejectReason.WEIGHTED_TO_OTHER_POOL: "the weights send this conversation to another pool",
    RejectReason.API_NOT_SERVED: "its engine does not serve this endpoint",
    RejectReason.FEATURE_NOT_SERVED: "its engine refuses a field that the request sets",
}


def replica_name(key: ReplicaKey) -> str:
    """Pool and replica as one word."""
    return f"{key.pool}/{key.replica}"


def no_model(request: RouteRequest, table: RouteTable) -> str:
    """No route answers to the model's name."""
    return f"The model {request.model!r} does not exist; there are: {_names(table.routes)}."


def no_rule(request: RouteRequest, table: RouteTable) -> str:
    """The model's route has no rule for this request."""
    route = table.routes[request.model]
    return (
        f"No rule of {route.policy} matches this request of about "
        f"{request.prompt.estimated_tokens:,} prompt tokens and its headers; there are: "
        f"{_names(rule.name for rule in route.rules)}. A last rule without matches takes the rest."
    )


def api_not_served(request: RouteRequest, rule: Rule) -> str:
    """No target of the rule has the endpoint."""
    return (
        f"The endpoint {request.api.value} is served by none of the pools of the rule "
        f"{rule.name!r}: {_names(target.pool for target in rule.targets)}."
    )


def too_long(request: RouteRequest, rule: Rule, pools: Sequence[PoolState]) -> str:
    """The prompt and the answer fit no target's context."""
    pool = max(pools, key=lambda each: each.entry.context_tokens or 0)
    answer = request.max_output_tokens
    asked = f" and {answer:,} tokens of answer" if answer else ""
    prompt = needed_tokens(pool, request) - (answer or 1)
    return (
        f"About {prompt:,} prompt tokens{asked} do not fit: the largest context of the rule "
        f"{rule.name!r} is {pool.entry.context_tokens or 0:,} tokens ({pool.name})."
    )


def no_replica(rule: Rule, rejected: Iterable[tuple[ReplicaKey, RejectReason]]) -> str:
    """Nothing is there that could take the request."""
    pools = _names(target.pool for target in rule.targets)
    counts = Counter(reason for _, reason in rejected)
    if not counts:
        return f"No replica of {pools} is there; the pools may still be starting."
    causes = ", ".join(f"{count} {reason.value}" for reason, count in sorted(counts.items()))
    return f"No replica of {pools} can take the request now ({causes})."


def no_weight(rule: Rule) -> str:
    """The operator of the rule has taken all traffic from every target that fits."""
    return (
        f"Every pool of the rule {rule.name!r} that could answer has the weight 0: "
        f"{_names(target.pool for target in rule.targets)}."
    )


def all_full(full: Sequence[ReplicaKey]) -> str:
    """Each replica has all that it may hold."""
    pools = _names(sorted({key.pool for key in full}))
    count = len(full)
    who = "The only replica" if count == 1 else f"All {count} replicas"
    verb = "is" if count == 1 else "are"
    return f"{who} of {pools} {verb} full; the request waits until one of theirs ends."


def hopeless(best: Scored, slo_seconds: float, waited_seconds: float) -> str:
    """The TTFT objective cannot be met any more."""
    waited = f" after {waited_seconds:.2f} s in the queue" if waited_seconds > 0.0 else ""
    return (
        f"The first token is wanted within {slo_seconds:.2f} s and the soonest, "
        f"{replica_name(best.replica.key)}, would take {best.ttft_seconds:.2f} s{waited}."
    )


def waited_too_long(waited_seconds: float) -> str:
    """The TTFT objective has passed in the queue."""
    return (
        f"All replicas are full, and the request has waited {waited_seconds:.2f} s for one, "
        "longer than its objective for the first token."
    )


def chosen_briefly(winner: Scored, count: int) -> str:
    """For every request: cheap to build."""
    key = winner.replica.key
    return f"{key[0]}/{key[1]} {_best_of(count)}."


def chosen(
    winner: Scored,
    losers: Sequence[Scored],
    rejected: Sequence[tuple[Scored, RejectReason]],
    eligible: Eligible,
) -> str:
    """For people: what speaks for the winner, and against the nearest others."""
    sentences = []
    if eligible.sticky:
        sentences.append(f"The conversation stays with the pool {winner.terms.pool.name}.")
    elif eligible.weighted:
        sentences.append(f"The weights send it to the pool {winner.terms.pool.name}.")
    sentences.append(
        f"{replica_name(winner.replica.key)} {_best_of(1 + len(losers))}: first token in "
        f"{winner.ttft_seconds:.3f} s with {_cached(winner)}, all of it in "
        f"{winner.latency_seconds:.2f} s, quality {winner.terms.quality:.2f}"
        + (f", ${winner.dollars:.6f}." if winner.dollars else ".")
    )
    if not winner.meets_slo:
        sentences.append("No candidate meets the objective for latency.")
    sentences += _better_cached(winner, losers, rejected)
    other = max(
        (each for each in losers if each.terms.pool is not winner.terms.pool),
        key=lambda each: each.utility,
        default=None,
    )
    if other is not None:
        sentences.append(_against(winner, other))
    return " ".join(sentences)


def _better_cached(
    winner: Scored, losers: Sequence[Scored], rejected: Sequence[tuple[Scored, RejectReason]]
) -> list[str]:
    """Why the replica of this pool that holds most of the prompt did not win."""
    pool = winner.terms.pool
    reasons = {scored.replica.key: reason for scored, reason in rejected}
    holders = [
        scored
        for scored in (*losers, *(scored for scored, _ in rejected))
        if scored.terms.pool is pool and scored.cached_tokens > winner.cached_tokens + 1
    ]
    if not holders:
        return []
    holder = max(holders, key=lambda each: each.cached_tokens)
    replica = holder.replica
    name = replica_name(replica.key)
    reason = reasons.get(replica.key)
    load = replica.load
    requests = f"{load.in_flight} requests for {replica.slots} slots"
    if reason is not None:
        cause = _REJECTED[reason]
        if reason is RejectReason.FULL:
            cause += f" ({requests})"
        return [f"{name} holds more of the prompt ({_cached(holder)}) but {cause}."]
    if holder.cached_tokens - winner.cached_tokens < 64 and not load.in_flight:
        return [f"{name} holds a little more of the prompt and was sent more work lately."]
    sentence = (
        f"{name} holds more of the prompt ({_cached(holder)}) but is loaded: {requests}, "
        f"{holder.ahead_tokens:,.0f} prefill tokens ahead, first token in "
        f"{holder.ttft_seconds:.3f} s and {holder.latency_seconds:.2f} s in all."
    )
    return [sentence]


def _against(winner: Scored, other: Scored) -> str:
    causes = []
    if winner.meets_slo and not other.meets_slo:
        causes.append("misses the latency objective")
    if other.terms.quality < winner.terms.quality:
        causes.append(f"is expected to answer less well ({other.terms.quality:.2f})")
    if other.latency_seconds > _NOTABLY * winner.latency_seconds:
        causes.append(f"takes {other.latency_seconds:.2f} s")
    if other.dollars > _NOTABLY * winner.dollars:
        causes.append(f"costs ${other.dollars:.6f}")
    why = ", ".join(causes) or "delays others more"
    return (
        f"Of the other pools {replica_name(other.replica.key)} comes nearest and {why}: "
        f"utility {other.utility:.4f} against {winner.utility:.4f}."
    )


def _best_of(count: int) -> str:
    return f"scores best of {count}" if count > 1 else "is the only candidate"


def _cached(scored: Scored) -> str:
    return (
        f"{int(scored.cached_tokens):,} of about {int(scored.terms.prompt_tokens):,} "
        "prompt tokens cached"
    )


def _names(names: Iterable[str]) -> str:
    every = list(names)
    shown = ", ".join(every[:_NAMES_SHOWN])
    more = len(every) - _NAMES_SHOWN
    return (f"{shown} and {more} more" if more > 0 else shown) or "none"
