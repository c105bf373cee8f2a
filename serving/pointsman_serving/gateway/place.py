"""A request's place in the queue, by its rule."""

from __future__ import annotations

from pointsman_api.route_table import OverloadAction, Rule
from pointsman_serving.gateway.limits import queue_seconds
from pointsman_serving.routing.place import Lane, Place, RuleKey
from pointsman_serving.routing.tokens import PRIOR_OUTPUT_TOKENS
from pointsman_serving.routing.types import Api, RouteRequest

_MOST_TOKENS = 1_000_000.0


def place_of(
    request: RouteRequest, rule: Rule, key: RuleKey, *, lane: Lane, now: float, again: bool
) -> Place:
    """Where a request waits.

    Its deadline is when its first token is wanted, or else when its time in the queue ends.

    Args:
        lane: the pools that may still be chosen for it.
        again: it was let through before.
    """
    overload = rule.overload
    arrived_at = now if request.arrived_at is None else request.arrived_at
    objective_seconds = request.ttft_slo_seconds or rule.slo.ttft_seconds
    deadline = arrived_at + (objective_seconds or overload.max_queue_seconds)
    rejects = overload.action is OverloadAction.REJECT and objective_seconds is not None
    return Place(
        rule=key,
        lane=lane,
        priority=overload.priority,
        tenant=request.fairness_id,
        cost_tokens=cost_tokens(request),
        deadline=deadline,
        arrived_at=arrived_at,
        again=again,
        queue_seconds=queue_seconds(rule, again=again),
        cold_seconds=overload.max_cold_start_seconds,
        latest=deadline if rejects and not again else float("inf"),
    )


def cost_tokens(request: RouteRequest) -> float:
    """What a request takes from its tenant's share: its prompt, and the longest answer asked for.

    Without a limit an answer counts as one of usual length.
    """
    tokens: float = max(request.prompt.estimated_tokens, 1)
    if request.api is not Api.EMBEDDINGS:
        tokens += request.max_output_tokens or PRIOR_OUTPUT_TOKENS
    # Whoever asks for more than any engine gives must not make the shares of others vanish.
    return min(tokens, _MOST_TOKENS)
