"""Ray Serve's prefix-affinity router."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import TYPE_CHECKING, ClassVar

from pointsman_serving.simulator.arm import FleetView, InstanceView
from pointsman_serving.simulator.arms.counting import CountingArm, least
from pointsman_serving.simulator.arms.prefix_index import PrefixIndex, block_sizes
from pointsman_serving.simulator.request import BLOCK_TOKENS

if TYPE_CHECKING:
    from pointsman_serving.simulator.request import SimRequest


class RayPrefixAffinity(CountingArm):
    """Imbalanced iff the longest queue exceeds the shortest by more than a threshold.

    Imbalanced: the shorter queue of two at random. Else, if less than a tenth of the prompt is
    known: the replicas that were sent the least text so far, else those that know most of it; of
    these the shortest queue. A queue is the requests that the router has sent and that are not
    finished. The first of equals wins.

    Source: ray 2.60, ``PrefixCacheAffinityRouter``. As it ships the router has nothing but its
    own tree (``own_tree``), which never forgets unless asked to, and the text sent is what is in
    it; else it reads what the replicas have cached, and the text sent is the memory in use.
    """

    name: ClassVar[str] = "ray"

    def __init__(
        self,
        *,
        seed: int = 0,
        imbalanced_threshold: float = float("inf"),
        match_rate_threshold: float = 0.1,
        own_tree: bool = False,
    ) -> None:
        super().__init__()
        self._random = Random(seed)
        self._imbalance = imbalanced_threshold
        self._match_rate = match_rate_threshold
        self._own_tree = own_tree
        self._tree = PrefixIndex()
        self._unshared_tokens: dict[int, int] = {}

    def choose(self, request: SimRequest, view: FleetView, now: float) -> int:
        """Apply the rule."""
        alive = view.alive
        queues = [self.in_flight(each.index) for each in alive]
        if max(queues) - min(queues) > self._imbalance:
            return least(self._random.sample(alive, min(2, len(alive))), self._in_flight)
        matched, holders = self._match(request, view)
        if matched >= self._match_rate * request.prompt_tokens:
            return least(holders, self._in_flight)
        sizes = [self._sent_tokens(each) for each in alive]
        smallest = min(sizes)
        chosen = [each for each, size in zip(alive, sizes, strict=True) if size == smallest]
        return least(chosen, self._in_flight)

    def sent(self, request: SimRequest, instance: int, view: FleetView, now: float) -> None:
        """Put the prompt into the tree."""
        if not self._own_tree:
            return
        if request.blocks:
            self._tree.insert(tuple(block_sizes(request)), instance)
        else:
            self._unshared_tokens[instance] = (
                self._unshared_tokens.get(instance, 0) + request.prompt_tokens
            )

    def removed(self, instance: int) -> None:
        """Take the replica out of the tree."""
        self._tree.remove(instance)
        self._unshared_tokens.pop(instance, None)

    def _match(self, request: SimRequest, view: FleetView) -> tuple[int, Sequence[InstanceView]]:
        """The longest known prefix, in tokens, and who has it."""
        if self._own_tree:
            depth = self._tree.depth(request.blocks)
            holders = self._tree.holders(request.blocks[depth - 1]) if depth else ()
            matched = min(depth * BLOCK_TOKENS, request.prompt_tokens)
            return matched, [each for each in view.alive if each.index in holders] or view.alive
        cached = view.cached_tokens(request)
        matched = max(cached[each.index] for each in view.alive)
        return matched, [each for each in view.alive if cached[each.index] == matched]

    def _sent_tokens(self, each: InstanceView) -> int:
        if not self._own_tree:
            return each.used_kv_tokens
        return self._tree.tokens(each.index) + self._unshared_tokens.get(each.index, 0)
