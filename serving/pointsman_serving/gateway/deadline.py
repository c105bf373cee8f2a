"""A timer that is moved for every token, which must cost next to nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol


class Timer(Protocol):
    """A call that comes later, such as ``asyncio.TimerHandle``."""

    def cancel(self) -> None:
        """Do not call."""


CallLater = Callable[[float, Callable[[], None]], Timer]
"""Seconds and what to call then, such as a loop's ``call_later``."""


_HELD_UP_SECONDS: Final = 0.25
_CATCH_UP_SECONDS: Final = 0.05


class Deadline:
    """Calls ``ring`` once the deadline has passed.

    Moving it to later is one assignment: the loop's timer rings at the old time, sees that it
    is too early, and is set anew. Only a move to earlier touches the loop.

    Args:
        clock: seconds; monotonic.
        latest: no deadline is later than this.
    """

    __slots__ = ("_at", "_call_later", "_clock", "_latest", "_ring", "_timer", "_timer_at")

    def __init__(
        self,
        call_later: CallLater,
        clock: Callable[[], float],
        ring: Callable[[], None],
        *,
        latest: float,
    ) -> None:
        self._call_later = call_later
        self._clock = clock
        self._ring = ring
        self._latest = latest
        self._at = latest
        self._timer: Timer | None = None
        self._timer_at = latest

    @property
    def final(self) -> bool:
        """Whether the latest time of all has come."""
        return self._clock() >= self._latest

    def set(self, seconds: float, now: float) -> None:
        """Move it to ``seconds`` after ``now``."""
        self._at = min(now + seconds, self._latest)
        if self._timer is None or self._timer_at > self._at:
            self._set_timer(now)

    def set_at(self, at: float) -> None:
        """Move it to a time of the clock."""
        self._at = min(at, self._latest)
        if self._timer is None or self._timer_at > self._at:
            self._set_timer(self._clock())

    def cancel(self) -> None:
        """Never ring."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _set_timer(self, now: float) -> None:
        self.cancel()
        self._timer_at = self._at
        self._timer = self._call_later(max(self._at - now, 0.0), self._check)

    def _check(self) -> None:
        self._timer = None
        now = self._clock()
        if now < self._at:
            self._set_timer(now)
        elif now - self._timer_at > _HELD_UP_SECONDS:
            # This process stood still: what has come meanwhile is read first.
            self._at = now + _CATCH_UP_SECONDS
            self._set_timer(now)
        else:
            self._ring()
