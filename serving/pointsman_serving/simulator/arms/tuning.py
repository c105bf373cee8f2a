"""Which parameters of a rule a tuner may set, and to what."""

from __future__ import annotations

import math
from dataclasses import dataclass

Value = float | int | bool | str | None
"""What a parameter of an arm may be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """A number between two others, both included."""

    name: str
    low: float
    high: float
    logarithmic: bool = False
    """Equal shares of the range are equal factors; both ends are above 0."""
    whole: bool = False
    """Only whole numbers."""

    def __post_init__(self) -> None:
        """Refuse a range that holds nothing."""
        if not self.low < self.high or (self.logarithmic and self.low <= 0):
            raise ValueError(
                f"the range of {self.name!r} is {self.low} to {self.high}: give a low end below "
                "the high end, above 0 where it is logarithmic"
            )

    def at(self, share: float) -> float | int:
        """The value so far into the range; 0 is its low end, 1 its high end."""
        share = min(1.0, max(0.0, share))
        if self.logarithmic:
            value = math.exp(math.log(self.low) + share * math.log(self.high / self.low))
        else:
            value = self.low + share * (self.high - self.low)
        value = min(self.high, max(self.low, value))
        return round(value) if self.whole else value


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One of a few values."""

    name: str
    values: tuple[Value, ...]

    def __post_init__(self) -> None:
        """Refuse a choice that is none."""
        if len(self.values) < 2:
            raise ValueError(f"{self.name!r} has the values {self.values}: give two or more")

    def at(self, share: float) -> Value:
        """The value so far into the list; 0 is the first, 1 the last."""
        share = min(1.0, max(0.0, share))
        return self.values[min(len(self.values) - 1, int(share * len(self.values)))]


Tunable = Range | Choice
