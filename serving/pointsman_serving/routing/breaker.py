"""Taking a failing replica out of the choice for a while: a transition table."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

FAILURES_UNTIL_OPEN: Final = 2
FIRST_EJECTION_SECONDS: Final = 1.0
LONGEST_EJECTION_SECONDS: Final = 60.0


class BreakerState(StrEnum):
    """Whether requests go to a replica."""

    CLOSED = "Closed"
    OPEN = "Open"
    HALF_OPEN = "HalfOpen"
    """One request is out to try it."""
    DUE = "Due"
    """The request that tried it ended without an answer: the next one tries it again."""


class BreakerEvent(StrEnum):
    """What can happen to a replica."""

    FAILED = "Failed"
    FAILED_AGAIN = "FailedAgain"
    """Failed for the last time that is borne, or could not be connected to."""
    PROBE_SENT = "ProbeSent"
    PROBE_SUCCEEDED = "ProbeSucceeded"
    PROBE_GIVEN_UP = "ProbeGivenUp"
    """The client left before the probe said anything."""


_CLOSED, _OPEN, _HALF_OPEN = BreakerState.CLOSED, BreakerState.OPEN, BreakerState.HALF_OPEN
_DUE = BreakerState.DUE

# Pairs that are absent change nothing: requests that were sent before an ejection still end.
TRANSITIONS: Final = {
    (_CLOSED, BreakerEvent.FAILED_AGAIN): _OPEN,
    (_OPEN, BreakerEvent.PROBE_SENT): _HALF_OPEN,
    (_HALF_OPEN, BreakerEvent.PROBE_SUCCEEDED): _CLOSED,
    (_HALF_OPEN, BreakerEvent.PROBE_GIVEN_UP): _DUE,
    (_HALF_OPEN, BreakerEvent.FAILED): _OPEN,
    (_HALF_OPEN, BreakerEvent.FAILED_AGAIN): _OPEN,
    (_DUE, BreakerEvent.PROBE_SENT): _HALF_OPEN,
    (_DUE, BreakerEvent.PROBE_SUCCEEDED): _CLOSED,
    # The probe's failure may be told after its end.
    (_DUE, BreakerEvent.FAILED): _OPEN,
    (_DUE, BreakerEvent.FAILED_AGAIN): _OPEN,
}


class Breaker:
    """One replica's ejection: 1 s at first, doubled each time up to a minute."""

    __slots__ = ("_ejection_seconds", "_failures", "state", "until")

    def __init__(self) -> None:
        self.state = BreakerState.CLOSED
        self.until = 0.0
        """When a request may try the replica again."""
        self._failures = 0
        self._ejection_seconds = FIRST_EJECTION_SECONDS

    def allows(self, now: float) -> bool:
        """Whether a request may go there: closed, or its time is over and no probe is out."""
        state = self.state
        return state is _CLOSED or state is _DUE or (state is _OPEN and now >= self.until)

    def sent(self, now: float) -> bool:
        """Note a request that goes there; True where it is the probe.

        A request may go before the ejection is over, where nothing else is left to try.
        """
        if self.state in (_CLOSED, _HALF_OPEN):
            return False
        self._enter(BreakerEvent.PROBE_SENT, now)
        return True

    def succeeded(self, now: float, *, probe: bool) -> None:
        """Note a first token or a complete answer."""
        if probe:
            self._enter(BreakerEvent.PROBE_SUCCEEDED, now)
        if self.state is _CLOSED:
            self._failures = 0

    def failed(self, now: float, *, hard: bool) -> bool:
        """Note a failure; hard ones eject at once. True where the replica was just ejected."""
        self._failures += 1
        last = hard or self._failures >= FAILURES_UNTIL_OPEN
        return self._enter(BreakerEvent.FAILED_AGAIN if last else BreakerEvent.FAILED, now)

    def gave_up(self, now: float) -> None:
        """Note that the probe ended without an answer and without a failure."""
        if self._enter(BreakerEvent.PROBE_GIVEN_UP, now):
            self.until = now

    def _enter(self, event: BreakerEvent, now: float) -> bool:
        """Take the transition; True where the replica was ejected by it."""
        state = TRANSITIONS.get((self.state, event), self.state)
        if state is self.state:
            return False
        self.state = state
        if state is _CLOSED:
            self._failures = 0
            self._ejection_seconds = FIRST_EJECTION_SECONDS
        elif state is _OPEN:
            self.until = now + self._ejection_seconds
            self._ejection_seconds = min(2 * self._ejection_seconds, LONGEST_EJECTION_SECONDS)
        return state is _OPEN
