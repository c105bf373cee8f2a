"""How many requests a replica takes while it is cold: a few at first, all after some seconds.

A replica that has just come has compiled nothing and cached nothing, and looks idle to everyone
at once: without this the whole queue goes there together.
"""

from __future__ import annotations

from typing import Final

SLOW_START_SECONDS: Final = 10.0
_FIRST_SHARE: Final = 0.1


def effective_slots(slots: int, age_seconds: float, *, over_seconds: float) -> int:
    """The slots that are used at an age: a tenth, at least one, growing evenly to all.

    Args:
        slots: of the replica when it is warm; at least 1.
        age_seconds: since it came.
        over_seconds: when it counts as warm; 0: at once.
    """
    if over_seconds <= 0.0 or age_seconds >= over_seconds:
        return slots
    share = _FIRST_SHARE + (1.0 - _FIRST_SHARE) * max(0.0, age_seconds) / over_seconds
    return max(1, min(slots, int(slots * share)))
