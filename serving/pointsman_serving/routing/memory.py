"""How much is remembered of what the replicas have cached, over all of them.

A block takes 100 to 170 bytes (``benchmarks/decision.py`` measures it): the estimate of a gateway
takes no more than some 330 MB, whatever is sent and however many replicas there are, up to two
thousand; beyond that a thousand blocks each.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pointsman_serving.routing.cache import MAX_BLOCKS_PER_REPLICA

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pointsman_serving.routing.pool import PoolState

BLOCKS_IN_ALL: Final = 2_000_000
FEWEST_BLOCKS: Final = 1_024


def share_memory(pools: Iterable[PoolState]) -> None:
    """Bound the believed blocks of all replicas together."""
    replicas = [state for pool in pools for state in pool.states]
    share = BLOCKS_IN_ALL // max(1, len(replicas))
    most = min(MAX_BLOCKS_PER_REPLICA, max(FEWEST_BLOCKS, share))
    for state in replicas:
        state.cache.max_blocks = most
