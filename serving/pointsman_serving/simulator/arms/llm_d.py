"""llm-d's endpoint picker (EPP) with its default profile."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import TYPE_CHECKING, ClassVar, Final

from pointsman_serving.simulator.arm import FleetView, InstanceView
from pointsman_serving.simulator.arms.counting import CountingArm
from pointsman_serving.simulator.arms.prefix_index import PrefixIndex
from pointsman_serving.simulator.request import BLOCK_TOKENS

if TYPE_CHECKING:
    from pointsman_serving.simulator.request import SimRequest

_HASH_TOKENS: Final = 16
_HASHES_OF_BLOCK: Final = BLOCK_TOKENS // _HASH_TOKENS


class LlmD(CountingArm):
    """max Σ weight · score over queue, memory and prefix; any of equals.

    queue = (max − waiting) / (max − min), 1 where all are equal; memory = 1 − its use; prefix =
    matched / all tokens of the prompt. All of it is read from the pods. With ``own_tree`` the
    prefix comes from the picker's own approximate index, as by default it ships: blocks of 16
    tokens, the first 256 of a prompt, 31,250 for each pod with the least recently used ones
    forgotten; a block counts for a pod that has it even if the pod lacks an earlier one.

    ``filter_saturated`` takes out pods with 5 or more waiting requests, 80% of memory in use or
    metrics older than 200 ms, unless that leaves none. The filter exists and the default profile
    does not use it: there saturation only holds back requests that may be shed.

    Source: llm-d/llm-d-inference-scheduler, default chart.
    """

    name: ClassVar[str] = "llm-d"

    def __init__(
        self,
        *,
        seed: int = 0,
        queue_weight: float = 2.0,
        kv_weight: float = 2.0,
        prefix_weight: float = 3.0,
        own_tree: bool = False,
        max_prefix_blocks: int = 256,
        blocks_per_pod: int = 31_250,
        filter_saturated: bool = False,
        queue_depth_threshold: int = 5,
        kv_utilization_threshold: float = 0.8,
        metrics_stale_after_seconds: float = 0.2,
    ) -> None:
        super().__init__()
        self._random = Random(seed)
        self._weights = queue_weight, kv_weight, prefix_weight
        self._own_tree = own_tree
        self._max_hashes = max_prefix_blocks
        self._index = PrefixIndex(most_tokens=blocks_per_pod * _HASH_TOKENS)
        self._filter = filter_saturated
        self._queue_limit = queue_depth_threshold
        self._kv_limit = kv_utilization_threshold
        self._stale_seconds = metrics_stale_after_seconds

    def choose(self, request: SimRequest, view: FleetView, now: float) -> int:
        """Apply the rule."""
        pods: Sequence[InstanceView] = view.alive
        if self._filter:
            pods = [pod for pod in pods if self._has_room(pod, now)] or pods
        matched = self._matched_shares(request, view)
        queues = [pod.waiting for pod in pods]
        longest, shortest = max(queues), min(queues)
        queue_weight, kv_weight, prefix_weight = self._weights
        best: list[int] = []
        highest = 0.0
        for pod, waiting in zip(pods, queues, strict=True):
            queue = (longest - waiting) / (longest - shortest) if longest > shortest else 1.0
            memory = 1 - pod.used_kv_tokens / pod.profile.kv_capacity_tokens
            prefix = matched.get(pod.index, 0.0)
            score = queue_weight * queue + kv_weight * memory + prefix_weight * prefix
            if not best or score > highest:
                best, highest = [pod.index], score
            elif score == highest:
                best.append(pod.index)
        return best[0] if len(best) == 1 else self._random.choice(best)

    def sent(self, request: SimRequest, instance: int, view: FleetView, now: float) -> None:
        """Put the prompt into the index."""
        if self._own_tree:
            self._index.insert(
                [(block, count * _HASH_TOKENS) for block, count in self._hashes(request)], instance
            )

    def removed(self, instance: int) -> None:
        """Take the pod out of the index."""
        self._index.remove(instance)

    def _matched_shares(self, request: SimRequest, view: FleetView) -> dict[int, float]:
        """The share of the prompt that each pod knows; those that know nothing may be left out."""
        if not self._own_tree:
            cached = view.cached_tokens(request)
            return {each.index: cached[each.index] / request.prompt_tokens for each in view.alive}
        hashes = self._hashes(request)
        total = sum(count for _, count in hashes)
        matched: dict[int, float] = {}
        for block, count in hashes:
            holders = self._index.holders(block)
            if not holders:
                break
            for index in holders:
                matched[index] = matched.get(index, 0.0) + count / total
        return matched

    def _hashes(self, request: SimRequest) -> list[tuple[int, int]]:
        """Each block that is looked at, with the full blocks of 16 tokens in it."""
        left = min(self._max_hashes, request.prompt_tokens // _HASH_TOKENS)
        hashes: list[tuple[int, int]] = []
        for block in request.blocks:
            if left <= 0:
                break
            hashes.append((block, min(left, _HASHES_OF_BLOCK)))
            left -= _HASHES_OF_BLOCK
        return hashes

    def _has_room(self, pod: InstanceView, now: float) -> bool:
        return (
            now - pod.observed_at <= self._stale_seconds
            and pod.waiting < self._queue_limit
            and pod.used_kv_tokens < self._kv_limit * pod.profile.kv_capacity_tokens
        )
