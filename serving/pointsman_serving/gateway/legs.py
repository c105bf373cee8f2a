"""The attempts at one request that are under way: one, or two where the second is a hedge."""

from __future__ import annotations

import math
from collections.abc import Iterator

from pointsman_serving.gateway.leg import Leg
from pointsman_serving.routing.types import Usage


class Legs:
    """The attempts under way, the latest last."""

    __slots__ = ("_legs",)

    def __init__(self) -> None:
        self._legs: list[Leg] = []

    def __len__(self) -> int:
        return len(self._legs)

    def __iter__(self) -> Iterator[Leg]:
        return iter(self._legs)

    @property
    def first(self) -> Leg:
        """The one that began first.

        Raises:
            IndexError: none is under way.
        """
        return self._legs[0]

    @property
    def late_at(self) -> float:
        """When the first of them is late; infinite where there is none."""
        return min((leg.late_at for leg in self._legs), default=math.inf)

    def add(self, leg: Leg) -> None:
        """Note one that begins."""
        self._legs.append(leg)

    def remove(self, leg: Leg) -> None:
        """Note one that is over."""
        self._legs.remove(leg)

    def leave_others(self, leading: Leg) -> bool:
        """End all but one; whether there were others."""
        others = [leg for leg in self._legs if leg is not leading]
        for leg in others:
            self._legs.remove(leg)
            leg.end()
            leg.finish(ok=False)
        return bool(others)

    def tell_late(self, now: float) -> None:
        """Tell those whose time is over."""
        for leg in list(self._legs):
            if leg.late_at <= now and leg in self._legs:
                leg.late()

    def end(self, leading: Leg | None, *, ok: bool, usage: Usage | None, learn: bool) -> bool:
        """The request has ended: give every place back; whether any was taken.

        Args:
            leading: the one whose answer the client got; ``ok`` and ``usage`` are of it.
            learn: its answer was a whole one.
        """
        legs, self._legs = self._legs, []
        for leg in legs:
            leg.end()
            answered = leg is leading
            leg.finish(ok=ok and answered, usage=usage if answered else None, learn=learn)
        return bool(legs)
