"""DualMap: two candidates for each prefix, and migration out of hot spots."""

from __future__ import annotations

from collections.abc import Sequence
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
    InstanceView,
    Migrate,
    Reject,
)
from pointsman_serving.simulator.arms.hash_ring import HashRing
from pointsman_serving.simulator.arms.hotness import HotnessTree
from pointsman_serving.simulator.estimate import (
    iteration_seconds,
    iterations,
    prefill_seconds,
    ttft_seconds,
    wait_seconds,
)

if TYPE_CHECKING:
    from pointsman_serving.simulator.request import SimRequest


class DualMap(Arm):
    """Affinity within two candidates, least TTFT where affinity would break the SLO.

    The key of a prompt (its length from a hotness tree) has one candidate on each of two hash
    rings; equal ones: the second is the next instance. Equal hits: fewer pending prefill tokens.
    Else the larger hit, if what pends there is cleared within ``affinity_share`` of the TTFT SLO;
    else the smaller estimated TTFT. The first of equals wins.

    Where both are overloaded then, each of their queues is relieved: a waiting request r gains
    B = TTFT(r, here) − TTFT(r, there) from its other candidate, or from the next instance where
    that one is overloaded too; those with B > 0 and TTFT(r, there) < SLO move, most gain first,
    until what is left meets the SLO.

    Source: DualMap (arXiv 2602.06502); the rings' points and the neighbour from its repository
    (A-zhudong/DualMap), whose start script sets ``affinity_share`` to one half.
    """

    name: ClassVar[str] = "dualmap"

    def __init__(
        self,
        *,
        seed: int = 0,
        ttft_slo_seconds: float = 5.0,
        affinity_share: float = 1.0,
        base_blocks: int = 2,
        window_seconds: float = 30.0,
        ring_points: int = 160,
        rebalance: bool = True,
    ) -> None:
        self._slo_seconds = ttft_slo_seconds
        self._affinity_seconds = ttft_slo_seconds * affinity_share
        self._hotness = HotnessTree(base_blocks=base_blocks, window_seconds=window_seconds)
        self._first_ring = HashRing(points=ring_points, salt=2 * seed)
        self._second_ring = HashRing(points=ring_points, salt=2 * seed + 1)
        self._rebalance = rebalance
        self._pairs: dict[str, tuple[int, int]] = {}

    def arrive(self, request: SimRequest, view: FleetView, now: float) -> Sequence[Action]:
        """Choose between the candidates, and relieve both where they are overloaded."""
        if not view.alive:
            return (Reject(request),)
        pair = self._candidates(request, view, now)
        self._pairs[request.request_id] = pair
        first, second = (view.instances[index] for index in pair)
        cached = view.cached_tokens(request)
        chosen = self._choose(request, first, second, cached)
        if self._rebalance and pair[0] != pair[1]:
            loads = {each.index: _Load(each) for each in view.alive}
            own = loads[chosen].of(request, cached[chosen])
            other = pair[1] if chosen == pair[0] else pair[0]
            if (
                loads[chosen].ttft_seconds(own) > self._slo_seconds
                and loads[other].ttft_seconds() > self._slo_seconds
            ):
                return self._relieve(request, chosen, other, view, loads)
        return (Dispatch(request, chosen),)

    def event(self, event: Event, view: FleetView, now: float) -> Sequence[Action]:
        """Forget the candidates of what no longer waits."""
        if isinstance(event, FirstToken | Finished | Failed):
            self._pairs.pop(event.request.request_id, None)
        return ()

    def _candidates(self, request: SimRequest, view: FleetView, now: float) -> tuple[int, int]:
        members = [each.index for each in view.alive]
        self._first_ring.set_members(members)
        self._second_ring.set_members(members)
        depth = self._hotness.key_blocks(request.blocks, len(members), now)
        key = f"block {request.blocks[depth - 1]}" if depth else f"request {request.request_id}"
        first, second = self._first_ring.owner(key), self._second_ring.owner(key)
        return first, _next(members, first) if first == second else second

    def _choose(
        self,
        request: SimRequest,
        first: InstanceView,
        second: InstanceView,
        cached: Sequence[int],
    ) -> int:
        hits = cached[first.index], cached[second.index]
        if hits[0] == hits[1]:
            return min((first, second), key=lambda each: each.pending_prefill_tokens).index
        near = first if hits[0] > hits[1] else second
        if wait_seconds(near) <= self._affinity_seconds:
            return near.index
        return min(
            (first, second),
            key=lambda each: ttft_seconds(each, request.prompt_tokens, cached[each.index]),
        ).index

    def _relieve(
        self,
        request: SimRequest,
        chosen: int,
        other: int,
        view: FleetView,
        loads: dict[int, _Load],
    ) -> Sequence[Action]:
        target_of_new = chosen
        actions: list[Action] = []
        if min(load.ttft_seconds() for load in loads.values()) >= self._slo_seconds:
            return (Dispatch(request, chosen),)  # nowhere to go: a long queue is not walked
        for source in (chosen, other):
            queue = list(view.instances[source].queued())
            if source == chosen:
                queue.append(request)
                loads[source].add(loads[source].of(request, view.cached_tokens(request)[source]))
            for moved, target in self._moves(queue, source, view, loads):
                if moved is request:
                    target_of_new = target
                else:
                    actions.append(Migrate(moved.request_id, target))
        return [Dispatch(request, target_of_new), *actions]

    def _moves(
        self,
        queue: Sequence[SimRequest],
        source: int,
        view: FleetView,
        loads: dict[int, _Load],
    ) -> list[tuple[SimRequest, int]]:
        """Which requests of a queue go where; the loads are kept up to date."""
        here = loads[source]
        cached = [view.cached_tokens(each) for each in queue]
        works = [here.of(each, hits[source]) for each, hits in zip(queue, cached, strict=True)]
        ahead = _Work(
            here.seconds - sum(work.seconds for work in works),
            here.tokens - sum(work.tokens for work in works),
        )
        gains: list[tuple[float, int, int]] = []
        for position, (each, hits, work) in enumerate(zip(queue, cached, works, strict=True)):
            ahead = _Work(ahead.seconds + work.seconds, ahead.tokens + work.tokens)
            target = self._target(each, source, hits, view, loads)
            if target is not None:
                there = loads[target].ttft_seconds(loads[target].of(each, hits[target]))
                gain = here.time_of(ahead) - there
                if gain > 0:
                    gains.append((-gain, position, target))
        moves: list[tuple[SimRequest, int]] = []
        for _, position, target in sorted(gains):
            if here.ttft_seconds() <= self._slo_seconds:
                break
            work = loads[target].of(queue[position], cached[position][target])
            if loads[target].ttft_seconds(work) < self._slo_seconds:
                loads[target].add(work)
                here.take(works[position])
                moves.append((queue[position], target))
        return moves

    def _target(
        self,
        request: SimRequest,
        source: int,
        cached: Sequence[int],
        view: FleetView,
        loads: dict[int, _Load],
    ) -> int | None:
        """Where a waiting request could go: its other candidate, else the next instance."""
        members = [each.index for each in view.alive]
        pair = self._pairs.get(request.request_id, (source, source))
        other = pair[1] if pair[0] == source else pair[0]
        tried = _next(members, source)
        for target in (other, tried if tried != other else _next(members, other)):
            if target != source and target in loads:
                load = loads[target]
                if load.ttft_seconds(load.of(request, cached[target])) < self._slo_seconds:
                    return target
        return None


