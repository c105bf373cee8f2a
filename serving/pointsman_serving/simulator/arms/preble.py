"""Preble's E2 scheduling: exploit a known prefix, or explore by load."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from pointsman_serving.simulator.arm import Failed, Finished, FleetView, InstanceView
from pointsman_serving.simulator.arms.counting import CountingArm
from pointsman_serving.simulator.arms.prefix_index import block_sizes
from pointsman_serving.simulator.estimate import prefill_seconds
from pointsman_serving.simulator.request import BLOCK_TOKENS

if TYPE_CHECKING:
    from pointsman_serving.simulator.request import SimRequest

_FIRST_OUTPUT_TOKENS = 45.0


class Preble(CountingArm):
    """Exploit if more of the prompt is known than not, else explore.

    Exploit: of the instances that hold most of it the cheapest; explore: the cheapest of all.
    Cost = L + M + P. L: with ``load`` "window" the work that the last three minutes sent there,
    the prefill of what was not cached and the decoding of a mean answer; with "pending" only the
    prefill that is not done yet, which serves the rule far better. M: what this prompt would push
    out, as its prefill time as often as the window used it there; nothing while there is room.
    P: the prefill of what the instance lacks of this prompt. If what is to be exploited is on the
    busiest instance and max (L + P) ≥ 1.5 · min, the request goes to the idlest instead. The first
    of equals wins.

    Source: Preble (ICLR 2025). WukLab/preble moves whole subtrees of prompts where the paper
    redirects requests; a shared system prompt would take all of its conversations with it.
    """

    name: ClassVar[str] = "preble"

    def __init__(
        self,
        *,
        seed: int = 0,
        window_seconds: float = 180.0,
        high_load_threshold: float = 1.5,
        load: str = "pending",
        eviction: bool = True,
    ) -> None:
        super().__init__()
        if load not in ("pending", "window"):
            raise ValueError(f"load is {load!r}: give 'pending' or 'window'")
        self._pending = load == "pending"
        self._window_seconds = window_seconds
        self._threshold = high_load_threshold
        self._eviction = eviction
        self._window: deque[tuple[float, int, float, tuple[int, ...]]] = deque()
        self._load_seconds: dict[int, float] = {}
        self._resident: dict[int, _Resident] = {}
        self._outputs = 0
        self._output_tokens = 0

    def choose(self, request: SimRequest, view: FleetView, now: float) -> int:
        """Apply the rule."""
        self._expire(now)
        cached = view.cached_tokens(request)
        matched = max(cached[each.index] for each in view.alive)
        loads = {
            each.index: self._load(each)
            + prefill_seconds(each.profile, request.prompt_tokens, cached[each.index])
            for each in view.alive
        }

        def cost(each: InstanceView) -> float:
            fresh = request.prompt_tokens - cached[each.index]
            return loads[each.index] + self._eviction_seconds(each, fresh)

        if matched <= request.prompt_tokens - matched:
            return min(view.alive, key=cost).index
        holders = [each for each in view.alive if cached[each.index] == matched]
        chosen = min(holders, key=cost).index
        if loads[chosen] == max(loads.values()) >= self._threshold * min(loads.values()):
            return min(loads, key=lambda index: loads[index])
        return chosen

    def sent(self, request: SimRequest, instance: int, view: FleetView, now: float) -> None:
        """Add the work to the instance, and what it will hold."""
        each = view.instances[instance]
        cached = each.cached_tokens(request)
        seconds = prefill_seconds(each.profile, request.prompt_tokens, cached)
        seconds += self._answer_seconds(each, request)
        self._window.append((now, instance, seconds, request.blocks))
        self._load_seconds[instance] = self._load_seconds.get(instance, 0.0) + seconds
        resident = self._resident.setdefault(instance, _Resident())
        resident.use(tuple(block_sizes(request)), each.profile.kv_capacity_tokens)

    def ended(self, event: Finished | Failed, now: float) -> None:
        """Learn how long answers are."""
        if isinstance(event, Finished):
            self._outputs += 1
            self._output_tokens += event.output_tokens

    def removed(self, instance: int) -> None:
        """Nothing is held there any more."""
        self._resident.pop(instance, None)

    def _load(self, each: InstanceView) -> float:
        if self._pending:
            return each.pending_prefill_seconds
        return self._load_seconds.get(each.index, 0.0)

    def _eviction_seconds(self, each: InstanceView, fresh_tokens: int) -> float:
        resident = self._resident.get(each.index)
        if not self._eviction or resident is None:
            return 0.0
        excess = resident.tokens + fresh_tokens - each.profile.kv_capacity_tokens
        if excess <= 0:
            return 0.0
        return prefill_seconds(each.profile, BLOCK_TOKENS, 0) * resident.uses_of_oldest(excess)

    def _answer_seconds(self, each: InstanceView, request: SimRequest) -> float:
        """What decoding a mean answer adds to the iterations that it is part of."""
        profile = each.profile
        output = self._output_tokens / self._outputs if self._outputs else _FIRST_OUTPUT_TOKENS
        context = request.prompt_tokens + output / 2
        return output * (
            profile.decode_sequence_seconds + profile.decode_context_token_seconds * context
        )

    def _expire(self, now: float) -> None:
        while self._window and self._window[0][0] < now - self._window_seconds:
            _, instance, seconds, blocks = self._window.popleft()
            self._load_seconds[instance] -= seconds
            resident = self._resident.get(instance)
            if resident is not None:
                resident.unuse(blocks)


class _Resident:
    """What an instance is believed to hold, and how often the window used each block."""

    def __init__(self) -> None:
        self.tokens = 0
        self._blocks: OrderedDict[int, int] = OrderedDict()
        self._uses: dict[int, int] = {}

    def use(self, sizes: Sequence[tuple[int, int]], capacity_tokens: int) -> None:
        """Note a prompt; of one prompt the end leaves first."""
        for block, tokens in reversed(sizes):
            if block not in self._blocks:
                self._blocks[block] = tokens
                self.tokens += tokens
            self._blocks.move_to_end(block)
            self._uses[block] = self._uses.get(block, 0) + 1
        while self.tokens > capacity_tokens:
            _, tokens = self._blocks.popitem(last=False)
            self.tokens -= tokens

    def unuse(self, blocks: Sequence[int]) -> None:
        """A prompt has left the window."""
        for block in blocks:
            left = self._uses.get(block, 0) - 1
            if left > 0:
                self._uses[block] = left
            else:
                self._uses.pop(block, None)

    def uses_of_oldest(self, tokens: int) -> int:
        """How often the window used the blocks that make room for so many tokens."""
        uses = 0
        for block, size in self._blocks.items():
            if tokens <= 0:
                break
            tokens -= size
            uses += self._uses.get(block, 0)
        return uses
