"""How much of the event loop's time background work may take."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

_BURST_SECONDS = 0.002


class LoopShare:
    """Bounds what all its users take together, however much work they have.

    Args:
        share: of the loop's time, above 0 and below 1.
        clock: seconds; monotonic.
    """

    def __init__(self, *, share: float, clock: Callable[[], float]) -> None:
        self._rest = 1.0 / share
        self._clock = clock
        self._free_at = 0.0

    @property
    def wait_seconds(self) -> float:
        """How long the next piece of work has to wait."""
        wait = self._free_at - self._clock()
        return wait if wait > _BURST_SECONDS else 0.0

    async def turn(self) -> None:
        """Wait until there is time for a piece of work."""
        while wait := self.wait_seconds:
            await asyncio.sleep(wait)

    def spent(self, seconds: float) -> None:
        """Note what a piece of work took."""
        self._free_at = max(self._free_at, self._clock() - seconds) + seconds * self._rest