def _next(members: Sequence[int], index: int) -> int:
    """The member after an index, by number."""
    return next((each for each in members if each > index), members[0])


class _Work:
    """Prompt tokens to compute and the time that takes alone."""

    __slots__ = ("seconds", "tokens")

    def __init__(self, seconds: float, tokens: int) -> None:
        self.seconds = max(0.0, seconds)
        self.tokens = max(0, tokens)


class _Load:
    """What an instance has to prefill, as moves change it."""

    __slots__ = ("_iteration_seconds", "_profile", "seconds", "tokens")

    def __init__(self, instance: InstanceView) -> None:
        self._profile = instance.profile
        self._iteration_seconds = iteration_seconds(instance)
        self.seconds = instance.pending_prefill_seconds
        self.tokens = instance.pending_prefill_tokens

    def of(self, request: SimRequest, cached_tokens: int) -> _Work:
        """The work that a request brings."""
        prompt = request.prompt_tokens
        return _Work(prefill_seconds(self._profile, prompt, cached_tokens), prompt - cached_tokens)

    def add(self, work: _Work) -> None:
        self.seconds += work.seconds
        self.tokens += work.tokens

    def take(self, work: _Work) -> None:
        self.seconds -= work.seconds
        self.tokens -= work.tokens

    def ttft_seconds(self, more: _Work | None = None) -> float:
        """Time until all there is and more is computed."""
        if more is None:
            return self.time_of(_Work(self.seconds, self.tokens))
        return self.time_of(_Work(self.seconds + more.seconds, self.tokens + more.tokens))

    def time_of(self, work: _Work) -> float:
        """Time that some of the work here takes beside what decodes."""
        return work.seconds + iterations(self._profile, work.tokens) * self._iteration_seconds
