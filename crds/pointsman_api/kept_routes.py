"""What stays in a route table of objects that are there and cannot be read. Pure.

An operator that starts finds objects that a later version of it has accepted. What it cannot read
it cannot compile, and what serves must not end for that.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from pointsman_api.meta import object_key
from pointsman_api.route_table import POOL_ROUTE, PoolEntry, Route, RouteTable, Rule
from pointsman_api.routepolicy import RoutePolicy


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptRoutes:
    """The parts of an earlier table that stay as they are."""

    pools: Mapping[str, PoolEntry] = field(default_factory=dict)
    routes: Mapping[str, Route] = field(default_factory=dict)
    """By model name, those of policies and pools that cannot be read."""
    targets: frozenset[tuple[str, str]] = frozenset()
    """Keys of policies, and of the pools above that they had as targets."""

    def allows(self, policy: RoutePolicy, pool: str) -> bool:
        """Whether a policy may use one of these pools: its own namespace's, or what it used.

        What else the pool would allow cannot be read.
        """
        own = pool == object_key(policy.metadata.namespace, pool.rpartition("/")[2])
        return pool in self.pools and (own or (policy.key, pool) in self.targets)

    def routes_over(self, pools: Iterable[str]) -> dict[str, Route]:
        """The routes, without the targets that are neither in ``pools`` nor kept."""
        known = {*pools, *self.pools}
        return {
            name: replace(route, rules=tuple(_rule_over(known, rule) for rule in route.rules))
            for name, route in self.routes.items()
        }


def kept_routes(table: RouteTable, *, pools: Iterable[str], policies: Iterable[str]) -> KeptRoutes:
    """What to keep of a table.

    Args:
        pools: keys of the ModelPools that cannot be read.
        policies: keys of such RoutePolicies.
    """
    entries = {key: table.pools[key] for key in sorted(pools) if key in table.pools}
    holders = {*policies, *(f"{POOL_ROUTE}{key}" for key in entries)}
    return KeptRoutes(
        pools=entries,
        routes={name: route for name, route in table.routes.items() if route.policy in holders},
        targets=frozenset(
            (route.policy, target.pool)
            for route in table.routes.values()
            for rule in route.rules
            for target in rule.targets
            if target.pool in entries
        ),
    )


def _rule_over(pools: set[str], rule: Rule) -> Rule:
    return replace(rule, targets=tuple(item for item in rule.targets if item.pool in pools))
