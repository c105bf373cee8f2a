"""A rule with what does not change from request to request, found once for each route table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pointsman_api.route_table import StrategyType
from pointsman_serving.routing.objective import LEAST_QUALITY_PER_SECOND
from pointsman_serving.routing.quality import DEFAULT_TASK, prior_quality

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pointsman_api.route_table import RouteTable, Rule, Target
    from pointsman_serving.routing.pool import PoolState


def plans_of(table: RouteTable, pools: Mapping[str, PoolState]) -> dict[int, RulePlan]:
    """The plans of a table's rules, by the rules' identity."""
    rules = [rule for route in table.routes.values() for rule in route.rules]
    return {id(rule): RulePlan(rule, pools) for rule in rules}


class RulePlan:
    """One rule, its pools, and what is expected of them.

    Args:
        pools: of the table; targets whose pool is missing are left out.
    """

    __slots__ = (
        "_qualities",
        "fused",
        "limited",
        "pools",
        "quality_per_dollar",
        "quality_per_second",
        "rule",
        "sticky_seconds",
        "targets",
        "tpot_seconds",
        "ttft_seconds",
    )

    def __init__(self, rule: Rule, pools: Mapping[str, PoolState]) -> None:
        self.rule = rule
        self.targets: list[tuple[Target, PoolState]] = [
            (target, pools[target.pool]) for target in rule.targets if target.pool in pools
        ]
        self.pools = [pool for _, pool in self.targets]
        self.fused = rule.strategy.type is not StrategyType.WEIGHTED
        """Whether all pools are compared, rather than one drawn."""
        self.limited = any(pool.entry.context_tokens is not None for pool in self.pools)
        """Whether a prompt may be too long for a pool."""
        self.sticky_seconds = rule.strategy.stickiness.ttl_seconds
        objective = rule.strategy.objective
        self.quality_per_second = max(objective.quality_per_second, LEAST_QUALITY_PER_SECOND)
        self.quality_per_dollar = objective.quality_per_dollar
        self.ttft_seconds = rule.slo.ttft_seconds
        self.tpot_seconds = rule.slo.tpot_seconds
        tasks = {DEFAULT_TASK}.union(*(pool.entry.quality for pool in self.pools))
        self._qualities = {
            task: [prior_quality(target, pool.entry, task) for target, pool in self.targets]
            for task in tasks
        }

    def qualities(self, task: str) -> list[float]:
        """The pools' qualities for a task; of one that no pool knows, for any."""
        return self._qualities.get(task) or self._qualities[DEFAULT_TASK]
