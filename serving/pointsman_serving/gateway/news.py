"""What is worth a line in the log again: the same trouble is told only now and then."""

from __future__ import annotations

from collections.abc import Callable, Hashable

REPEAT_SECONDS = 30.0
_MOST_REMEMBERED = 1000


class News:
    """Remembers what was told lately.

    Args:
        clock: seconds; monotonic.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._told_at: dict[Hashable, float] = {}

    def is_new(self, *what: Hashable) -> bool:
        """Whether this has not been told within the last half minute; it counts as told now."""
        now = self._clock()
        told_at = self._told_at.get(what)
        if told_at is not None and now - told_at < REPEAT_SECONDS:
            return False
        if len(self._told_at) >= _MOST_REMEMBERED:
            self._told_at.clear()
        self._told_at[what] = now
        return True
