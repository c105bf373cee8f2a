"""Which candidates may be the best: found without looking at all, so that only these are scored.

A bound on a replica's utility is what ``objective.PoolTerms.score`` would say, up to rounding, if
it were as most are: it answers, nobody else uses it, it is as fast as its pool, has a free slot,
nothing to compute before this request, and no part of the prompt. The lineup of each pool is
walked along while the bound comes near the best so far, and only then the rest is asked.
Replicas that can be better than their bound are looked at one by one: the ring's candidates, and
in a pool that may hold the prompt, or has some that are faster than others, all of them.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING, Final

from pointsman_serving.routing.breaker import BreakerState
from pointsman_serving.routing.candidates import likely_keys, rejection, ring_names
from pointsman_serving.routing.objective import (
    EVENNESS,
    MOST_EVENNESS_TOKENS,
    PREFILL_TOLL,
    RING_TOKENS,
    PoolTerms,
)
from pointsman_serving.routing.replica import HOUR_SECONDS, faded
from pointsman_serving.routing.types import Api

if TYPE_CHECKING:
    from collections.abc import Container, Sequence

    from pointsman_serving.routing.objective import Scored
    from pointsman_serving.routing.plan import RulePlan
    from pointsman_serving.routing.pool import PoolState
    from pointsman_serving.routing.replica import ReplicaState
    from pointsman_serving.routing.stickiness import Stay
    from pointsman_serving.routing.types import ReplicaKey, RouteRequest

_CLOSED: Final = BreakerState.CLOSED
_FOREVER: Final = float("inf")
_SILENT_SECONDS: Final = 1.0
# Far above what rounding can make of the terms, far below what a person could tell apart.
_ROUNDING: Final = 1e-12
_TOLL: Final = 1.0 + PREFILL_TOLL
# Of a large fleet: those behind them have as much to do, and were sent more lately.
_LOOKED_AT_BY_LEVEL: Final = 4


class Shortlist:
    """The search for the best candidate of one request.

    Args:
        fresh, ttft_seconds_left: as for ``PoolTerms``.
    """

    __slots__ = (
        "_answers",
        "_best",
        "_exclude",
        "_fade",
        "_fresh",
        "_hour",
        "_least_near",
        "_near",
        "_now",
        "_plan",
        "_request",
        "_ttft_seconds_left",
    )

    def __init__(
        self,
        plan: RulePlan,
        request: RouteRequest,
        *,
        fresh: bool,
        exclude: Container[ReplicaKey],
        ttft_seconds_left: float,
        now: float,
    ) -> None:
        self._plan = plan
        self._request = request
        self._fresh = fresh
        self._exclude = exclude
        self._ttft_seconds_left = ttft_seconds_left
        self._now = now
        self._answers = request.api is not Api.EMBEDDINGS
        self._hour = hour = int(now // HOUR_SECONDS)
        self._fade = faded(hour, now) * EVENNESS if fresh else 0.0
        self._best = self._least_near = -_FOREVER
        self._near: list[tuple[float, PoolBound, ReplicaState]] = []

    def find(
        self,
        pools: Sequence[PoolState],
        qualities: Sequence[float],
        *,
        every: bool,
        stay: Stay | None,
        holders: Sequence[ReplicaKey],
    ) -> list[Scored]:
        """Score those whose utility is the highest; empty where nobody can be chosen.

        Args:
            pools: that may answer, and their qualities.
            every: look at all who may be better than their bound; False: at those that are
                likely to be.
            stay, holders: who is likely to hold the prompt.
        """
        prompt = self._request.prompt
        hashes = prompt.blocks.hashes
        total_bytes = prompt.total_bytes
        asked = self._request.max_output_tokens
        answers = self._answers
        per_second = self._plan.quality_per_second
        per_dollar = self._plan.quality_per_dollar
        bounds = []
        for index, pool in enumerate(pools):
            levels = pool.lineup.levels
            if not levels:
                continue
            (
                overhead,
                tokens_per_byte,
                output,
                base,
                seconds_per_token,
                step,
                seconds_per_sequence,
                input_dollars,
                cached_dollars,
                output_dollars,
            ) = pool.rates or pool.find_rates()
            tokens = overhead + tokens_per_byte * total_bytes
            if tokens < 1.0:
                tokens = 1.0
            if not answers:
                output = steps = 0.0
            else:
                if asked is not None and asked < output:
                    output = max(1.0, asked)
                steps = output - 1.0
            per_ahead = per_second * seconds_per_token
            per_token = _TOLL * per_ahead
            per_request = per_second * seconds_per_sequence * (steps + output)
            top = (
                qualities[index]
                - per_second * (base + steps * (step + seconds_per_sequence))
                - per_token * tokens
                - per_dollar * (input_dollars * tokens + output_dollars * output)
            )
            held = bool(hashes) and hashes[0] in pool.firsts
            gain = 0.0
            if held:
                gain = per_token + per_dollar * (input_dollars - cached_dollars)
                most = top + gain * tokens if gain > 0.0 else top
            else:
                most = top - levels[0] * per_request
            if pool.latency.unusual or pool.chains.block_tokens:
                most = _FOREVER
            bounds.append(
                (
                    most,
                    -index,
                    top,
                    per_request,
                    per_token,
                    per_ahead,
                    gain,
                    tokens_per_byte,
                    tokens,
                )
            )
        if len(bounds) > 1:
            bounds.sort(reverse=True)
        for values in bounds:
            if values[0] < self._least_near:
                break
            index = -values[1]
            pool = pools[index]
            bound = self._bound(pool, qualities[index], values)
            if every and values[0] == _FOREVER:
                for state in pool.states:
                    self._look_at(bound, state)
                continue
            names: Sequence[str] = bound.ring
            if not every:
                names = likely_keys(pool.name, names, stay, holders)
            for name in names:
                found = pool.named.get(name)
                if found is not None:
                    self._look_at(bound, found)
            if every and bound.gain:
                self._look_at_holders(bound)
                continue
            self._walk(bound, every=every)
        least = self._least_near
        near = [each for each in self._near if each[0] >= least]
        return [self._terms(bound).score(state) for _, bound, state in near]

    def _bound(
        self,
        pool: PoolState,
        quality: float,
        values: tuple[float, int, float, float, float, float, float, float, float],
    ) -> PoolBound:
        if pool.even_hour != self._hour:
            pool.set_even_hour(self._hour)
        bound = PoolBound()
        bound.pool = pool
        bound.quality = quality
        (
            _,
            _,
            bound.top,
            bound.per_request,
            bound.per_token,
            bound.per_ahead,
            bound.gain,
            bound.tokens_per_byte,
            bound.prompt_tokens,
        ) = values
        bound.seconds_per_token = bound.per_ahead / self._plan.quality_per_second
        bound.ring = ring_names(pool, self._request.prompt)
        least = pool.least_even
        bound.least_even = pool.find_least_even() if least is None else least
        bound.per_even = bound.per_token * self._fade
        return bound

    def _look_at_holders(self, bound: PoolBound) -> None:
        """Look at those of a pool who hold so much of the prompt that they may be near.

        The ring's candidates have been looked at.
        """
        pool = bound.pool
        states: Sequence[ReplicaState] = pool.states
        idle = bound.top - pool.lineup.levels[0] * bound.per_request
        lacking = self._least_near - idle
        if lacking > 0.0:
            blocks = self._request.prompt.blocks
            worth = bound.gain * bound.tokens_per_byte
            if worth <= 0.0:
                return
            count = len(blocks.hashes)
            wanted = bisect_left(blocks.ends, lacking / worth, 0, count)
            if wanted == count:
                return
            block = blocks.hashes[wanted]
            states = [state for state in states if state.cache.holds(block)]
        for state in states:
            if state.name not in bound.ring:
                self._look_at(bound, state)

    def _walk(self, bound: PoolBound, *, every: bool) -> None:
        """Look at the replicas of a pool that is not known to hold anything, the best first.

        Args:
            every: also at all that are as good as the best; False: at a few of each level.
        """
        lineup = bound.pool.lineup
        ring = bound.ring
        top = bound.top - bound.per_token * RING_TOKENS
        per_request = bound.per_request
        per_even = bound.per_even
        least_even = bound.least_even
        most_even = bound.per_token * MOST_EVENNESS_TOKENS if self._fresh else 0.0
        for level in lineup.levels:
            of_level = top - level * per_request
            if of_level < self._least_near:
                return
            looked_at = 0
            for even, name, state in lineup.states[level]:
                unevenness = (even - least_even) * per_even
                if unevenness > most_even:
                    unevenness = most_even
                utility = of_level - unevenness
                if utility < self._least_near or (not every and utility <= self._best):
                    break
                if name not in ring and self._look_at(bound, state):
                    looked_at += 1
                    if looked_at == _LOOKED_AT_BY_LEVEL and not every:
                        break

    def _look_at(self, bound: PoolBound, state: ReplicaState) -> bool:
        """Reckon with a replica if it can be chosen; True if it can."""
        now = self._now
        load = state.load
        in_flight = load.in_flight
        utility = bound.top - in_flight * bound.per_request
        if self._fresh:
            unevenness = (state.even_tokens - bound.least_even) * bound.per_even
            most = bound.per_token * MOST_EVENNESS_TOKENS
            if unevenness > most:
                unevenness = most
            utility -= unevenness
        if state.name not in bound.ring:
            utility -= bound.per_token * RING_TOKENS
        pool = bound.pool
        if (
            in_flight >= state.slots
            or in_flight >= state.most_in_flight
            or load.reported
            or not state.latency.usual
            or state.draining
            or state.breaker.state is not _CLOSED
            or (load.streaming and 0.0 < load.heard_at < now - _SILENT_SECONDS)
            or (self._exclude and state.key in self._exclude)
            or pool.chains.block_tokens
        ):
            if rejection(state, self._exclude, now) is not None:
                return False
            utility = self._terms(bound).score(state).utility
        else:
            if load.pending_tokens:
                utility -= bound.per_ahead * load.pending_ahead(now, bound.seconds_per_token)
            if bound.gain:
                blocks = self._request.prompt.blocks
                cache = state.cache
                per_byte = bound.tokens_per_byte * cache.confidence
                lacking = self._least_near - utility
                if lacking > 0.0:
                    # Whoever holds less of the prompt than makes up for this is not near.
                    worth = bound.gain * per_byte
                    if worth <= 0.0:
                        return True
                    hashes = blocks.hashes
                    wanted = bisect_left(blocks.ends, lacking / worth, 0, len(hashes))
                    if wanted == len(hashes) or not cache.holds(hashes[wanted]):
                        return True
                cached = cache.cached_bytes(blocks) * per_byte
                if cached > bound.prompt_tokens - 1.0:
                    cached = bound.prompt_tokens - 1.0
                utility += bound.gain * cached
        if utility >= self._least_near:
            self._near.append((utility, bound, state))
            if utility > self._best:
                self._best = utility
                self._least_near = utility - _ROUNDING * (1.0 + abs(utility))
        return True

    def _terms(self, bound: PoolBound) -> PoolTerms:
        terms = bound.terms
        if terms is None:
            tpot_seconds = self._plan.tpot_seconds
            terms = bound.terms = PoolTerms(
                pool=bound.pool,
                request=self._request,
                quality=bound.quality,
                objective=self._plan.rule.strategy.objective,
                ring=bound.ring,
                fresh=self._fresh,
                least_assigned_tokens=bound.pool.least_assigned_tokens(self._now),
                answers=self._answers,
                ttft_slo_seconds=self._ttft_seconds_left,
                tpot_slo_seconds=_FOREVER if tpot_seconds is None else tpot_seconds,
                now=self._now,
            )
        return terms


class PoolBound:
    """What the bounds of one pool's replicas have in common."""

    __slots__ = (
        "gain",
        "least_even",
        "per_ahead",
        "per_even",
        "per_request",
        "per_token",
        "pool",
        "prompt_tokens",
        "quality",
        "ring",
        "seconds_per_token",
        "terms",
        "tokens_per_byte",
        "top",
    )

    pool: PoolState
    quality: float
    ring: tuple[str, ...]
    top: float
    """The utility of a replica without any work, and all of the prompt to compute."""
    per_request: float
    """What each request in flight takes off, as does each token ahead of the prompt, and each of
    the prompt."""
    per_ahead: float
    per_token: float
    per_even: float
    least_even: float
    gain: float
    """What each cached token adds; 0 where no replica holds any."""
    tokens_per_byte: float
    prompt_tokens: float
    seconds_per_token: float
    terms: PoolTerms | None

    def __init__(self) -> None:
        self.terms = None
