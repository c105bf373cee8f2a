"""Two layers: a router chooses the model, a balancer the instance."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from pointsman_serving.simulator.arm import (
    Action,
    Arm,
    Event,
    FleetView,
    Reject,
)
from pointsman_serving.simulator.arms.basic import LeastRequests
from pointsman_serving.simulator.arms.dualmap import DualMap
from pointsman_serving.simulator.arms.model_routers import AvengersPro, BestRoute, RouteLlm
from pointsman_serving.simulator.arms.pool_view import PoolView, alive_by_pool

if TYPE_CHECKING:
    from pointsman_serving.simulator.arms.clusters import ClusterTable
    from pointsman_serving.simulator.arms.model_routers import ModelRouter
    from pointsman_serving.simulator.arms.prediction import PoolFacts, Predictor
    from pointsman_serving.simulator.request import SimRequest


class RouterThenBalance(Arm):
    """The router's pool, then a balancer of its own for each pool.

    Only pools with a living instance are open to the router.
    """

    name: ClassVar[str] = "router-then-balance"

    def __init__(self, *, router: ModelRouter, balancer: Callable[[], Arm]) -> None:
        self._router = router
        self._new_balancer = balancer
        self._balancers: dict[str, Arm] = {}

    def arrive(self, request: SimRequest, view: FleetView, now: float) -> Sequence[Action]:
        """Choose the pool, then ask its balancer."""
        pools = alive_by_pool(view)
        if not pools:
            return (Reject(request),)
        pool = self._router.pick(request, list(pools))
        actions = self._balancer(pool).arrive(request, PoolView(view, pools[pool]), now)
        self._set_wake()
        return actions

    def event(self, event: Event, view: FleetView, now: float) -> Sequence[Action]:
        """Tell the balancer whose instance it is about."""
        pool = view.instances[event.instance].pool
        balancer = self._balancers.get(pool)
        if balancer is None:
            return ()
        alive = [each for each in view.alive if each.pool == pool]
        actions = balancer.event(event, PoolView(view, alive), now)
        self._set_wake()
        return actions

    def wake(self, view: FleetView, now: float) -> Sequence[Action]:
        """Wake the balancers whose time has come."""
        pools = alive_by_pool(view)
        actions: list[Action] = []
        for pool, balancer in self._balancers.items():
            if balancer.wake_at is not None and balancer.wake_at <= now:
                actions += balancer.wake(PoolView(view, pools.get(pool, [])), now)
        self._set_wake()
        return actions

    def _balancer(self, pool: str) -> Arm:
        balancer = self._balancers.get(pool)
        if balancer is None:
            balancer = self._balancers[pool] = self._new_balancer()
        return balancer

    def _set_wake(self) -> None:
        times = [each.wake_at for each in self._balancers.values() if each.wake_at is not None]
        self.wake_at = min(times, default=None)


class RouteLlmThenLeast(RouterThenBalance):
    """RouteLLM, then the fewest requests."""

    name: ClassVar[str] = "routellm"

    def __init__(
        self,
        *,
        predictor: Predictor,
        pools: Mapping[str, PoolFacts],
        seed: int = 0,
        threshold: float = 0.5,
    ) -> None:
        router = RouteLlm(predictor=predictor, pools=pools, threshold=threshold)
        super().__init__(router=router, balancer=lambda: LeastRequests(seed=seed))


class BestRouteThenLeast(RouterThenBalance):
    """BEST-Route, then the fewest requests."""

    name: ClassVar[str] = "best-route"

    def __init__(
        self,
        *,
        predictor: Predictor,
        pools: Mapping[str, PoolFacts],
        seed: int = 0,
        threshold: float = 0.8,
    ) -> None:
        router = BestRoute(predictor=predictor, pools=pools, threshold=threshold)
        super().__init__(router=router, balancer=lambda: LeastRequests(seed=seed))


class AvengersProThenLeast(RouterThenBalance):
    """Avengers-Pro, then the fewest requests."""

    name: ClassVar[str] = "avengers-pro"

    def __init__(
        self, *, clusters: ClusterTable, seed: int = 0, alpha: float = 0.5, nearest: int = 4
    ) -> None:
        router = AvengersPro(clusters=clusters, alpha=alpha, nearest=nearest)
        super().__init__(router=router, balancer=lambda: LeastRequests(seed=seed))


class BestRouteThenDualMap(RouterThenBalance):
    """BEST-Route, then DualMap within the pool: quality and prefixes, one after the other."""

    name: ClassVar[str] = "best-route-dualmap"

    def __init__(
        self,
        *,
        predictor: Predictor,
        pools: Mapping[str, PoolFacts],
        seed: int = 0,
        ttft_slo_seconds: float = 5.0,
        threshold: float = 0.8,
        affinity_share: float = 1.0,
    ) -> None:
        router = BestRoute(predictor=predictor, pools=pools, threshold=threshold)
        super().__init__(
            router=router,
            balancer=lambda: DualMap(
                seed=seed, ttft_slo_seconds=ttft_slo_seconds, affinity_share=affinity_share
            ),
        )


class AvengersProThenDualMap(RouterThenBalance):
    """Avengers-Pro, then DualMap within the pool."""

    name: ClassVar[str] = "avengers-pro-dualmap"

    def __init__(
        self,
        *,
        clusters: ClusterTable,
        seed: int = 0,
        ttft_slo_seconds: float = 5.0,
        alpha: float = 0.5,
        affinity_share: float = 1.0,
    ) -> None:
        router = AvengersPro(clusters=clusters, alpha=alpha)
        super().__init__(
            router=router,
            balancer=lambda: DualMap(
                seed=seed, ttft_slo_seconds=ttft_slo_seconds, affinity_share=affinity_share
            ),
        )
