"""A RoutePolicy's status: what of it the gateways run, by what they report. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pointsman_api.compile import RouteProblem
from pointsman_api.conditions import Reason
from pointsman_api.conditions import RoutePolicyCondition as Condition
from pointsman_api.field_path import field_text
from pointsman_api.routepolicy import RoutePolicy
from pointsman_operator.conditions import (
    EventNote,
    Said,
    condition_documents,
    transition_events,
)
from pointsman_operator.gateway_plan import GatewayPlan, PolicyMemory
from pointsman_operator.observed import GatewayReport, GatewayView

_TOLD = (Condition.ACCEPTED, Condition.RESOLVED_REFS, Condition.PROGRAMMED, Condition.READY)
_REFERENCE_REASONS = frozenset({Reason.POOL_NOT_FOUND, Reason.REF_NOT_PERMITTED})


@dataclass(frozen=True, slots=True, kw_only=True)
class _Programmed:
    """How far the gateways are."""

    config_hash: str
    ready: int
    total: int


def policy_status(
    policy: RoutePolicy,
    plan: GatewayPlan | None,
    view: GatewayView | None,
    *,
    known_gateways: Iterable[str],
    pool_ready: Mapping[str, bool],
    now: float,
    stale_seconds: float,
    before: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """The status document to write; equal to ``before`` if nothing changed.

    A gateway pod counts as soon as the table that it reports has this policy as it is now; which
    table that is, and what else is in it, does not matter.

    Args:
        plan: of the policy's gateway; None where the operator knows no such gateway.
        view: that gateway's pods and their reports.
        pool_ready: the condition Ready of each pool, by the pool's key.
        stale_seconds: a report that is older counts as none.
        before: the status that the policy has now.
    """
    generation = policy.metadata.generation or 0
    old = before or {}
    problems = () if plan is None else plan.compiled.problems_of(policy)
    document: dict[str, Any] = {"observedGeneration": generation}
    accepted = _accepted(policy, plan, problems, known_gateways)
    resolved = _resolved(problems)
    said = [accepted, resolved]
    if plan is None or view is None:
        waiting = _said(Condition.PROGRAMMED, False, accepted.reason, accepted.message)
        said += [waiting, _said(Condition.READY, False, accepted.reason, accepted.message)]
    else:
        state = _programmed(policy, plan, view, now, stale_seconds, old)
        document["gateways"] = [
            {
                "name": view.name,
                "configHash": state.config_hash,
                "readyGateways": state.ready,
                "totalGateways": state.total,
            }
        ]
        programmed = _programmed_condition(policy, view, state)
        said += [programmed, _ready(policy, plan, (accepted, programmed), pool_ready)]
    document["conditions"] = condition_documents(
        said, old.get("conditions") or (), generation=generation, now=now
    )
    return document


def policy_events(
    before: Mapping[str, Any] | None, after: Mapping[str, Any]
) -> tuple[EventNote, ...]:
    """The Events to write when ``after`` replaces ``before``."""
    return transition_events(before, after, told=_TOLD)


def _accepted(
    policy: RoutePolicy,
    plan: GatewayPlan | None,
    problems: Iterable[RouteProblem],
    known_gateways: Iterable[str],
) -> Said:
    kind = Condition.ACCEPTED
    if plan is None:
        known = ", ".join(sorted(known_gateways)) or "none"
        return _said(
            kind,
            False,
            Reason.GATEWAY_NOT_FOUND,
            f"spec.gatewayRef.name is {policy.spec.gateway_ref.name!r}, and this operator has no "
            f"such gateway: known are {known}",
        )
    wrong = [item for item in problems if item.reason not in _REFERENCE_REASONS]
    if wrong:
        return _said(kind, False, wrong[0].reason, _told(wrong))
    return _said(kind, True, Reason.ACCEPTED, "the policy owns its model names")


def _resolved(problems: Iterable[RouteProblem]) -> Said:
    kind = Condition.RESOLVED_REFS
    wrong = [item for item in problems if item.reason in _REFERENCE_REASONS]
    if wrong:
        return _said(kind, False, wrong[0].reason, _told(wrong))
    return _said(kind, True, Reason.RESOLVED_REFS, "every pool it names is there and allows it")


def _programmed(
    policy: RoutePolicy,
    plan: GatewayPlan,
    view: GatewayView,
    now: float,
    stale_seconds: float,
    before: Mapping[str, Any],
) -> _Programmed:
    wanted = plan.memory.parts(plan.config_hash).get(policy.key, "")
    reports = {
        report.pod: report for report in view.reports if now - report.read_at <= stale_seconds
    }
    ready = sum(_runs(reports.get(pod), policy.key, wanted, plan.memory) for pod in view.pods)
    return _Programmed(
        config_hash=_first_hash(policy.key, wanted, plan, before, view.name),
        ready=ready,
        total=len(view.pods),
    )


def _runs(report: GatewayReport | None, key: str, wanted: str, memory: PolicyMemory) -> bool:
    if report is None or not report.ready:
        return False
    known = {config_hash for config_hash, _ in memory.tables}
    return report.config_hash in known and memory.parts(report.config_hash).get(key, "") == wanted


def _first_hash(
    key: str, wanted: str, plan: GatewayPlan, before: Mapping[str, Any], gateway: str
) -> str:
    """The hash of the first table that has the policy as it is now, as far as that is remembered.

    So the status is not written anew whenever something else in the table changes.
    """
    for item in before.get("gateways") or ():
        said = str(item.get("configHash") or "")
        if item.get("name") == gateway and plan.memory.parts(said).get(key) == wanted and wanted:
            return said
    return plan.config_hash


def _programmed_condition(policy: RoutePolicy, view: GatewayView, state: _Programmed) -> Said:
    kind = Condition.PROGRAMMED
    if state.total == 0:
        return _said(
            kind,
            False,
            Reason.GATEWAYS_NOT_READY,
            f"the gateway {view.name} has no pod: start one, or look at its Deployment",
        )
    counts = f"{state.ready} of {state.total} pods of the gateway {view.name} run this policy"
    if state.ready == state.total:
        return _said(kind, True, Reason.PROGRAMMED, counts)
    return _said(
        kind,
        False,
        Reason.GATEWAYS_NOT_READY,
        f"{counts}; if this stays, see the logs of the others",
    )


def _ready(
    policy: RoutePolicy,
    plan: GatewayPlan,
    before: Iterable[Said],
    pool_ready: Mapping[str, bool],
) -> Said:
    kind = Condition.READY
    for item in before:
        if item.status is not True:
            return _said(kind, False, item.reason, item.message)
    route = plan.compiled.table.routes.get(policy.spec.model_names[0])
    for rule in () if route is None else route.rules:
        pools = [target.pool for target in rule.targets if target.weight > 0]
        if not any(pool_ready.get(pool, False) for pool in pools):
            named = ", ".join(pools) or "none of its targets is left"
            return _said(
                kind,
                False,
                Reason.REPLICAS_NOT_READY,
                f"no pool of the rule {rule.name} would serve a request ({named}): see "
                "`kubectl get modelpools`",
            )
    return _said(kind, True, Reason.READY, "requests for its model names are served")


def _told(problems: list[RouteProblem]) -> str:
    """The first three problems, each with its field."""
    shown = [f"{field_text(item.field)} is {item.value!r}: {item.message}" for item in problems[:3]]
    more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
    return "; ".join(shown) + more


def _said(kind: Condition, status: bool | None, reason: Reason, message: str) -> Said:
    return Said(type=kind, status=status, reason=reason, message=message)
