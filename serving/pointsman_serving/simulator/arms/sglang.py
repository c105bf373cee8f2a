"""SGLang's gateway: affinity while the load is balanced, least load while it is not."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pointsman_serving.simulator.arm import FleetView
from pointsman_serving.simulator.arms.counting import CountingArm, least
from pointsman_serving.simulator.arms.prefix_index import PrefixIndex, block_sizes
from pointsman_serving.simulator.request import BLOCK_TOKENS

if TYPE_CHECKING:
    from pointsman_serving.simulator.request import SimRequest


class CacheAware(CountingArm):
    """Load = own requests in flight; imbalanced = max − min > abs and max > rel · min.

    Imbalanced: the least load. Balanced: who first got the longest prefix that the router's tree
    knows, if that is more than the threshold's share of the prompt, else the least load. Either
    way the tree learns where the prompt went. The first of equals wins.

    Source: sgl-project/sglang, ``sgl-model-gateway/src/policies/cache_aware.rs``, command line
    defaults; the library's are .5, 32 and 1.1. As it ships the router has nothing but its own tree
    (``own_tree``), 2^26 characters for each worker (at four to a token), cut back every two
    minutes; else it reads what the workers have cached, as the other rules here do.
    """

    name: ClassVar[str] = "sglang"

    def __init__(
        self,
        *,
        seed: int = 0,
        cache_threshold: float = 0.3,
        balance_abs_threshold: int = 64,
        balance_rel_threshold: float = 1.5,
        own_tree: bool = False,
        max_tree_tokens: int = 2**24,
        eviction_interval_seconds: float = 120.0,
    ) -> None:
        super().__init__()
        self._threshold = cache_threshold
        self._abs = balance_abs_threshold
        self._rel = balance_rel_threshold
        self._own_tree = own_tree
        self._most_tokens = max_tree_tokens
        self._interval_seconds = eviction_interval_seconds
        self._evict_at = eviction_interval_seconds
        self._tree = PrefixIndex()

    def choose(self, request: SimRequest, view: FleetView, now: float) -> int:
        """Apply the rule."""
        loads = [self.in_flight(each.index) for each in view.alive]
        most, fewest = max(loads), min(loads)
        if most - fewest > self._abs and most > self._rel * fewest:
            return least(view.alive, self._in_flight)
        matched, holder = self._match(request, view)
        if matched > self._threshold * request.prompt_tokens:
            return holder
        return least(view.alive, self._in_flight)

    def sent(self, request: SimRequest, instance: int, view: FleetView, now: float) -> None:
        """Learn where the prompt went; of one prompt the end is forgotten first."""
        if not self._own_tree:
            return
        self._tree.insert(tuple(block_sizes(request))[::-1], instance)
        if now >= self._evict_at:
            self._evict_at = now + self._interval_seconds
            for each in view.alive:
                self._tree.shrink(each.index, self._most_tokens)

    def _match(self, request: SimRequest, view: FleetView) -> tuple[int, int]:
        """The longest known prefix, in tokens, and who has it."""
        if not self._own_tree:
            cached = view.cached_tokens(request)
            holder = max(view.alive, key=lambda each: cached[each.index]).index
            return cached[holder], holder
        depth = self._tree.depth(request.blocks)
        if not depth:
            return 0, -1
        holder = next(iter(self._tree.holders(request.blocks[depth - 1])))
        return min(depth * BLOCK_TOKENS, request.prompt_tokens), holder

    def removed(self, instance: int) -> None:
        """Take the worker out of the tree."""
        self._tree.remove(instance)


class LibraryCacheAware(CacheAware):
    """``CacheAware`` as the library has it when no command line sets it up."""

    name: ClassVar[str] = "sglang-library"

    def __init__(
        self,
        *,
        seed: int = 0,
        cache_threshold: float = 0.5,
        balance_abs_threshold: int = 32,
        balance_rel_threshold: float = 1.1,
        own_tree: bool = False,
        max_tree_tokens: int = 2**24,
        eviction_interval_seconds: float = 120.0,
    ) -> None:
        super().__init__(
            seed=seed,
            cache_threshold=cache_threshold,
            balance_abs_threshold=balance_abs_threshold,
            balance_rel_threshold=balance_rel_threshold,
            own_tree=own_tree,
            max_tree_tokens=max_tree_tokens,
            eviction_interval_seconds=eviction_interval_seconds,
        )
