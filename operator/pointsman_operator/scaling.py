"""How many replicas an autoscaled pool wants: up fast, down slow, never while it is rolled out.

Pure. The load is what the gateways measure: requests that run at the replicas or wait for them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pointsman_api.modelpool import Autoscaling, ModelPool
from pointsman_operator.observed import GatewayView, PoolObserved
from pointsman_operator.ray_service import replicas_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What all gateways together have for one pool, now."""

    requests: int = 0
    """Running at the replicas or waiting for them."""
    complete: bool = True
    """Every gateway pod has said so lately. Else there may be more, never less."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalingState:
    """What a decision remembers; the next one is made from it."""

    wanted: int
    """Replicas that are wanted."""
    above_since: float | None = None
    """Since when the load has called for more, without a break."""
    above_least: int = 0
    """The fewest that it called for since then."""
    below_since: float | None = None
    """Since when the load has called for fewer, without a break."""
    below_most: int = 0
    """The most that it called for since then."""
    scaled_at: float | None = None
    """When ``wanted`` last changed."""

    def to_document(self) -> dict[str, Any]:
        """The state as JSON types."""
        return {name: getattr(self, name) for name in self.__slots__}

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> ScalingState:
        """Read what :meth:`to_document` wrote.

        Raises:
            TypeError: the document has other fields.
        """
        return cls(**document)


def load_of(
    pool_key: str, gateways: Iterable[GatewayView], *, now: float, stale_seconds: float
) -> Load:
    """Sum up what the gateways say about a pool.

    A gateway pod that is going counts with what it still has, until it ends or falls silent; what
    no pod that stays has said makes the load incomplete.

    Args:
        pool_key: the pool's key in the route table.
        stale_seconds: a report that is older counts as none.
    """
    requests, complete = 0, True
    for gateway in gateways:
        fresh = {
            report.pod: report
            for report in gateway.reports
            if now - report.read_at <= stale_seconds
        }
        complete = complete and all(pod in fresh for pod in gateway.pods)
        for report in fresh.values():
            said = report.pools.get(pool_key)
            if said is not None:
                # A number below zero is a broken gateway's; it takes nothing from the others'.
                requests += max(0, said.queued) + max(0, said.open_streams)
    return Load(requests=requests, complete=complete)


def initial_state(pool: ModelPool, observed: PoolObserved) -> ScalingState:
    """Where scaling starts: at what runs, and for a new pool at one replica at least.

    A pool that may be at zero still starts once, so that a model that does not load is found out
    before the first request. One that has run before and has no RayService is at zero.
    """
    autoscaling = _autoscaling(pool)
    running = None if observed.ray_service is None else replicas_of(observed.ray_service)
    if running is None:
        ran_before = pool.status is not None and pool.status.current_revision is not None
        running = 0 if ran_before else max(1, autoscaling.min_replicas)
    return ScalingState(wanted=_clamped(running, autoscaling))


def decide(
    pool: ModelPool, state: ScalingState, load: Load, *, now: float, rolling_out: bool
) -> ScalingState:
    """The next state; its ``wanted`` is the decision.

    - More replicas, once the load has called for them for ``scaleUpDelay``; at zero, at once.
    - Fewer, once the load has called for fewer for ``scaleDownDelay``, and never fewer than the
      most that it called for in that time. A gateway that does not report may hold requests, so
      this time then begins anew.
    - A roll-out changes nothing, and both times begin anew after it. The pool's own limits hold
      at any time.

    Args:
        rolling_out: replicas are being replaced, and the roll-out moves.
    """
    autoscaling = _autoscaling(pool)
    bounded = _clamped(state.wanted, autoscaling)
    if bounded != state.wanted:
        return ScalingState(wanted=bounded, scaled_at=now)
    if rolling_out:
        return ScalingState(wanted=state.wanted, scaled_at=state.scaled_at)
    called_for = _clamped(math.ceil(load.requests / autoscaling.target.value), autoscaling)
    if called_for > state.wanted:
        return _upwards(autoscaling, state, called_for, now)
    if called_for < state.wanted and load.complete:
        return _downwards(autoscaling, state, called_for, now)
    return ScalingState(wanted=state.wanted, scaled_at=state.scaled_at)


def wanted_replicas(pool: ModelPool, state: ScalingState | None) -> int:
    """How many replicas the pool wants.

    Args:
        state: of an autoscaled pool; not looked at for one with a fixed number.
    """
    if pool.spec.autoscaling is None:
        return 1 if pool.spec.replicas is None else pool.spec.replicas
    return pool.spec.autoscaling.min_replicas if state is None else state.wanted


def _upwards(
    autoscaling: Autoscaling, state: ScalingState, called_for: int, now: float
) -> ScalingState:
    since = now if state.above_since is None else state.above_since
    least = called_for if state.above_since is None else min(called_for, state.above_least)
    # Without a replica every request waits: there is nothing to be careful about.
    if state.wanted == 0 or now - since >= autoscaling.scale_up_delay.seconds:
        return ScalingState(wanted=least, scaled_at=now)
    return replace(state, above_since=since, above_least=least, below_since=None, below_most=0)


def _downwards(
    autoscaling: Autoscaling, state: ScalingState, called_for: int, now: float
) -> ScalingState:
    since = now if state.below_since is None else state.below_since
    most = called_for if state.below_since is None else max(called_for, state.below_most)
    if now - since >= autoscaling.scale_down_delay.seconds:
        return ScalingState(wanted=most, scaled_at=now)
    return replace(state, below_since=since, below_most=most, above_since=None, above_least=0)


def _clamped(replicas: int, autoscaling: Autoscaling) -> int:
    return min(max(replicas, autoscaling.min_replicas), autoscaling.max_replicas)


def _autoscaling(pool: ModelPool) -> Autoscaling:
    if pool.spec.autoscaling is None:
        raise ValueError(f"the ModelPool {pool.key} has a fixed number of replicas")
    return pool.spec.autoscaling
