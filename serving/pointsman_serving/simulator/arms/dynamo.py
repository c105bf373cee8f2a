"""NVIDIA Dynamo's KV router."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from random import Random
from typing import TYPE_CHECKING, ClassVar

from pointsman_serving.simulator.arm import (
    Action,
    Arm,
    Dispatch,
    Event,
    Failed,
    Finished,
    FirstToken,
    FleetView,
    InstanceAdded,
    Reject,
)
from pointsman_serving.simulator.arms.prefix_index import block_sizes

if TYPE_CHECKING:
    from pointsman_serving.simulator.request import SimRequest


class Dynamo(Arm):
    """argmin scale · max(0, prefill blocks − credit · cached blocks) + decode blocks.

    Prefill blocks: the prompt, and what the router sent that has no first token yet, without what
    was cached of it. Decode blocks: the prompt blocks of all requests that the router has on the
    worker, this one among them, shared ones counted once. Cached blocks: as the workers' events
    say. Blocks have the engine's size. Any of equals; with a temperature the worker is drawn with
    probability exp(−cost / (temperature · (max − min))).

    Where every worker has more than ``queue_threshold`` times its token budget to prefill,
    requests wait in the router, first come first served.

    Source: ai-dynamo/dynamo, ``lib/kv-router/src/scheduling``.
    """

    name: ClassVar[str] = "dynamo"

    def __init__(
        self,
        *,
        seed: int = 0,
        overlap_score_credit: float = 1.0,
        prefill_load_scale: float = 1.0,
        router_temperature: float = 0.0,
        queue_threshold: float | None = 16.0,
    ) -> None:
        self._random = Random(seed)
        self._credit = overlap_score_credit
        self._scale = prefill_load_scale
        self._temperature = router_temperature
        self._queue_threshold = queue_threshold
        self._queue: deque[SimRequest] = deque()
        self._prefill_tokens: dict[int, int] = {}
        self._prefilling: dict[str, int] = {}
        self._decode_tokens: dict[int, int] = {}
        self._active: dict[int, dict[int, int]] = {}

    def arrive(self, request: SimRequest, view: FleetView, now: float) -> Sequence[Action]:
        """Send the request on, or keep it while all workers are busy."""
        if not view.alive:
            return (Reject(request),)
        self._queue.append(request)
        return self._drain(view)

    def event(self, event: Event, view: FleetView, now: float) -> Sequence[Action]:
        """Take off what is done, and send on what waited for it."""
        if isinstance(event, FirstToken):
            self._prefilled(event.request, event.instance)
        elif isinstance(event, Finished | Failed):
            self._prefilled(event.request, event.instance)
            self._release(event.request, event.instance)
        elif not isinstance(event, InstanceAdded):
            return ()
        return self._drain(view) if self._queue else ()

    def _drain(self, view: FleetView) -> Sequence[Action]:
        actions: list[Action] = []
        while self._queue and view.alive and not self._all_busy(view):
            request = self._queue.popleft()
            actions.append(Dispatch(request, self._assign(request, view)))
        return actions

    def _all_busy(self, view: FleetView) -> bool:
        threshold = self._queue_threshold
        return threshold is not None and all(
            self._prefill_tokens.get(each.index, 0) > threshold * each.profile.max_batched_tokens
            for each in view.alive
        )

    def _assign(self, request: SimRequest, view: FleetView) -> int:
        cached = view.cached_tokens(request)
        costs = [
            (self._cost(request, each.index, cached[each.index], each.profile.block_tokens), each)
            for each in view.alive
        ]
        lowest = min(cost for cost, _ in costs)
        if self._temperature:
            spread = (max(cost for cost, _ in costs) - lowest) * self._temperature or 1.0
            weights = [math.exp((lowest - cost) / spread) for cost, _ in costs]
            chosen = self._random.choices([each for _, each in costs], weights)[0]
        else:
            equals = [each for cost, each in costs if cost == lowest]
            chosen = equals[0] if len(equals) == 1 else self._random.choice(equals)
        index = chosen.index
        tokens = request.prompt_tokens - cached[index]
        self._prefilling[request.request_id] = tokens
        self._prefill_tokens[index] = self._prefill_tokens.get(index, 0) + tokens
        active = self._active.setdefault(index, {})
        fresh = 0
        for block, size in block_sizes(request):
            references = active.get(block, 0)
            fresh += 0 if references else size
            active[block] = references + 1
        self._decode_tokens[index] = self._decode_tokens.get(index, 0) + fresh + _unshared(request)
        return index

    def _cost(self, request: SimRequest, index: int, cached: int, block_tokens: int) -> float:
        prefill = self._prefill_tokens.get(index, 0) + request.prompt_tokens
        active = self._active.get(index, {})
        shared = 0
        for block, size in block_sizes(request):
            if block not in active:
                break
            shared += size
        decode = self._decode_tokens.get(index, 0) + request.prompt_tokens - shared
        adjusted = max(0.0, prefill / block_tokens - self._credit * cached / block_tokens)
        return self._scale * adjusted + decode / block_tokens

    def _prefilled(self, request: SimRequest, instance: int) -> None:
        tokens = self._prefilling.pop(request.request_id, 0)
        if tokens:
            self._prefill_tokens[instance] -= tokens

    def _release(self, request: SimRequest, instance: int) -> None:
        active = self._active[instance]
        freed = 0
        for block, size in block_sizes(request):
            active[block] -= 1
            if not active[block]:
                del active[block]
                freed += size
        self._decode_tokens[instance] -= freed + _unshared(request)


def _unshared(request: SimRequest) -> int:
    """Tokens of a prompt that no block names."""
    return request.prompt_tokens - sum(size for _, size in block_sizes(request))
