"""Which fault comes when: drawn from a seed, so that a run can be had again."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


class FaultKind(StrEnum):
    """What is done to a replica."""

    KILL = "kill"
    """SIGKILL; a new replica takes its place after some seconds."""
    STOP = "stop"
    """SIGSTOP: its connections stay open in silence."""
    HANG = "hang"
    """It says nothing more, and ``/health`` answers 200."""
    RESET = "reset"
    """RST on every connection; the replica itself is well."""
    DROP = "drop"
    """Every packet to it and from it is lost."""


SHARES = {
    FaultKind.KILL: 6,
    FaultKind.RESET: 5,
    FaultKind.STOP: 3,
    FaultKind.HANG: 3,
    FaultKind.DROP: 3,
}
"""How often, against each other. A reset takes nobody away, so it leaves room for the others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """One fault to come."""

    kind: FaultKind
    lasts_seconds: float
    """For kinds that end by themselves."""
    fatal: bool
    """Whether the replica is killed when it is over, instead of let go."""
    restart_seconds: float
    """From a SIGKILL to the start of the next replica."""
    listed_seconds: float
    """How long a killed replica is still listed."""


class Deck:
    """Faults in a random order, each kind by its share.

    Args:
        kinds: those that this machine can do.
        count: how many there will be.
        seed: of the order and of the durations.
    """

    def __init__(self, kinds: Sequence[FaultKind], *, count: int, seed: int) -> None:
        self._chance = random.Random(seed)
        total = sum(SHARES[kind] for kind in kinds)
        drawn = [kind for kind in kinds for _ in range(round(count * SHARES[kind] / total))]
        while len(drawn) < count:
            drawn.append(FaultKind.RESET)
        self._chance.shuffle(drawn)
        self._kinds = drawn[:count]

    def __len__(self) -> int:
        return len(self._kinds)

    def draw(self, *, room: bool) -> Card:
        """The next fault.

        Args:
            room: whether a replica more may be taken away; without it the next reset comes
                first, or one more where none is left.
        """
        kind = self._next(room=room)
        chance = self._chance
        return Card(
            kind=kind,
            lasts_seconds=chance.uniform(4.0, 5.5),
            fatal=chance.random() < 0.5,
            restart_seconds=chance.uniform(0.5, 2.0),
            listed_seconds=chance.uniform(0.0, 1.5),
        )

    def _next(self, *, room: bool) -> FaultKind:
        if not self._kinds:
            return FaultKind.RESET
        if room:
            return self._kinds.pop(0)
        if FaultKind.RESET in self._kinds:
            self._kinds.remove(FaultKind.RESET)
        else:
            self._kinds.pop()
        return FaultKind.RESET

    def pick(self, names: Sequence[str]) -> str:
        """Whom it meets."""
        return self._chance.choice(sorted(names))
