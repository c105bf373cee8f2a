"""Rules that choose the model alone, without a look at the load."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pointsman_serving.simulator.arms.clusters import ClusterTable
    from pointsman_serving.simulator.arms.prediction import PoolFacts, Predictor
    from pointsman_serving.simulator.request import SimRequest


class ModelRouter(ABC):
    """Chooses a pool for a request."""

    @abstractmethod
    def pick(self, request: SimRequest, pools: Collection[str]) -> str:
        """One of the pools that have living instances; there is at least one."""


class RouteLlm(ModelRouter):
    """The strongest model iff its predicted win rate over the weakest is at least ``threshold``.

    Win rate = 1 / (1 + e^(−(difference of the predicted qualities) / ``scale``)). The published
    routers learn it from preferences of two models and have thresholds for a wanted share of
    strong answers; with another predictor the threshold must be tuned anew, and one half is where
    the strong model begins to be the better one.

    Source: RouteLLM (arXiv 2406.18665).
    """

    def __init__(
        self,
        *,
        predictor: Predictor,
        pools: Mapping[str, PoolFacts],
        threshold: float = 0.5,
        scale: float = 0.1,
    ) -> None:
        self._predictor = predictor
        self._pools = pools
        self._threshold = threshold
        self._scale = scale

    def pick(self, request: SimRequest, pools: Collection[str]) -> str:
        """Compare the two ends of the range."""
        ranked = sorted(pools, key=lambda pool: (self._pools[pool].rank, pool))
        weak, strong = ranked[0], ranked[-1]
        forecast = self._predictor.predict(request)
        difference = forecast[strong].quality - forecast[weak].quality
        return strong if logistic(difference / self._scale) >= self._threshold else weak


class BestRoute(ModelRouter):
    """The cheapest model whose probability to match the strongest is at least ``threshold``.

    Match probability = 1 / (1 + e^(−(difference to the strongest's quality) / ``scale``)), twice
    that below one half, so that an equal is certain to match. The strongest matches itself. Only
    single answers are options, not the best of several.

    Source: BEST-Route (ICML 2025, arXiv 2506.22716).
    """

    def __init__(
        self,
        *,
        predictor: Predictor,
        pools: Mapping[str, PoolFacts],
        threshold: float = 0.8,
        scale: float = 0.1,
    ) -> None:
        self._predictor = predictor
        self._pools = pools
        self._threshold = threshold
        self._scale = scale

    def pick(self, request: SimRequest, pools: Collection[str]) -> str:
        """Go through the models by the predicted price of this request."""
        forecast = self._predictor.predict(request)
        strongest = max(pools, key=lambda pool: (self._pools[pool].rank, pool))
        best = forecast[strongest].quality

        def price(pool: str) -> tuple[float, str]:
            dollars = self._pools[pool].dollars(request.prompt_tokens, forecast[pool].output_tokens)
            return dollars, pool

        for pool in sorted(pools, key=price):
            difference = forecast[pool].quality - best
            if min(1.0, 2 * logistic(difference / self._scale)) >= self._threshold:
                return pool
        return strongest


class AvengersPro(ModelRouter):
    """The best of x = α · performance + (1 − α) · (1 − cost) over the clusters near a prompt.

    Both are normalised over the models of a cluster; the scores of the ``nearest`` clusters are
    added up, each weighted by e^(−``beta`` · distance).

    Source: Avengers-Pro (DAI 2025, arXiv 2508.12631): 60 clusters of prompt embeddings.
    """

    def __init__(
        self,
        *,
        clusters: ClusterTable,
        alpha: float = 0.5,
        nearest: int = 4,
        beta: float = 5.0,
    ) -> None:
        self._clusters = clusters
        self._alpha = alpha
        self._nearest = nearest
        self._beta = beta

    def pick(self, request: SimRequest, pools: Collection[str]) -> str:
        """Add up the scores of the clusters."""
        near = self._clusters.nearest(request.prompt, self._nearest)
        totals = dict.fromkeys(sorted(pools), 0.0)
        for distance, cluster in near:
            weight = math.exp(-self._beta * distance)
            for pool in totals:
                profile = self._clusters.profiles[cluster][pool]
                totals[pool] += weight * (
                    self._alpha * profile.performance + (1 - self._alpha) * (1 - profile.cost)
                )
        return max(totals, key=lambda pool: totals[pool])


def logistic(x: float) -> float:
    """1 / (1 + e^−x)."""
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))
