"""Which replicas are looked at: all of a small fleet, sixteen of a large one.

Up to 32 live replicas all are scored. Beyond that the cost of a decision must not grow: where
the conversation was answered last, who got the prefix lately, each pool's ring candidates, and
the least busy.
"""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, Final

from pointsman_serving.routing.holders import prefix_key
from pointsman_serving.routing.types import Prompt, RejectReason, ReplicaKey

if TYPE_CHECKING:
    from collections.abc import Container, Sequence

    from pointsman_serving.routing.pool import PoolState
    from pointsman_serving.routing.replica import ReplicaState
    from pointsman_serving.routing.stickiness import Stay

SCORE_ALL_UP_TO: Final = 32
SCORED_BEYOND: Final = 16

_RING_SHARE: Final = 12


def ring_names(pool: PoolState, prompt: Prompt) -> tuple[str, ...]:
    """A prompt's candidates on the pool's rings: two for its prefix, two for its conversation."""
    of_prefix = pool.ring.candidates(prefix_key(prompt))
    return of_prefix + pool.ring.candidates(prompt.root) if prompt.continues else of_prefix


def rejection(
    replica: ReplicaState, exclude: Container[ReplicaKey], now: float
) -> RejectReason | None:
    """Why a replica cannot be chosen now, if so."""
    if replica.key in exclude:
        return RejectReason.EXCLUDED
    if replica.draining:
        return RejectReason.DRAINING
    if not replica.breaker.allows(now):
        return RejectReason.EJECTED
    if replica.load.in_flight >= replica.most_in_flight:
        return RejectReason.FULL
    if replica.hesitates(now):
        return RejectReason.SILENT
    return None


def likely_keys(
    pool: str, ring: Sequence[str], stay: Stay | None, holders: Sequence[ReplicaKey]
) -> list[str]:
    """Names of a pool's replicas that may hold a prompt: the likeliest first, each once."""
    names = [stay.replica] if stay is not None and stay.pool == pool else []
    names += [key.replica for key in holders if key.pool == pool]
    names += ring
    return list(dict.fromkeys(names))


def select(
    pools: Sequence[PoolState],
    prompt: Prompt,
    *,
    stay: Stay | None,
    holders: Sequence[ReplicaKey],
    also: ReplicaKey | None,
    exclude: Container[ReplicaKey],
    score_all_up_to: int,
    now: float,
) -> Sequence[Sequence[ReplicaState]]:
    """The replicas to look at, by pool.

    Args:
        pools: the pools that may be chosen.
        stay: where the conversation was answered last.
        holders: the replicas that got the prefix lately.
        also: one that is looked at in any case.
    """
    live = 0
    for pool in pools:
        live += len(pool.states)
    if live <= score_all_up_to:
        return [pool.states for pool in pools]
    picked: dict[ReplicaKey, ReplicaState] = {}
    for pool in pools:
        if also is not None:
            _pick(picked, pool.replicas.get(also), exclude, now)
    for pool in pools:
        share = max(1, _RING_SHARE // len(pools))
        names = likely_keys(pool.name, ring_names(pool, prompt), stay, holders)
        for name in names[:share]:
            if len(picked) < SCORED_BEYOND:
                _pick(picked, pool.replicas.get(ReplicaKey(pool.name, name)), exclude, now)
    # Of each pool the first, then the second, and so on: the least busy of all.
    for _, state in heapq.merge(*(pool.lineup.in_order() for pool in pools), key=_level):
        if len(picked) >= SCORED_BEYOND:
            break
        _pick(picked, state, exclude, now)
    if not picked:
        # Nothing is free: full ones say that waiting helps, else the first to be tried again.
        tried = (state for pool in pools for state in pool.states if state.key not in exclude)
        for state in sorted(tried, key=lambda each: (each.breaker.until, each.key))[:SCORED_BEYOND]:
            picked[state.key] = state
    grouped: dict[str, list[ReplicaState]] = {pool.name: [] for pool in pools}
    for state in picked.values():
        grouped[state.key.pool].append(state)
    return [grouped[pool.name] for pool in pools]


def _pick(
    picked: dict[ReplicaKey, ReplicaState],
    state: ReplicaState | None,
    exclude: Container[ReplicaKey],
    now: float,
) -> None:
    if state is not None and rejection(state, exclude, now) is None:
        picked[state.key] = state


def _level(place: tuple[int, ReplicaState]) -> int:
    return place[0]
