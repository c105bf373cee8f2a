"""LMetric's rule: the product of prefill work and batch size."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pointsman_serving.simulator.arm import FleetView, ImmediateArm

if TYPE_CHECKING:
    from pointsman_serving.simulator.request import SimRequest


class LMetric(ImmediateArm):
    """argmin (queued prefill + prompt − cached) · batch size, both as the instances report them.

    Source: LMetric (arXiv 2603.15202). An idle instance has the batch size 0, so that it wins
    whatever it has cached; equals are told apart by the prefill tokens, then by number. With
    ``count_itself`` the request is part of the batch, as in SGLang's port of the rule.
    """

    name: ClassVar[str] = "lmetric"

    def __init__(self, *, seed: int = 0, count_itself: bool = False) -> None:
        self._own = int(count_itself)

    def choose(self, request: SimRequest, view: FleetView, now: float) -> int:
        """Compare the products."""
        cached = view.cached_tokens(request)
        best = (0, 0, -1)
        for each in view.alive:
            tokens = each.pending_prefill_tokens + request.prompt_tokens - cached[each.index]
            score = (tokens * (each.running + each.waiting + self._own), tokens, each.index)
            if best[2] < 0 or score < best:
                best = score
        return best[2]
