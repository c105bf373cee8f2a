"""AIBrix's prefix-cache router."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING, ClassVar

from pointsman_serving.simulator.arm import FleetView
from pointsman_serving.simulator.arms.counting import CountingArm, least
from pointsman_serving.simulator.arms.prefix_index import PrefixIndex, block_sizes

if TYPE_CHECKING:
    from collections.abc import Set

    from pointsman_serving.simulator.request import SimRequest


class AibrixPrefixCache(CountingArm):
    """Counts are the requests that the router has in flight.

    Max − min above a threshold: only the pods with the fewest stay. Of those that stay, the ones
    with the largest share of the prompt, then the fewest requests, whose count is at most the mean
    plus a number of standard deviations; where there is none, any pod with the fewest requests.
    With ``fallback`` "pending" (not AIBrix's) the fewest prompt tokens that are still to be
    computed decide where the fewest requests would, and at once where the counts are far apart.

    Source: vllm-project/aibrix, ``prefix_cache.go`` (the standard deviation is the sample's). As
    it ships the router has nothing but a hash table of its own (``own_tree``; 200,000 blocks of
    four characters for all pods together unless the deployment sizes it, unbounded here in the
    rule's favour); else it reads what the pods have cached, as with its KV event sync.
    """

    name: ClassVar[str] = "aibrix"

    def __init__(
        self,
        *,
        seed: int = 0,
        imbalance_abs_count: int = 8,
        standard_deviation_factor: float = 1.0,
        own_tree: bool = False,
        fallback: str = "requests",
    ) -> None:
        super().__init__()
        if fallback not in ("requests", "pending"):
            raise ValueError(f"fallback is {fallback!r}: give 'requests' or 'pending'")
        self._by_pending = fallback == "pending"
        self._random = Random(seed)
        self._imbalance = imbalance_abs_count
        self._factor = standard_deviation_factor
        self._own_tree = own_tree
        self._index = PrefixIndex()

    def choose(self, request: SimRequest, view: FleetView, now: float) -> int:
        """Apply the rule."""
        counts = {each.index: self.in_flight(each.index) for each in view.alive}
        fewest = min(counts.values())
        stay = set(counts)
        if max(counts.values()) - fewest > self._imbalance:
            stay = set()
            if not self._by_pending:
                stay = {index for index, count in counts.items() if count == fewest}
        matched = self._matched_tokens(request, view, stay)
        if matched:
            mean = sum(counts.values()) / len(counts)
            squares = sum((count - mean) ** 2 for count in counts.values())
            deviation = (squares / (len(counts) - 1)) ** 0.5 if len(counts) > 1 else 0.0
            most = mean + self._factor * deviation
            able = [index for index in matched if counts[index] <= most]
            if able:
                # Percent, in whole numbers: near equals are equals, and the emptier one wins.
                ranked = {
                    index: (-(matched[index] * 100 // request.prompt_tokens), counts[index])
                    for index in able
                }
                best = min(ranked.values())
                return self._random.choice([index for index in able if ranked[index] == best])
        if self._by_pending:
            counts = {each.index: each.pending_prefill_tokens for each in view.alive}
        return least(view.alive, counts, self._random)

    def sent(self, request: SimRequest, instance: int, view: FleetView, now: float) -> None:
        """Learn where the prompt went."""
        if self._own_tree:
            self._index.insert(tuple(block_sizes(request)), instance)

    def removed(self, instance: int) -> None:
        """Forget the pod."""
        self._index.remove(instance)

    def _matched_tokens(
        self, request: SimRequest, view: FleetView, stay: Set[int]
    ) -> dict[int, int]:
        """What each pod that stays knows of the prompt; those that know nothing are left out."""
        if not self._own_tree:
            cached = view.cached_tokens(request)
            return {index: cached[index] for index in sorted(stay) if cached[index]}
        matched: dict[int, int] = {}
        left = sorted(stay)
        for block, tokens in block_sizes(request):
            holders = self._index.holders(block)
            left = [index for index in left if index in holders]
            if not left:
                break
            for index in left:
                matched[index] = matched.get(index, 0) + tokens
        return matched
