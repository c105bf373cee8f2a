"""Mooncake's rule: where the first token is expected first."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pointsman_serving.simulator.arm import FleetView, ImmediateArm
from pointsman_serving.simulator.estimate import ttft_seconds

if TYPE_CHECKING:
    from pointsman_serving.simulator.request import SimRequest


class MinTtft(ImmediateArm):
    """The least estimated TTFT: queue, then the prefill of what is not cached.

    Source: Mooncake (FAST 2025), algorithm 1. The transfer of cached blocks between instances is
    left out, because the engines that are simulated here have none; its refusal of requests whose
    TTFT or TBT would break the SLO is ``Rejecting``. The first of equals wins.
    """

    name: ClassVar[str] = "min-ttft"

    def __init__(self, *, seed: int = 0) -> None:
        pass

    def choose(self, request: SimRequest, view: FleetView, now: float) -> int:
        """Compare the estimates."""
        cached = view.cached_tokens(request)
        prompt = request.prompt_tokens
        return min(
            view.alive, key=lambda each: ttft_seconds(each, prompt, cached[each.index])
        ).index
