"""What a rule that chooses the model must be told: prices, speeds, and what each would answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

if TYPE_CHECKING:
    from pointsman_serving.simulator.request import SimRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolFacts:
    """What is known of a model before any request is served."""

    input_dollars_per_million: float
    output_dollars_per_million: float
    tpot_seconds: float
    """Nominal time of one answer token."""
    size_billions: float = 0.0
    """Orders the models; 0: by their output price."""

    def dollars(self, prompt_tokens: float, output_tokens: float) -> float:
        """The price of a request."""
        return (
            prompt_tokens * self.input_dollars_per_million
            + output_tokens * self.output_dollars_per_million
        ) / 1e6

    @property
    def rank(self) -> tuple[float, float]:
        """Larger for a stronger model."""
        return self.size_billions, self.output_dollars_per_million


TESTBED_TIERS: Final[Mapping[str, PoolFacts]] = MappingProxyType(
    {
        "3b": PoolFacts(
            input_dollars_per_million=0.06,
            output_dollars_per_million=0.06,
            tpot_seconds=0.0123,
            size_billions=3,
        ),
        "7b": PoolFacts(
            input_dollars_per_million=0.07,
            output_dollars_per_million=0.07,
            tpot_seconds=0.0206,
            size_billions=7,
        ),
        "14b": PoolFacts(
            input_dollars_per_million=0.15,
            output_dollars_per_million=0.15,
            tpot_seconds=0.0184,
            size_billions=14,
        ),
        "72b": PoolFacts(
            input_dollars_per_million=0.38,
            output_dollars_per_million=0.40,
            tpot_seconds=0.0474,
            size_billions=72,
        ),
    }
)
"""Prices and nominal speeds of RouteBalance's testbed: 3B and 7B on A30, 14B on V100, 72B on A100.

Source: RouteBalance (arXiv 2606.17949).
"""


class Prediction(NamedTuple):
    """What one model would make of a request."""

    quality: float
    """Score of the answer, 0 to 1."""
    output_tokens: float


class Predictor(Protocol):
    """Says before the answer how good and how long it will be."""

    def predict(self, request: SimRequest) -> Mapping[str, Prediction]:
        """One prediction for each pool, by its name."""
        ...


class TruePredictor:
    """Knows. For bounds, and to see what prediction costs a rule.

    Raises:
        ValueError: a pool without a measured score, on the first request that lacks it.
    """

    def __init__(self, pools: Mapping[str, PoolFacts]) -> None:
        self._pools = tuple(pools)

    def predict(self, request: SimRequest) -> Mapping[str, Prediction]:
        """The measured scores and the true lengths."""
        missing = [pool for pool in self._pools if pool not in request.quality_by_pool]
        if missing:
            raise ValueError(
                f"request {request.request_id!r} has no measured score for {missing[0]!r}, only "
                f"for {sorted(request.quality_by_pool)}: join quality data to the workload"
            )
        return {
            pool: Prediction(request.quality_by_pool[pool], request.output_tokens_on(pool))
            for pool in self._pools
        }


class PriorPredictor:
    """Says the same of every request: the mean score and length of each model."""

    def __init__(self, priors: Mapping[str, Prediction]) -> None:
        self._priors = dict(priors)

    def predict(self, request: SimRequest) -> Mapping[str, Prediction]:
        """The priors."""
        return self._priors
