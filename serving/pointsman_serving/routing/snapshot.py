"""What is counted and what was learned, as plain values for metrics and for people."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pointsman_serving.routing.breaker import BreakerState
    from pointsman_serving.routing.pool import PoolState
    from pointsman_serving.routing.replica import ReplicaState
    from pointsman_serving.routing.types import ReplicaAddress, ReplicaKey


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaSnapshot:
    """One replica, listed or draining."""

    key: ReplicaKey
    address: ReplicaAddress
    draining: bool
    breaker: BreakerState
    slots: int
    most_in_flight: int
    """Requests that it may hold now; fewer than its slots while it starts slowly."""
    in_flight: int
    decoding: int
    pending_prefill_tokens: float
    cached_blocks: int
    cache_capacity_bytes: int
    """How many bytes of prompts the engine is thought to hold."""
    predicted_cached_tokens: float
    """Sum over the answers whose engine counted cached tokens."""
    actual_cached_tokens: float
    """What the engine counted for the same answers."""
    cache_confidence: float
    """Actual over predicted, lately; 1 where nothing was learned."""
    prefill_factor: float
    """Learned time to first token against the pool's; 1 is the pool's own."""
    decode_factor: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSnapshot:
    """What a pool's replicas have in common."""

    name: str
    replicas: tuple[ReplicaSnapshot, ...]
    ejections: int
    """How often a replica was taken out after failures."""
    restarts: int
    """How often another engine answered under the name of a replica."""
    prefill_base_seconds: float
    prefill_seconds_per_token: float
    step_seconds: float
    step_seconds_per_sequence: float
    tokens_per_byte: float
    output_tokens: float
    """Expected length of an answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerSnapshot:
    """Everything."""

    pools: tuple[PoolSnapshot, ...]
    conversations: int
    """How many conversations have a pool to stay with."""


def snapshot_of(pools: Iterable[PoolState], *, conversations: int) -> SchedulerSnapshot:
    """Read the state; changes nothing."""
    return SchedulerSnapshot(pools=tuple(map(_pool, pools)), conversations=conversations)


def _pool(pool: PoolState) -> PoolSnapshot:
    base, per_token = pool.latency.prefill
    step, per_sequence = pool.latency.decode
    draining = tuple(state for state in pool.draining if state.load.in_flight)
    return PoolSnapshot(
        name=pool.name,
        replicas=tuple(map(_replica, (*pool.states, *draining))),
        ejections=pool.ejections,
        restarts=pool.restarts,
        prefill_base_seconds=base,
        prefill_seconds_per_token=per_token,
        step_seconds=step,
        step_seconds_per_sequence=per_sequence,
        tokens_per_byte=pool.tokens.prompt[1],
        output_tokens=pool.tokens.output_tokens(None),
    )


def _replica(state: ReplicaState) -> ReplicaSnapshot:
    return ReplicaSnapshot(
        key=state.key,
        address=state.address,
        draining=state.draining,
        breaker=state.breaker.state,
        slots=state.slots,
        most_in_flight=state.most_in_flight,
        in_flight=state.load.in_flight,
        decoding=state.load.decoding,
        pending_prefill_tokens=state.load.pending_tokens,
        cached_blocks=len(state.cache),
        cache_capacity_bytes=state.cache.capacity_bytes,
        predicted_cached_tokens=state.cache.predicted_tokens,
        actual_cached_tokens=state.cache.actual_tokens,
        cache_confidence=state.cache.confidence,
        prefill_factor=state.latency.prefill_factor.learned,
        decode_factor=state.latency.decode_factor.learned,
    )
