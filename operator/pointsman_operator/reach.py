"""Whether requests get from the gateways to a pool's replicas. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from pointsman_api.modelpool import ModelPool
from pointsman_operator.observed import GatewayReport, GatewayView, PoolObserved


class Reach(StrEnum):
    """How far the way from a client to a replica is open, by what the gateways report."""

    UNKNOWN = "Unknown"
    """It was not looked up."""
    NO_ROUTE = "NoRoute"
    """No gateway's route table sends requests here."""
    NO_POD = "NoPod"
    """The gateways with a route have no pod."""
    SILENT = "Silent"
    """None of their pods says that it takes requests."""
    NO_TABLE = "NoTable"
    """None of those that do has the pool in its table yet."""
    NO_REPLICA = "NoReplica"
    """They know the pool and reach none of its replicas."""
    REACHED = "Reached"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reached:
    """How far requests get, and why no further."""

    reach: Reach
    why: str = ""
    """What is missing and the next step, after the number of replicas."""

    @property
    def serves(self) -> bool:
        """Whether nothing on the way is known to be closed; a route may still be missing."""
        return self.reach in (Reach.UNKNOWN, Reach.NO_ROUTE, Reach.REACHED)


def reach_of(pool: ModelPool, observed: PoolObserved, *, stale_seconds: float) -> Reached:
    """How far requests for the pool get.

    One gateway pod that reaches one replica is enough.

    Args:
        stale_seconds: a report that is older counts as none.
    """
    if observed.routed_by is None:
        return Reached(reach=Reach.UNKNOWN)
    views = [view for view in observed.gateways if view.name in observed.routed_by]
    if not views:
        return Reached(
            reach=Reach.NO_ROUTE,
            why="no gateway has a route to this pool: name it in the targets of a RoutePolicy",
        )
    names = _names(views)
    if not any(view.pods for view in views):
        return Reached(
            reach=Reach.NO_POD, why=f"{names} has no pod: start one, or look at its Deployment"
        )
    fresh = [report for view in views for report in _fresh(view, observed.now, stale_seconds)]
    if not fresh:
        return Reached(
            reach=Reach.SILENT,
            why=(
                f"no pod of {names} says that it takes requests: see its pods' state and logs, and "
                "whether a NetworkPolicy keeps the operator from their admin port"
            ),
        )
    said = [report.pools[pool.key] for report in fresh if pool.key in report.pools]
    if any(item.serving_replicas > 0 for item in said):
        return Reached(reach=Reach.REACHED)
    if not said:
        return Reached(
            reach=Reach.NO_TABLE,
            why=(
                f"{names} has not taken the route table with this pool yet: if this stays, see the "
                "logs of its pods"
            ),
        )
    return Reached(
        reach=Reach.NO_REPLICA,
        why=(
            f"{names} reaches none of them yet: if this stays, see the logs of its pods and the "
            "NetworkPolicies between them and the replicas"
        ),
    )


def _names(views: list[GatewayView]) -> str:
    names = ", ".join(sorted(view.name for view in views))
    return f"the gateway {names}" if len(views) == 1 else f"each of the gateways {names}"


def _fresh(view: GatewayView, now: float, stale_seconds: float) -> list[GatewayReport]:
    return [
        report
        for report in view.reports
        if report.pod in view.pods and report.ready and now - report.read_at <= stale_seconds
    ]
