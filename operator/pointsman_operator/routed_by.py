"""Which gateways have a route to a pool. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from pointsman_api.compile import RouteProblem, compile_route_table
from pointsman_api.conditions import Reason
from pointsman_api.meta import object_key
from pointsman_api.modelpool import ModelPool
from pointsman_api.routepolicy import RoutePolicy


def routed_by(
    pool: ModelPool,
    policies: Iterable[RoutePolicy],
    *,
    gateways: Iterable[str],
    labels_of: Callable[[str], dict[str, str]],
    problems: Iterable[RouteProblem],
) -> frozenset[str]:
    """Names of the gateways whose route table sends requests to the pool.

    Args:
        policies: of all namespaces.
        gateways: those that the operator knows.
        labels_of: gives the labels of a namespace.
        problems: what compiling the whole tables found wrong with the pool.
    """
    concerned = _concerned(pool, tuple(policies))
    names = {name for policy in concerned for name in policy.spec.model_names}
    if not any(problem.reason is Reason.MODEL_NAME_CONFLICT for problem in problems):
        # Else an older pool answers to it.
        names.add(pool.spec.served_model_name)
    labels = {
        namespace: labels_of(namespace)
        for namespace in {policy.metadata.namespace for policy in concerned}
    }
    found = set()
    for gateway in gateways:
        table = compile_route_table(
            [pool], concerned, gateway=gateway, namespace_labels=labels
        ).table
        rules = [rule for name in names & table.routes.keys() for rule in table.routes[name].rules]
        if any(target.pool == pool.key for rule in rules for target in rule.targets):
            found.add(gateway)
    return frozenset(found)


def _concerned(pool: ModelPool, policies: tuple[RoutePolicy, ...]) -> list[RoutePolicy]:
    """The policies that name the pool, and those that take a name of theirs or of the pool's."""
    naming = [policy for policy in policies if _names(policy, pool)]
    names = {pool.spec.served_model_name}.union(*(policy.spec.model_names for policy in naming))
    return [policy for policy in policies if not names.isdisjoint(policy.spec.model_names)]


def _names(policy: RoutePolicy, pool: ModelPool) -> bool:
    return any(
        object_key(target.pool_ref.namespace or policy.metadata.namespace, target.pool_ref.name)
        == pool.key
        for rule in policy.spec.rules
        for target in rule.targets
    )
