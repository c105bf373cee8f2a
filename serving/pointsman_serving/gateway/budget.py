"""A budget that grows with the traffic: what is done twice stays a fraction of what is done."""

from __future__ import annotations

from dataclasses import dataclass

from pointsman_api.route_table import Resilience

_RETRIES_AT_ONCE = 10.0
_RETRIES_SAVED = 100.0
_TOKENS_AT_ONCE = 20_000.0
_TOKENS_SAVED = 1_000_000.0


class Budget:
    """A bucket that every request fills a little.

    Pure. A small reserve comes back with time, so that a quiet gateway can afford something
    too; what has been saved up is bounded, so that a long quiet time pays for no storm.

    Args:
        percent: of what is deposited, how much may be spent.
        reserve: what is there without any deposit; comes back within ten seconds.
        most: what can be saved up.
    """

    __slots__ = ("_at", "_balance", "_most", "_reserve", "percent")

    def __init__(self, *, percent: float, reserve: float, most: float) -> None:
        self.percent = percent
        self._reserve = reserve
        self._most = most
        self._balance = reserve
        self._at: float | None = None

    def deposit(self, amount: float) -> None:
        """Note ordinary work."""
        self._balance = min(self._most, self._balance + amount * self.percent / 100.0)

    def withdraw(self, amount: float, now: float) -> bool:
        """Spend ``amount`` on work that is done once more; False where that is too much."""
        self._refill(now)
        if self.percent <= 0.0 or amount > self._balance:
            return False
        self._balance -= amount
        return True

    def _refill(self, now: float) -> None:
        passed = 0.0 if self._at is None else max(0.0, now - self._at)
        self._at = now
        if self._balance < self._reserve:
            self._balance = min(self._reserve, self._balance + self._reserve * passed / 10.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleBudgets:
    """What the requests of one rule may cost once more."""

    retries: Budget
    """In requests."""
    hedges: Budget
    """In prompt tokens."""

    @classmethod
    def of(cls, resilience: Resilience) -> RuleBudgets:
        """New budgets by what a rule allows."""
        return cls(
            retries=Budget(
                percent=resilience.retry_budget_percent,
                reserve=_RETRIES_AT_ONCE,
                most=_RETRIES_SAVED,
            ),
            hedges=Budget(
                percent=resilience.hedging.budget_percent,
                reserve=_TOKENS_AT_ONCE,
                most=_TOKENS_SAVED,
            ),
        )

    def fit(self, resilience: Resilience) -> bool:
        """Whether they are still what a rule allows."""
        return (
            self.retries.percent == resilience.retry_budget_percent
            and self.hedges.percent == resilience.hedging.budget_percent
        )
