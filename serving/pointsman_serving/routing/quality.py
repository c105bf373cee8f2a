"""How good an answer a pool is expected to give."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pointsman_api.route_table import PoolEntry, Target

NEUTRAL_QUALITY: Final = 0.5
DEFAULT_TASK: Final = "Default"


def prior_quality(target: Target, pool: PoolEntry, task: str) -> float:
    """The stated quality in [0, 1]: the target's, the pool's for the task, its default, or .5."""
    if target.quality is not None:
        return target.quality
    score = pool.quality.get(task)
    if score is None:
        score = pool.quality.get(DEFAULT_TASK, NEUTRAL_QUALITY)
    return score
