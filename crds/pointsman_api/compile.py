"""From ModelPools and RoutePolicies to the route table of one gateway. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from pointsman_api.conditions import Reason
from pointsman_api.field_path import FieldPath
from pointsman_api.kept_routes import KeptRoutes
from pointsman_api.meta import object_key
from pointsman_api.model_names import Claim, age_of, award
from pointsman_api.modelpool import ModelPool, NamespacesFrom
from pointsman_api.pool_entry import pool_entry
from pointsman_api.route_table import (
    POOL_ROUTE,
    FusedObjective,
    HeaderMatch,
    Hedging,
    LatencyObjective,
    Overload,
    Resilience,
    Route,
    RouteTable,
    Rule,
    RuleMatch,
    Stickiness,
    Strategy,
    Target,
)
from pointsman_api.routepolicy import (
    ContinuationType,
    FusedStrategy,
    HedgingType,
    PolicyRule,
    PolicyTarget,
    RequestMatch,
    RoutePolicy,
    StickinessType,
)

DEFAULT_GATEWAY = "default"
NamespaceLabels = Mapping[str, dict[str, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteProblem:
    """Something in one object that keeps a part of it from working."""

    kind: str
    """ModelPool or RoutePolicy."""
    key: str
    """Key of the object: ``name``, or ``namespace/name`` outside ``default``."""
    field: FieldPath
    """Path of the field inside the object, as YAML names it."""
    value: str
    """What the field says."""
    reason: Reason
    """The reason for the object's condition."""
    message: str
    """What is wrong and what to do, as one sentence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CompiledRoutes:
    """A route table, and what could not become part of it."""

    table: RouteTable
    problems: tuple[RouteProblem, ...] = ()

    def problems_of(self, item: ModelPool | RoutePolicy) -> tuple[RouteProblem, ...]:
        """The problems of one object."""
        return tuple(
            problem
            for problem in self.problems
            if problem.kind == item.kind and problem.key == item.key
        )


def compile_route_table(
    pools: Sequence[ModelPool],
    policies: Sequence[RoutePolicy],
    *,
    gateway: str = DEFAULT_GATEWAY,
    namespace_labels: NamespaceLabels | None = None,
    secrets_folder: str = "",
    kept: KeptRoutes | None = None,
) -> CompiledRoutes:
    """The table that one gateway runs; the order of the objects makes no difference.

    A pool answers to its own servedModelName on the gateway ``default``. A model name that two
    objects want goes to the older one (creation time, then namespace and name), pool or policy; a
    policy has the names of pools of its own namespace whatever its age. A target that is missing or
    not allowed is left out; a rule without any target left stays, so that its requests are refused
    instead of falling through to a later rule.

    Args:
        pools: every ModelPool, of all namespaces.
        policies: every RoutePolicy; those of other gateways are passed over.
        gateway: the gateway's name.
        namespace_labels: labels of the namespaces, for ``allowedRoutes`` with a selector.
        secrets_folder: where Secrets lie as files (``NAME/KEY``, ``NAMESPACE/NAME/KEY`` outside
            ``default``); empty: credentials stay references.
        kept: what stays as it was, of objects that are not among these.

    Returns:
        The table, and every problem of the pools and of this gateway's policies.
    """
    labels, kept = namespace_labels or {}, kept or KeptRoutes()
    by_key = {pool.key: pool for pool in sorted(pools, key=age_of)}
    attached = [policy for policy in policies if policy.spec.gateway_ref.name == gateway]
    problems: list[RouteProblem] = []
    claims: list[Claim] = []
    for policy in sorted(attached, key=age_of):
        rules = tuple(
            _rule(policy, index, by_key, labels, kept, problems)
            for index in range(len(policy.spec.rules))
        )
        route = Route(policy=policy.key, rules=rules)
        for index, name in enumerate(policy.spec.model_names):
            claims.append(Claim(name=name, item=policy, route=route, index=index))
    used = {target.pool for claim in claims for target in _targets(claim.route)}
    if gateway == DEFAULT_GATEWAY:
        used.update(by_key, kept.pools)
        claims += [_own_name(pool) for pool in by_key.values()]
    routes = kept.routes_over(by_key)
    used.update(target.pool for route in routes.values() for target in _targets(route))
    awards = award(claim for claim in claims if claim.name not in routes)
    problems += [
        _name_taken(claim, routes[claim.name].policy, gateway)
        for claim in claims
        if claim.name in routes
    ]
    problems += [_name_taken(claim, owner.route.policy, gateway) for claim, owner in awards.lost]
    routes |= {name: claim.route for name, claim in awards.owners.items()}
    entries = {key: pool_entry(pool, secrets_folder) for key, pool in by_key.items() if key in used}
    entries |= {key: entry for key, entry in kept.pools.items() if key in used}
    table = RouteTable(pools=dict(sorted(entries.items())), routes=dict(sorted(routes.items())))
    return CompiledRoutes(table=table, problems=tuple(problems))


def check_objects(
    pools: Sequence[ModelPool],
    policies: Sequence[RoutePolicy],
    *,
    namespace_labels: NamespaceLabels | None = None,
) -> tuple[RouteProblem, ...]:
    """Every problem between objects, over all gateways that they name."""
    gateways = {DEFAULT_GATEWAY, *(policy.spec.gateway_ref.name for policy in policies)}
    return tuple(
        problem
        for gateway in sorted(gateways)
        for problem in compile_route_table(
            pools, policies, gateway=gateway, namespace_labels=namespace_labels
        ).problems
    )


def _own_name(pool: ModelPool) -> Claim:
    """By which a pool answers to its own name."""
    rule = Rule(name="default", targets=(Target(pool=pool.key),))
    route = Route(policy=f"{POOL_ROUTE}{pool.key}", rules=(rule,))
    return Claim(name=pool.spec.served_model_name, item=pool, route=route)


def _targets(route: Route) -> Iterator[Target]:
    return (target for rule in route.rules for target in rule.targets)


def _name_taken(claim: Claim, owner: str, gateway: str) -> RouteProblem:
    """The problem of an object whose name belongs to another: to a policy, or a pool."""
    pool = owner.removeprefix(POOL_ROUTE) if owner.startswith(POOL_ROUTE) else ""
    if isinstance(claim.item, RoutePolicy):
        path: FieldPath = ("spec", "modelNames", claim.index)
        message = (
            f"the ModelPool {pool} already serves this name on the gateway {gateway}: rename it, "
            "or put the policy into the pool's namespace"
            if pool
            else f"the RoutePolicy {owner} already claims this name on the gateway {gateway}: a "
            "name belongs to one policy; rename it, or merge the rules into one policy"
        )
    else:
        path = ("spec", "servedModelName")
        message = (
            f"the ModelPool {pool} already serves this name: give one of the two another "
            "servedModelName, and list both in the targets of a RoutePolicy"
            if pool
            else f"the RoutePolicy {owner} already claims this name on the gateway {gateway}, and "
            "does not use this pool: rename one of the two"
        )
    return RouteProblem(
        kind=claim.item.kind,
        key=claim.item.key,
        field=path,
        value=claim.name,
        reason=Reason.MODEL_NAME_CONFLICT,
        message=message,
    )


def _rule(
    policy: RoutePolicy,
    index: int,
    pools: Mapping[str, ModelPool],
    labels: NamespaceLabels,
    kept: KeptRoutes,
    problems: list[RouteProblem],
) -> Rule:
    rule = policy.spec.rules[index]
    targets: list[Target] = []
    for position, target in enumerate(rule.targets):
        key = object_key(
            target.pool_ref.namespace or policy.metadata.namespace, target.pool_ref.name
        )
        path: FieldPath = ("spec", "rules", index, "targets", position, "poolRef")
        problem = None
        if not kept.allows(policy, key):
            problem = _target_problem(policy, key, path, pools, labels)
        if problem is None:
            targets.append(_target(target, key))
        else:
            problems.append(problem)
    return _compiled_rule(rule, tuple(targets))


def _target_problem(
    policy: RoutePolicy,
    key: str,
    path: FieldPath,
    pools: Mapping[str, ModelPool],
    labels: NamespaceLabels,
) -> RouteProblem | None:
    pool = pools.get(key)
    if pool is None:
        return RouteProblem(
            kind=policy.kind,
            key=policy.key,
            field=(*path, "name"),
            value=key,
            reason=Reason.POOL_NOT_FOUND,
            message=f"there is no ModelPool {key}: {_known_pools(pools)}",
        )
    namespace = policy.metadata.namespace
    if _allows(pool, namespace, labels):
        return None
    return RouteProblem(
        kind=policy.kind,
        key=policy.key,
        field=(*path, "namespace"),
        value=pool.metadata.namespace,
        reason=Reason.REF_NOT_PERMITTED,
        message=(
            f"the ModelPool {key} does not allow RoutePolicies of the namespace {namespace}: its "
            "spec.allowedRoutes.namespaces must let it in"
        ),
    )


def _known_pools(keys: Iterable[str]) -> str:
    known = sorted(keys)
    if not known:
        return "no ModelPool is known; add one"
    shown = ", ".join(known[:10]) + (", …" if len(known) > 10 else "")
    return f"known are {shown}"


def _allows(pool: ModelPool, namespace: str, labels: NamespaceLabels) -> bool:
    """Whether policies of a namespace may use the pool; its own always may."""
    if namespace == pool.metadata.namespace:
        return True
    allowed = pool.spec.allowed_routes.namespaces
    if allowed.from_ == NamespacesFrom.SELECTOR and allowed.selector is not None:
        return allowed.selector.matches(labels.get(namespace, {}))
    return allowed.from_ == NamespacesFrom.ALL


def _target(target: PolicyTarget, key: str) -> Target:
    return Target(
        pool=key,
        weight=1 if target.weight is None else target.weight,
        quality=None if target.quality is None else target.quality.number,
    )


def _compiled_rule(rule: PolicyRule, targets: tuple[Target, ...]) -> Rule:
    objective = (rule.strategy.fused or FusedStrategy()).objective
    stickiness = rule.model_stickiness
    kept = stickiness.type == StickinessType.CONVERSATION
    ttft, tpot = rule.slo.time_to_first_token, rule.slo.time_per_output_token
    timeouts, hedging = rule.resilience.timeouts, rule.resilience.hedging
    return Rule(
        name=rule.name,
        targets=targets,
        matches=tuple(_match(match) for match in rule.matches),
        strategy=Strategy(
            type=rule.strategy.type,
            objective=FusedObjective(
                quality_per_second=objective.quality_per_second.number,
                quality_per_dollar=objective.quality_per_dollar.number,
            ),
            stickiness=Stickiness(ttl_seconds=stickiness.ttl.seconds if kept else 0.0),
        ),
        slo=LatencyObjective(
            ttft_seconds=None if ttft is None else ttft.seconds,
            tpot_seconds=None if tpot is None else tpot.seconds,
        ),
        overload=Overload(
            priority=rule.overload.priority,
            max_queue_seconds=rule.overload.max_queue_time.seconds,
            max_cold_start_seconds=rule.overload.max_cold_start_time.seconds,
            max_queued_requests=rule.overload.max_queued_requests,
            action=rule.overload.action,
        ),
        resilience=Resilience(
            attempts=rule.resilience.attempts,
            retry_budget_percent=float(rule.resilience.retry_budget_percent),
            continues=rule.resilience.continuation.type == ContinuationType.TOKEN_IDS,
            hedging=Hedging(
                enabled=hedging.type == HedgingType.TIME_TO_FIRST_TOKEN,
                budget_percent=float(hedging.budget_percent),
            ),
            connect_timeout_seconds=timeouts.connect.seconds,
            first_token_timeout_seconds=timeouts.first_token.seconds,
            between_tokens_timeout_seconds=timeouts.between_tokens.seconds,
            request_timeout_seconds=timeouts.request.seconds,
        ),
        cache_isolation=rule.cache_isolation,
    )


def _match(match: RequestMatch) -> RuleMatch:
    tokens = match.input_tokens
    return RuleMatch(
        headers=tuple(
            HeaderMatch(name=header.name.lower(), value=header.value, type=header.type)
            for header in match.headers
        ),
        min_input_tokens=None if tokens is None else tokens.min,
        max_input_tokens=None if tokens is None else tokens.max,
    )
