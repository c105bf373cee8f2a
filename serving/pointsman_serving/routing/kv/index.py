"""What engines tell of their prefix caches, and which tokens prompts are: fed from outside.

Optional: where nothing is told, or no longer, the scheduler goes by its estimate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pointsman_serving.routing.kv.held import MAX_BLOCKS_PER_REPLICA, HeldBlocks
from pointsman_serving.routing.kv.token_blocks import token_blocks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from pointsman_serving.routing.kv.events import KvEvent
    from pointsman_serving.routing.pool import PoolState
    from pointsman_serving.routing.replica import ReplicaState
    from pointsman_serving.routing.types import Prompt, ReplicaKey

_BLOCKS_IN_ALL: Final = 1_000_000
_FEWEST_BLOCKS: Final = 1_024


@dataclass(frozen=True, slots=True, kw_only=True)
class KvSnapshot:
    """What is known of one pool."""

    pool: str
    held_blocks: Mapping[str, int]
    """By replica, of those that are heard."""
    distrusted: int
    """Replicas whose counts contradicted again and again what they told."""
    exact_predictions: int
    exact_error_tokens: float
    estimated_predictions: int
    estimated_error_tokens: float


class KvIndex:
    """The knowledge that comes from the engines' own events.

    Args:
        pools: the scheduler's pools now.
    """

    __slots__ = ("_pools",)

    def __init__(self, pools: Callable[[], Mapping[str, PoolState]]) -> None:
        self._pools = pools

    def started(self, key: ReplicaKey, *, complete: bool) -> None:
        """A replica's events are heard from here on; what was known of it is void.

        Args:
            complete: they begin with the engine's start, so that what was not told is not there.
        """
        replica = self._find(key)
        if replica is None:
            return
        replica.cache.held = HeldBlocks(complete=complete)
        told = [
            state.cache.held
            for each in self._pools().values()
            for state in (*each.states, *each.draining)
            if state.cache.held is not None
        ]
        share = max(_FEWEST_BLOCKS, _BLOCKS_IN_ALL // max(1, len(told)))
        for held in told:
            held.max_blocks = min(MAX_BLOCKS_PER_REPLICA, share)

    def caught_up(self, key: ReplicaKey) -> None:
        """All that a replica has told so far is here: the scheduler may go by it."""
        held = self._held(key)
        if held is not None:
            held.live = True

    def apply(self, key: ReplicaKey, events: Iterable[KvEvent]) -> None:
        """Take a replica's next events; those of a replica that is not heard are dropped."""
        held = self._held(key)
        if held is not None:
            held.apply(events)

    def stopped(self, key: ReplicaKey) -> None:
        """A replica's events are heard no more: from here on it is estimated."""
        replica = self._find(key)
        if replica is not None:
            replica.cache.held = None

    def learn(self, pool: str, prompt: Prompt, token_ids: Sequence[int], *, salt: str) -> None:
        """Take the tokens of a prompt, or of a prompt with its answer.

        Args:
            prompt: the hashes of the same text.
            salt: the cache salt that the engine got with it; empty: none.

        Raises:
            OverflowError: an id is negative or too large for 32 bits.
            TypeError: an id is no integer.
        """
        state = self._pools().get(pool)
        size = 0 if state is None else _block_tokens(state)
        if state is None or not size:
            return
        state.chains.learn(
            prompt,
            token_blocks(token_ids, block_tokens=size, salt=salt),
            tokens=len(token_ids),
            block_tokens=size,
        )

    def _find(self, key: ReplicaKey) -> ReplicaState | None:
        pool = self._pools().get(key.pool)
        return None if pool is None else pool.find(key)

    def _held(self, key: ReplicaKey) -> HeldBlocks | None:
        replica = self._find(key)
        return None if replica is None else replica.cache.held

    def snapshot(self) -> tuple[KvSnapshot, ...]:
        """Of every pool."""
        return tuple(
            KvSnapshot(
                pool=name,
                held_blocks={
                    state.key.replica: len(state.cache.held)
                    for state in pool.states
                    if state.cache.held is not None
                },
                distrusted=sum(
                    state.cache.held is not None and not state.cache.held.trusted
                    for state in pool.states
                ),
                exact_predictions=pool.exact.predictions,
                exact_error_tokens=pool.exact.error_tokens,
                estimated_predictions=pool.estimated.predictions,
                estimated_error_tokens=pool.estimated.error_tokens,
            )
            for name, pool in self._pools().items()
        )


def _block_tokens(pool: PoolState) -> int:
    """Tokens in a block of the pool's engines; 0 where none has told yet."""
    for state in pool.states:
        held = state.cache.held
        if held is not None and held.usable:
            return held.block_tokens
    return 0
