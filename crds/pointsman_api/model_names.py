"""Who a model name of a gateway belongs to. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pointsman_api.modelpool import ModelPool
from pointsman_api.route_table import Route
from pointsman_api.routepolicy import RoutePolicy

Age = tuple[bool, str, str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """One object wants to answer to one name."""

    name: str
    item: ModelPool | RoutePolicy
    route: Route
    """What answers if the claim is granted."""
    index: int = 0
    """Of the name among those of a policy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Awards:
    """Which claims are granted."""

    owners: dict[str, Claim]
    """By name."""
    lost: tuple[tuple[Claim, Claim], ...]
    """The claims that get nothing, each with the one that is granted instead."""


def age_of(item: ModelPool | RoutePolicy) -> Age:
    """Oldest first; an object that the API server has not seen yet is the youngest."""
    created = item.metadata.creation_timestamp or ""
    return (not created, created, item.metadata.namespace, item.metadata.name)


def award(claims: Iterable[Claim]) -> Awards:
    """Grant each name to the oldest that claims it, be it a pool or a policy.

    A policy speaks for the pools of its own namespace: it has their names as if it were as old as
    they are. So whoever owns a pool can put a policy before it at any time, and nobody else can.
    """
    by_name: dict[str, list[Claim]] = {}
    for claim in claims:
        by_name.setdefault(claim.name, []).append(claim)
    owners: dict[str, Claim] = {}
    lost: list[tuple[Claim, Claim]] = []
    for name, rivals in by_name.items():
        owner, *others = sorted(rivals, key=lambda claim: _rank(claim, rivals))
        owners[name] = owner
        lost += [(claim, owner) for claim in others if not _is_served(claim, owner)]
    return Awards(owners=owners, lost=tuple(lost))


def _rank(claim: Claim, rivals: Sequence[Claim]) -> tuple[Age, bool, Age]:
    own = age_of(claim.item)
    if isinstance(claim.item, ModelPool):
        return own, True, own
    spoken_for = (
        age_of(rival.item)
        for rival in rivals
        if isinstance(rival.item, ModelPool)
        and rival.item.metadata.namespace == claim.item.metadata.namespace
    )
    return min((own, *spoken_for)), False, own


def _is_served(claim: Claim, owner: Claim) -> bool:
    """Whether a pool cannot complain: its own people, or a policy that uses it, answer."""
    if not isinstance(claim.item, ModelPool) or not isinstance(owner.item, RoutePolicy):
        return False
    if claim.item.metadata.namespace == owner.item.metadata.namespace:
        return True
    targets = (target.pool for rule in owner.route.rules for target in rule.targets)
    return claim.item.key in targets
