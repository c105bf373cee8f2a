"""Which replicas are looked at: all of a small fleet, sixteen of a large one.

Up to 32 live replicas all are scored. Beyond that the cost of a decision must not grow: where
the conversation was answered last, who got the prefix lately, each pool's ring candidates, and
the least loaded of a sample.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from xxhash import xxh3_64_intdigest

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
_SAMPLE: Final = 16


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


def select(
    pools: Sequence[PoolState],
    rings: Sequence[tuple[str, ...]],
    *,
    stay: Stay | None,
    holders: Sequence[ReplicaKey],
    exclude: Container[ReplicaKey],
    request_id: str,
    seed: int,
    now: float,
) -> Sequence[Sequence[ReplicaState]]:
    """The replicas to look at, by pool.

    Args:
        pools: the pools that may be chosen, and for each the names that its rings propose.
        stay: where the conversation was answered last.
        holders: the replicas that got the prefix lately.
        request_id, seed: decide which replicas the sample holds.
    """
    live = 0
    for pool in pools:
        live += len(pool.states)
    if live <= SCORE_ALL_UP_TO:
        return [pool.states for pool in pools]
    picked: dict[ReplicaKey, ReplicaState] = {}
    for pool, names in zip(pools, rings, strict=True):
        share = max(1, _RING_SHARE // len(pools))
        known = [ReplicaKey(stay.pool, stay.replica)] if stay is not None else []
        known += holders
        likely = [key for key in known if key.pool == pool.name]
        likely += [ReplicaKey(pool.name, name) for name in names]
        for key in likely[:share]:
            _pick(picked, pool.replicas.get(key), exclude, now)
            if len(picked) >= SCORED_BEYOND:
                break
    sample: dict[ReplicaKey, ReplicaState] = {}
    draw = xxh3_64_intdigest(request_id.encode("utf-8", "surrogatepass"), seed)
    for _ in range(_SAMPLE):
        draw = (draw * 6364136223846793005 + 1442695040888963407) & 0xFFFFFFFFFFFFFFFF
        _pick(sample, _nth(pools, (draw >> 33) % live), exclude, now)
    if not picked and not sample:
        for pool in pools:
            for state in pool.states:
                _pick(sample, state, exclude, now)
    for state in sorted(sample.values(), key=_load):
        if len(picked) >= SCORED_BEYOND:
            break
        picked.setdefault(state.key, state)
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


def _nth(pools: Sequence[PoolState], index: int) -> ReplicaState | None:
    for pool in pools:
        if index < len(pool.states):
            return pool.states[index]
        index -= len(pool.states)
    return None


def _load(state: ReplicaState) -> tuple[float, float, ReplicaKey]:
    load = state.load
    return load.in_flight / state.slots, load.pending_tokens, state.key
