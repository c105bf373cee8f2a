"""How fast a client sends its request: with pauses that are not too long, and not for ever."""

from __future__ import annotations

from collections.abc import Callable

from pointsman_serving.gateway.deadline import CallLater, Timer
from pointsman_serving.gateway.settings import GatewaySettings


class ReadPace:
    """The timer of the request that a connection is reading.

    One timer for all of it, not one per read: who reads sets ``came_at``, and the timer looks at
    that when it rings.

    Args:
        ring: asks ``overdue``.
    """

    __slots__ = ("_call_later", "_ring", "_settings", "_timer", "began_at", "came_at")

    def __init__(
        self, call_later: CallLater, settings: GatewaySettings, ring: Callable[[], None]
    ) -> None:
        self._call_later = call_later
        self._settings = settings
        self._ring = ring
        self._timer: Timer | None = None
        self.began_at = 0.0
        """When the head began, or the body after it."""
        self.came_at = 0.0
        """When the last piece of the body came."""

    def watch(self) -> None:
        """Ring unless ``stop`` comes first."""
        if self._timer is None:
            self._timer = self._call_later(self._settings.request_read_seconds, self._check)

    def stop(self) -> None:
        """The request is whole, or nobody waits for it any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def overdue(self, now: float, *, in_head: bool) -> float | None:
        """The limit, in seconds, that the client has passed; None, and another ring, where none."""
        settings = self._settings
        limit, due = settings.request_read_seconds, self.came_at + settings.request_read_seconds
        if not in_head and self.began_at + settings.body_read_seconds < due:
            limit, due = settings.body_read_seconds, self.began_at + settings.body_read_seconds
        if now < due:
            self._timer = self._call_later(due - now, self._check)
            return None
        return limit

    def _check(self) -> None:
        self._timer = None
        self._ring()
