"""What came of a simulation: each request's times, and how busy each instance was."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from pointsman_serving.simulator.request import SimRequest


class Record:
    """What came of one request. Times are seconds of the simulation; None: it did not happen."""

    __slots__ = (
        "cached_tokens",
        "dispatched_at",
        "dispatches",
        "finished_at",
        "first_token_at",
        "gateway",
        "instance",
        "output_tokens",
        "rejected_at",
        "request",
        "told_tokens",
    )

    def __init__(self, request: SimRequest, gateway: int) -> None:
        self.request = request
        self.gateway = gateway
        self.instance = -1
        """Where it was last."""
        self.dispatches = 0
        """How often it was sent; migrations are not counted."""
        self.dispatched_at: float | None = None
        """For the first time."""
        self.first_token_at: float | None = None
        self.finished_at: float | None = None
        self.rejected_at: float | None = None
        self.cached_tokens = 0
        """Of its prompt, found by the engine that answered."""
        self.output_tokens = 0
        self.told_tokens = 0

    @property
    def ttft_seconds(self) -> float:
        """From arrival to first token; infinite where none came."""
        if self.first_token_at is None:
            return float("inf")
        return self.first_token_at - self.request.arrival_seconds

    @property
    def e2e_seconds(self) -> float:
        """From arrival to the last token; infinite where it did not come."""
        if self.finished_at is None:
            return float("inf")
        return self.finished_at - self.request.arrival_seconds

    @property
    def wait_seconds(self) -> float:
        """From arrival until it was sent to an instance; infinite where it was not."""
        if self.dispatched_at is None:
            return float("inf")
        return self.dispatched_at - self.request.arrival_seconds


class Sample(NamedTuple):
    """How busy the instances were at one time, by index."""

    at: float
    requests: tuple[int, ...]
    """Running and waiting."""
    pending_prefill_tokens: tuple[int, ...]


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What came of a simulation."""

    records: list[Record]
    """In order of arrival."""
    samples: list[Sample] = field(default_factory=list)
    ended_at: float = 0.0
    gave_up: bool = False
    """It was broken off because too many were late; see ``Simulation``."""
    pools: list[str] = field(default_factory=list)
    """By instance."""
    prices: list[tuple[float, float]] = field(default_factory=list)
    """Dollars for a prompt token and for an answer token, by instance."""
    preemptions: int = 0
    migrations: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class GiveUp:
    """When a run is broken off: once so many requests are late that nothing can be proved."""

    ttft_seconds: float
    most_late: int
    warm_up: int = 0
    """So many requests, the first ones, do not count."""
