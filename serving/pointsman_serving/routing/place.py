"""One request's place in the queue: what its order depends on, and how long it may be there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

Waiter = TypeVar("Waiter")

RuleKey = tuple[str, str]
"""Policy and rule."""

Lane = frozenset[str]
"""The pools that a request may go to: those who share them all wait for the same room."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """What the queue needs to know of a request. Times are seconds of the caller's clock."""

    rule: RuleKey
    lane: Lane
    priority: int = 0
    """Higher goes first."""
    tenant: str = ""
    """Whose share it takes."""
    cost_tokens: float = 1.0
    """How much of the share; above 0."""
    deadline: float = 0.0
    """Among those of one tenant the earliest goes first."""
    arrived_at: float = 0.0
    again: bool = False
    """It was let through before: it goes before all others of its priority, and is not refused."""
    queue_seconds: float = 30.0
    """How long it may wait while there are replicas."""
    cold_seconds: float = 300.0
    """How long it may wait while there is none."""
    latest: float = float("inf")
    """When waiting makes no sense any more."""


class Entry(Generic[Waiter]):
    """A waiter at its place, and how much of its time is left."""

    __slots__ = (
        "_cold_left",
        "_queue_left",
        "_since",
        "cold",
        "joined_at",
        "number",
        "place",
        "waiter",
    )

    def __init__(
        self, waiter: Waiter, place: Place, *, number: int, cold: bool, now: float
    ) -> None:
        self.waiter: Waiter | None = waiter
        """None once it has left: what lies around of the entry must not keep it alive."""
        self.place = place
        self.number = number
        """Order of joining."""
        self.joined_at = now
        self.cold = cold
        """Waiting for a replica, not for room."""
        self._since = now
        self._queue_left = place.queue_seconds
        self._cold_left = place.cold_seconds

    def __lt__(self, other: Entry[Waiter]) -> bool:
        return self.number < other.number

    def go_on_from(self, before: Entry[Waiter]) -> None:
        """Take over the time that it has spent at another place."""
        self.joined_at = before.joined_at
        self.cold = before.cold
        self._since = before._since
        self._queue_left = before._queue_left
        self._cold_left = before._cold_left

    @property
    def order(self) -> float:
        """What those of one tenant, or those tried again, are sorted by."""
        return self.place.arrived_at if self.place.again else self.place.deadline

    @property
    def expires_at(self) -> float:
        """When its time is over, if nothing changes."""
        left = self._cold_left if self.cold else self._queue_left
        return min(self._since + left, self.place.latest)

    def set_cold(self, cold: bool, now: float) -> bool:
        """Count from now on against the other allowance; False where nothing changes."""
        if self.cold == cold:
            return False
        spent = max(now - self._since, 0.0)
        if self.cold:
            self._cold_left = max(self._cold_left - spent, 0.0)
        else:
            self._queue_left = max(self._queue_left - spent, 0.0)
        self.cold = cold
        self._since = now
        return True
