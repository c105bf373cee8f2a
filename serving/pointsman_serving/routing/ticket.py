"""One request on its way: what was predicted when it was sent, and what was seen since."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pointsman_serving.routing.accuracy import Accuracy
    from pointsman_serving.routing.cache import Belief
    from pointsman_serving.routing.replica import ReplicaState
    from pointsman_serving.routing.types import ReplicaKey, RouteRequest


class TicketPhase(StrEnum):
    """How far a request has come."""

    PREFILL = "Prefill"
    DECODE = "Decode"
    DONE = "Done"


class Ticket:
    """What the scheduler gives for a dispatched request; give it back with every event.

    ``key`` and ``request`` are the caller's to read; the rest is the scheduler's own.
    """

    __slots__ = (
        "accuracy",
        "batch_seconds_at_first_token",
        "belief",
        "dispatched_at",
        "expected_cached_tokens",
        "first_token_at",
        "heard",
        "key",
        "phase",
        "predicted_cached_tokens",
        "predicted_ttft_seconds",
        "probe",
        "replica",
        "request",
        "slot_was_free",
        "tokens",
        "tokens_ahead",
        "told",
        "uncached_tokens",
    )

    def __init__(
        self,
        *,
        replica: ReplicaState,
        request: RouteRequest,
        belief: Belief,
        now: float,
        predicted_cached_tokens: float,
        expected_cached_tokens: float,
        told: bool,
        accuracy: Accuracy,
        predicted_ttft_seconds: float,
        uncached_tokens: float,
        tokens_ahead: float,
        slot_was_free: bool,
        probe: bool,
    ) -> None:
        self.key: ReplicaKey = replica.key
        self.request = request
        self.replica = replica
        self.belief = belief
        self.phase = TicketPhase.PREFILL
        self.dispatched_at = now
        self.first_token_at: float | None = None
        self.heard = False
        """A stream past its first token whose client reads: its tokens are seen as they come."""
        self.tokens = 0
        self.predicted_cached_tokens = predicted_cached_tokens
        """As believed, before scaling by the replica's confidence."""
        self.expected_cached_tokens = expected_cached_tokens
        """What was reckoned with: what the engine told, or else the scaled belief."""
        self.told = told
        """Whether the engine told it."""
        self.accuracy = accuracy
        """Of the pool's predictions of that kind."""
        self.predicted_ttft_seconds = predicted_ttft_seconds
        self.uncached_tokens = uncached_tokens
        """Counted as pending prefill until the first token."""
        self.tokens_ahead = tokens_ahead
        """Pending prefill tokens of the replica just before this request."""
        self.slot_was_free = slot_was_free
        self.probe = probe
        self.batch_seconds_at_first_token = 0.0
