"""Taking a failing replica out of the choice for a while: a transition table."""

from __future__ import annotations

import math
from enum import StrEnum
from typing import Final

FAILURES_UNTIL_OPEN: Final = 2
FIRST_EJECTION_SECONDS: Final = 1.0
LONGEST_EJECTION_SECONDS: Final = 60.0
PROBE_SECONDS: Final = 2.0
"""A probe that has not failed for so long lets another request try as well: where the whole
answer is awaited, one request at a time would keep a healthy replica shut for minutes."""
LONGEST_SILENCE_SECONDS: Final = 5.0
"""Between two questions after its health: they are cheap, and a replica may be back any time."""

# Every failure and every whole answer counts; a share of them is believed once there are some.
FAILED_SHARE_UNTIL_OPEN: Final = 0.3
_SHARE_WEIGHT: Final = 1.0 / 16.0
_FEWEST_OUTCOMES: Final = 8


class BreakerState(StrEnum):
    """Whether requests go to a replica."""

    CLOSED = "Closed"
    OPEN = "Open"
    HALF_OPEN = "HalfOpen"
    """A request is out to try it."""
    DUE = "Due"
    """The next request tries it: its health has answered, or who tried it last said nothing yet."""


class BreakerEvent(StrEnum):
    """What can happen to a replica."""

    FAILED = "Failed"
    FAILED_AGAIN = "FailedAgain"
    """Failed for the last time that is borne, could not be connected to, or is silent."""
    PROBE_SENT = "ProbeSent"
    PROBE_SUCCEEDED = "ProbeSucceeded"
    PROBE_GIVEN_UP = "ProbeGivenUp"
    """The client left before the probe said anything."""
    PROBE_LATE = "ProbeLate"
    """The probe has neither failed nor succeeded for a while."""
    HEALTH_ANSWERED = "HealthAnswered"
    HEALTH_SILENT = "HealthSilent"


_CLOSED, _OPEN, _HALF_OPEN = BreakerState.CLOSED, BreakerState.OPEN, BreakerState.HALF_OPEN
_DUE = BreakerState.DUE

# Pairs that are absent change nothing: requests that were sent before an ejection still end.
TRANSITIONS: Final = {
    (_CLOSED, BreakerEvent.FAILED_AGAIN): _OPEN,
    (_OPEN, BreakerEvent.PROBE_SENT): _HALF_OPEN,
    (_OPEN, BreakerEvent.HEALTH_ANSWERED): _DUE,
    (_OPEN, BreakerEvent.HEALTH_SILENT): _OPEN,
    (_HALF_OPEN, BreakerEvent.PROBE_SUCCEEDED): _CLOSED,
    (_HALF_OPEN, BreakerEvent.PROBE_GIVEN_UP): _DUE,
    (_HALF_OPEN, BreakerEvent.PROBE_LATE): _DUE,
    (_HALF_OPEN, BreakerEvent.FAILED): _OPEN,
    (_HALF_OPEN, BreakerEvent.FAILED_AGAIN): _OPEN,
    (_DUE, BreakerEvent.PROBE_SENT): _HALF_OPEN,
    (_DUE, BreakerEvent.PROBE_SUCCEEDED): _CLOSED,
    # The probe's failure may be told after its end.
    (_DUE, BreakerEvent.FAILED): _OPEN,
    (_DUE, BreakerEvent.FAILED_AGAIN): _OPEN,
}


