"""How fast a line of waiting requests moves, measured while it stands."""

from __future__ import annotations

import math
from typing import Final

_HALF_LIFE_SECONDS: Final = 30.0
_FORGOTTEN_AFTER_SECONDS: Final = 60.0
_PER_HALF_LIFE: Final = _HALF_LIFE_SECONDS / math.log(2.0)


class DrainRate:
    """Departures against the time in which somebody waited; both fade by half in 30 s.

    Requests of a batch often end together, so a mean over gaps would swing: here a burst and the
    pause before it count together. What was measured is kept for a minute in which nobody waits.
    """

    __slots__ = ("_at", "_busy_seconds", "_departed", "_running", "seen")

    def __init__(self) -> None:
        self.seen = 0
        """Departures since the measuring began."""
        self._departed = 0.0
        self._busy_seconds = 0.0
        self._at = 0.0
        self._running = False

    def start(self, now: float) -> None:
        """Somebody waits from now on."""
        if self._running:
            return
        if now - self._at > _FORGOTTEN_AFTER_SECONDS:
            self.seen = 0
            self._departed = self._busy_seconds = 0.0
        self._running = True
        self._at = now

    def stop(self, now: float) -> None:
        """Nobody waits any more, or there is nothing to wait for."""
        self._advance(now)
        self._running = False

    def depart(self, now: float) -> None:
        """Note that one was served."""
        self._advance(now)
        self.seen += 1
        self._departed += 1.0

    def seconds_each(self, now: float) -> float:
        """Mean time from one departure to the next; 0 before anything is known.

        The one that is due next counts as departed, so that it is rather too short.
        """
        self._advance(now)
        return self._busy_seconds / (self._departed + 1.0)

    def _advance(self, now: float) -> None:
        if not self._running or now <= self._at:
            return
        kept = 2.0 ** ((self._at - now) / _HALF_LIFE_SECONDS)
        self._departed *= kept
        self._busy_seconds = self._busy_seconds * kept + (1.0 - kept) * _PER_HALF_LIFE
        self._at = now
