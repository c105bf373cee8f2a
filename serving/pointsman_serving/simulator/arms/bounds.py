"""What nobody could do, to see how far the rules are from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from pointsman_serving.simulator.arm import FleetView, ImmediateArm, InstanceView
from pointsman_serving.simulator.arms.prediction import TruePredictor
from pointsman_serving.simulator.estimate import iteration_seconds, ttft_seconds

if TYPE_CHECKING:
    from pointsman_serving.engines.timing import EngineProfile
    from pointsman_serving.simulator.arms.prediction import PoolFacts
    from pointsman_serving.simulator.request import SimRequest


class FusedOracle(ImmediateArm):
    """max quality − wl · seconds − wc · dollars, with the measured quality and the true lengths.

    Seconds: the estimated TTFT, then the answer at the speed of the batch with this request in
    it, after its share of what pends where the batch is full. The first of equals wins.
    """

    name: ClassVar[str] = "oracle"

    def __init__(
        self,
        *,
        pools: Mapping[str, PoolFacts],
        seed: int = 0,
        seconds_weight: float = 0.01,
        dollars_weight: float = 100.0,
    ) -> None:
        self._pools = pools
        self._predictor = TruePredictor(pools)
        self._seconds_weight = seconds_weight
        self._dollars_weight = dollars_weight

    def choose(self, request: SimRequest, view: FleetView, now: float) -> int:
        """Compare what each instance would make of the request."""
        truth = self._predictor.predict(request)
        cached = view.cached_tokens(request)

        def utility(instance: InstanceView) -> float:
            answer = truth[instance.pool]
            dollars = self._pools[instance.pool].dollars(
                request.prompt_tokens, answer.output_tokens
            )
            ttft = ttft_seconds(instance, request.prompt_tokens, cached[instance.index])
            tokens = answer.output_tokens
            if instance.running >= instance.profile.max_sequences or instance.waiting:
                tokens += instance.pending_decode_tokens / max(instance.running, 1)
            profile = instance.profile
            tpot = iteration_seconds(instance) + profile.decode_sequence_seconds
            return (
                answer.quality
                - self._seconds_weight * (ttft + tokens * tpot)
                - self._dollars_weight * dollars
            )

        return max(view.alive, key=utility).index


def pooled_profile(profile: EngineProfile, instances: int) -> EngineProfile:
    """One machine with the work rate, memory and token budget of so many.

    A fleet of this one instance bounds what any rule can reach on the whole fleet: there is one
    cache, no wrong choice and nothing idle beside a queue. The fixed cost of an iteration stays.

    Raises:
        ValueError: no instances.
    """
    if instances < 1:
        raise ValueError(f"instances is {instances}: give a whole number from 1")
    return replace(
        profile,
        prefill_token_seconds=profile.prefill_token_seconds / instances,
        attention_pair_seconds=profile.attention_pair_seconds / instances,
        decode_sequence_seconds=profile.decode_sequence_seconds / instances,
        decode_context_token_seconds=profile.decode_context_token_seconds / instances,
        kv_capacity_tokens=profile.kv_capacity_tokens * instances,
        max_sequences=profile.max_sequences * instances,
        max_batched_tokens=profile.max_batched_tokens * instances,
    )
