"""A pool's replicas in the order in which they are worth looking at: least busy first.

By the requests that each has in flight, and among equals by what it was sent lately. Kept in order
as requests come and go, so that a choice among a thousand looks at a few.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pointsman_serving.routing.replica import ReplicaState

Place = tuple[float, str]
"""What a replica was sent lately, and its name."""


class Lineup:
    """The listed replicas of one pool."""

    __slots__ = ("_places", "levels", "states")

    def __init__(self) -> None:
        self.levels: list[int] = []
        """The numbers of requests in flight that any replica has, the smallest first."""
        self.states: dict[int, list[tuple[float, str, ReplicaState]]] = {}
        """By that number: what each was sent lately (``even_tokens``), its name, and itself."""
        self._places: dict[str, tuple[int, Place]] = {}

    def set(self, states: Iterable[ReplicaState]) -> None:
        """Line up these replicas and no others."""
        self._places.clear()
        self.states = {}
        for state in states:
            level = state.load.in_flight
            self.states.setdefault(level, []).append((state.even_tokens, state.name, state))
            self._places[state.name] = level, (state.even_tokens, state.name)
        for row in self.states.values():
            row.sort(key=_place)
        self.levels = sorted(self.states)

    def move(self, state: ReplicaState) -> None:
        """Put a replica where it belongs now; one that is not listed stays out."""
        name = state.name
        known = self._places.get(name)
        if known is None:
            return
        before, place = known
        row = self.states[before]
        at = bisect_left(row, place)
        if at == len(row) or row[at][2] is not state:
            # Another one of the same name: this one is draining.
            return
        del row[at]
        if not row:
            del self.states[before]
            del self.levels[bisect_left(self.levels, before)]
        level = state.load.in_flight
        even = state.even_tokens
        self._places[name] = level, (even, name)
        row = self.states.get(level)  # type: ignore[assignment]
        if row is None:
            self.states[level] = [(even, name, state)]
            insort(self.levels, level)
        else:
            row.insert(bisect_left(row, (even, name)), (even, name, state))

    def least_even(self) -> float:
        """The least that any of them was sent lately; 0 where there is none."""
        return min([row[0][0] for row in self.states.values()], default=0.0)

    def in_order(self) -> Iterator[tuple[int, ReplicaState]]:
        """Every replica with its requests in flight."""
        for level in self.levels:
            for _, _, state in self.states[level]:
                yield level, state


def _place(entry: tuple[float, str, ReplicaState]) -> Place:
    return entry[0], entry[1]
