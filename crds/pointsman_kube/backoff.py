"""How long to wait before the next try."""

from __future__ import annotations

import random
from dataclasses import dataclass, field


@dataclass(slots=True, kw_only=True)
class Backoff:
    """Delays that double from ``base_seconds`` to ``most_seconds``, each drawn around its value.

    The jitter keeps many clients from coming back to a restarted server all at once.
    """

    base_seconds: float = 0.25
    most_seconds: float = 30.0
    jitter: float = 0.5
    """Share by which a delay is shortened at most."""
    source: random.Random = field(default_factory=random.Random)
    failures: int = 0

    def next_seconds(self, least_seconds: float = 0.0) -> float:
        """The delay after one more failure; never below ``least_seconds``."""
        # The exponent is bounded, or a day of failures would overflow the float.
        grown = self.base_seconds * 2.0 ** min(self.failures, 32)
        self.failures += 1
        whole = min(self.most_seconds, grown)
        drawn = whole * (1.0 - self.jitter * self.source.random())
        if drawn >= least_seconds:
            return drawn
        return least_seconds * (1.0 + self.jitter * self.source.random())

    def reset(self) -> None:
        """It worked: the next failure starts from the base again."""
        self.failures = 0