class Breaker:
    """One replica's ejection: 1 s at first, doubled up to a minute if it soon fails again.

    Args:
        asked: somebody asks the replica's health when its ejection is over (``health``), and no
            request goes there before it has answered. Otherwise time alone brings it back.
    """

    __slots__ = (
        "_ejection_seconds",
        "_failed_share",
        "_failures",
        "_outcomes",
        "_silence_seconds",
        "asked",
        "closed_at",
        "lost",
        "state",
        "until",
    )

    def __init__(self, *, asked: bool = False) -> None:
        self.asked = asked
        self.state = BreakerState.CLOSED
        self.until = 0.0
        """When a request may try the replica again, also beside a probe, or its health is asked."""
        self.lost = False
        """It is ejected, and there was no sign of life since."""
        self.closed_at = -math.inf
        """When it came back last."""
        self._failures = 0
        self._failed_share = 0.0
        self._outcomes = 0
        self._ejection_seconds = FIRST_EJECTION_SECONDS
        self._silence_seconds = FIRST_EJECTION_SECONDS

    def allows(self, now: float) -> bool:
        """Whether a request may go there: closed, or it is its turn to try the replica."""
        state = self.state
        return (
            state is _CLOSED
            or state is _DUE
            or (state is _OPEN and not self.asked and now >= self.until)
            or (state is _HALF_OPEN and now >= self.until)
        )

    def serves(self, now: float) -> bool:
        """Whether the replica is one to wait for: it may get requests, or is being tried."""
        return self.state is _HALF_OPEN or self.allows(now)

    @property
    def last_resort(self) -> bool:
        """Whether a request may go there though it is ejected, where nothing else is left.

        A lost replica whose health is asked for would only keep the request until it is late.
        """
        return not (self.asked and self.lost)

    def wants_health(self, now: float) -> bool:
        """Whether the replica's health is to be asked now."""
        return self.asked and self.state is _OPEN and now >= self.until

    def sent(self, now: float) -> bool:
        """Note a request that goes there; True where it is a probe.

        A request may go before the ejection is over, where nothing else is left to try.
        """
        if self.state is _HALF_OPEN and now >= self.until:
            self._enter(BreakerEvent.PROBE_LATE, now)
        if self.state in (_CLOSED, _HALF_OPEN):
            return False
        self._enter(BreakerEvent.PROBE_SENT, now)
        return True

    def succeeded(self, now: float, *, probe: bool, whole: bool) -> bool:
        """Note a first token or, with ``whole``, a complete answer; True where that closed it.

        A first token ends an ejection, but only a complete answer makes up for failures: a
        replica whose streams all break has given many first tokens.
        """
        closed = probe and self._enter(BreakerEvent.PROBE_SUCCEEDED, now)
        if closed:
            self._failures = FAILURES_UNTIL_OPEN - 1
        if whole and self.state is _CLOSED:
            self._failures = 0
            self._count(failed=False)
        return closed

    def failed(self, now: float, *, hard: bool, may_eject: bool = True) -> bool:
        """Note a failure; True where the replica was just ejected.

        Args:
            hard: it could not be connected to or is silent: it is ejected at once.
            may_eject: False where too many others are out already; hard failures do not ask.
        """
        self._failures += 1
        self._count(failed=True)
        often = self._outcomes >= _FEWEST_OUTCOMES and self._failed_share >= FAILED_SHARE_UNTIL_OPEN
        last = hard or (may_eject and (often or self._failures >= FAILURES_UNTIL_OPEN))
        ejected = self._enter(BreakerEvent.FAILED_AGAIN if last else BreakerEvent.FAILED, now)
        if hard and self.state is _OPEN:
            self.lost = True
        return ejected

    def gave_up(self, now: float) -> None:
        """Note that the probe ended without an answer and without a failure."""
        if self._enter(BreakerEvent.PROBE_GIVEN_UP, now):
            self.until = now

    def health(self, now: float, *, answered: bool) -> None:
        """Note what came of asking the replica's health; only an ejected one is asked."""
        if answered:
            if self._enter(BreakerEvent.HEALTH_ANSWERED, now):
                self.lost = False
        elif self._enter(BreakerEvent.HEALTH_SILENT, now):
            self.lost = True
            self._silence_seconds = min(2 * self._silence_seconds, LONGEST_SILENCE_SECONDS)
            self.until = now + self._silence_seconds

    def _count(self, *, failed: bool) -> None:
        self._outcomes += 1
        self._failed_share += ((1.0 if failed else 0.0) - self._failed_share) * _SHARE_WEIGHT

    def _enter(self, event: BreakerEvent, now: float) -> bool:
        """Take the transition; False where there is none."""
        before = self.state
        state = TRANSITIONS.get((before, event))
        if state is None:
            return False
        self.state = state
        if state is _CLOSED:
            self.closed_at = now
            self._failed_share = 0.0
            self._outcomes = 0
            self._silence_seconds = FIRST_EJECTION_SECONDS
            self.lost = False
        elif state is _HALF_OPEN:
            self.until = now + PROBE_SECONDS
        elif state is _OPEN and event is not BreakerEvent.HEALTH_SILENT:
            if before is _CLOSED and now - self.closed_at > LONGEST_EJECTION_SECONDS:
                self._ejection_seconds = FIRST_EJECTION_SECONDS
            self.until = now + self._ejection_seconds
            self._ejection_seconds = min(2 * self._ejection_seconds, LONGEST_EJECTION_SECONDS)
        return True
