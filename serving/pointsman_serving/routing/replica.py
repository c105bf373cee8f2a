"""Everything the scheduler knows of one replica."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from pointsman_serving.routing.breaker import Breaker
from pointsman_serving.routing.cache import CacheEstimate
from pointsman_serving.routing.latency import PoolLatency, ReplicaLatency
from pointsman_serving.routing.load import ReplicaLoad, dispatch_credit
from pointsman_serving.routing.slow_start import effective_slots

if TYPE_CHECKING:
    from pointsman_serving.routing.cache import FirstBlocks
    from pointsman_serving.routing.tokens import TokenModel
    from pointsman_serving.routing.types import ReplicaAddress, ReplicaKey

HOUR_SECONDS: Final = 3_600.0
_ASSIGNED_HALF_LIFE_SECONDS: Final = 60.0
# A clock that jumps must not overflow.
_MOST_HALVINGS: Final = 64.0

# Of a batch that decodes, tokens come many times a second.
_SILENT_SECONDS: Final = 1.0


class ReplicaState:
    """Load, believed cache, latency and breaker of one replica; starts empty."""

    __slots__ = (
        "address",
        "asked",
        "breaker",
        "cache",
        "draining",
        "even_hour",
        "even_tokens",
        "instance",
        "key",
        "last_assigned",
        "latency",
        "listed_at",
        "load",
        "most_in_flight",
        "name",
        "slots",
        "tokens",
        "warming_since",
    )

    def __init__(
        self,
        address: ReplicaAddress,
        *,
        latency: PoolLatency,
        tokens: TokenModel,
        firsts: FirstBlocks | None = None,
        asked: bool = False,
        now: float = 0.0,
    ) -> None:
        self.key: ReplicaKey = address.key
        self.name = address.key.replica
        self.load = ReplicaLoad()
        self.cache = CacheEstimate(firsts=firsts)
        self.latency = ReplicaLatency(latency)
        self.tokens = tokens
        """Shared by the pool."""
        self.asked = asked
        """Somebody asks the health of replicas that have one."""
        self.listed_at = now
        """When it was first seen, or began anew."""
        self.warming_since: float | None = None
        """Since when it gets its slots by and by; None: it has them all."""
        self.instance = ""
        """The name of the engine's life, where the engine tells it."""
        self.draining = False
        """No longer listed: it finishes what it has and gets nothing new."""
        self.last_assigned = 0
        """Number of the dispatch that went there last; 0: none did."""
        self.even_tokens = 0.0
        """The tokens sent there lately, as what they would have grown from at the hour's start:
        all fade alike, so these can be compared at any time within the hour."""
        self.even_hour = 0
        self.move_to(address)
        self.breaker = self._new_breaker()

    def move_to(self, address: ReplicaAddress) -> None:
        """Take a new address of the same replica."""
        self.address = address
        self.slots = max(1, address.sequence_slots)
        self.most_in_flight = self.slots + dispatch_credit(self.slots)

    def begin_anew(self, now: float) -> None:
        """Forget what was learned of the process before: another one answers under this name."""
        self.cache.clear()
        self.load.forget_reports()
        self.breaker = self._new_breaker()
        self.listed_at = now

    def warm(self, now: float, *, over_seconds: float) -> bool:
        """Set how many requests it may get while it is cold; True once it is warm."""
        slots = self.slots
        if self.warming_since is not None:
            age = now - self.warming_since
            slots = effective_slots(slots, age, over_seconds=over_seconds)
            if age >= over_seconds:
                self.warming_since = None
        self.most_in_flight = slots + dispatch_credit(slots)
        return self.warming_since is None

    def _new_breaker(self) -> Breaker:
        return Breaker(asked=self.asked and bool(self.address.health_path))

    @property
    def full(self) -> bool:
        """Whether it may get no further request before one ends."""
        return self.load.in_flight >= self.most_in_flight

    def hesitates(self, now: float) -> bool:
        """Whether its streams have stopped for longer than the prompts that it reads explain."""
        silent_seconds = self.load.silent_seconds(now)
        if silent_seconds <= _SILENT_SECONDS:
            return False
        prefill_seconds = self.latency.pool.prefill_at(self.load.pending_tokens)
        prefill_seconds *= self.latency.prefill_factor.at(now)
        return silent_seconds > _SILENT_SECONDS + 2.0 * prefill_seconds

    def assigned_tokens(self, now: float) -> float:
        """Uncached tokens sent there lately, fading by half in a minute."""
        return self.even_tokens * faded(self.even_hour, now)

    def assign(self, tokens: float, *, number: int, now: float) -> None:
        """Note the dispatch of that number, of so many uncached tokens."""
        self.start_assigned(self.assigned_tokens(now) + tokens, now=now)
        self.last_assigned = number

    def start_assigned(self, tokens: float, *, now: float) -> None:
        """Set what was sent lately: a newcomer starts at its pool's mean, or all went there."""
        self.set_even_hour(int(now // HOUR_SECONDS))
        self.even_tokens = tokens / faded(self.even_hour, now)

    def set_even_hour(self, hour: int) -> None:
        """Tell ``even_tokens`` by another hour."""
        if hour != self.even_hour:
            self.even_tokens *= faded(self.even_hour, hour * HOUR_SECONDS)
            self.even_hour = hour


def faded(hour: int, now: float) -> float:
    """What is left now of a token that was sent at the beginning of an hour; above 1 before."""
    halvings = (now - hour * HOUR_SECONDS) / _ASSIGNED_HALF_LIFE_SECONDS
    return math.exp2(-max(halvings, -_MOST_HALVINGS))
