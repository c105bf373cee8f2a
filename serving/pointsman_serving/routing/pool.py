"""A pool's replicas and what was learned about all of them together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pointsman_api.route_table import BackendType, PoolEntry
from pointsman_serving.routing.accuracy import Accuracy
from pointsman_serving.routing.breaker import BreakerState
from pointsman_serving.routing.features import refused_by
from pointsman_serving.routing.kv.token_chains import TokenChains
from pointsman_serving.routing.latency import PoolLatency
from pointsman_serving.routing.lineup import Lineup
from pointsman_serving.routing.replica import HOUR_SECONDS, ReplicaState, faded
from pointsman_serving.routing.ring import DualRing
from pointsman_serving.routing.slow_start import SLOW_START_SECONDS
from pointsman_serving.routing.tokens import TokenModel
from pointsman_serving.routing.types import Api, ReplicaAddress, ReplicaKey

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pointsman_serving.routing.cache import FirstBlocks

_WITHOUT_EMBEDDINGS: Final = frozenset({"Transformers", "Simulated"})
_MEAN_SHARE: Final = 0.05
# A cached prefix keeps deciding among equals where an engine's times hide its prefill.
_LEAST_SECONDS_PER_TOKEN: Final = 2e-6

Rates = tuple[float, float, float, float, float, float, float, float, float, float]
"""Tokens of the template and per byte, tokens of an answer, seconds to the first token and more
per token, seconds per output token and more per sequence, dollars per token: fresh, cached, output.
"""


class FleetModels:
    """What all pools together have taught; what an unknown pool is taken for."""

    __slots__ = ("latency", "tokens")

    def __init__(self) -> None:
        self.latency = PoolLatency()
        self.tokens = TokenModel()


class PoolState:
    """One pool: its entry in the table, its replicas by key in order, and its models.

    Args:
        asked: somebody asks the health of ejected replicas that have a health path.
        slow_start_seconds: over which a replica that joins others, or returns to them, gets its
            slots; 0: at once.
    """

    __slots__ = (
        "_asked",
        "_draining",
        "_slow_start_seconds",
        "chains",
        "ejections",
        "entry",
        "estimated",
        "even_hour",
        "exact",
        "firsts",
        "latency",
        "least_even",
        "lineup",
        "mean_uncached_tokens",
        "named",
        "rates",
        "replicas",
        "restarts",
        "ring",
        "states",
        "tokens",
        "warming",
    )

    def __init__(
        self,
        entry: PoolEntry,
        *,
        fleet: FleetModels,
        seed: int,
        asked: bool = False,
        slow_start_seconds: float = SLOW_START_SECONDS,
    ) -> None:
        self.entry = entry
        self._asked = asked
        self._slow_start_seconds = slow_start_seconds
        self.latency = PoolLatency(fleet.latency)
        self.tokens = TokenModel(fleet.tokens)
        self.firsts: FirstBlocks = {}
        """Which first blocks any replica is believed to hold."""
        self.chains = TokenChains()
        """The prompts whose tokens are known, where the engines tell what they hold."""
        self.exact = Accuracy()
        """Of what the engines told."""
        self.estimated = Accuracy()
        """Of what was believed."""
        self.mean_uncached_tokens = 0.0
        """Of the requests sent lately."""
        self.ring = DualRing(seed=seed)
        self.replicas: dict[ReplicaKey, ReplicaState] = {}
        self.named: dict[str, ReplicaState] = {}
        """The same, by name alone."""
        self.states: tuple[ReplicaState, ...] = ()
        """The same, as a sequence."""
        self._draining: dict[ReplicaKey, ReplicaState] = {}
        self.warming: dict[ReplicaKey, ReplicaState] = {}
        """Those that get their slots by and by."""
        self.even_hour = 0
        """The hour by which the replicas' ``even_tokens`` are told."""
        self.least_even: float | None = None
        """The least of these; None: see ``find_least_even``."""
        self.lineup = Lineup()
        self.rates: Rates | None = None
        """What was learned and what is paid; None: see ``find_rates``."""
        self.ejections = 0
        self.restarts = 0
        """How often another process answered under the name of a replica."""

    @property
    def name(self) -> str:
        """The pool's key in the table."""
        return self.entry.name

    @property
    def draining(self) -> tuple[ReplicaState, ...]:
        """Replicas that are no longer listed and still have requests."""
        return tuple(self._draining.values())

    def serves(self, api: Api) -> bool:
        """Whether the pool's engine may know the endpoint.

        A vLLM engine may or may not embed, by its model: it answers 404 itself where it does not.
        """
        if api is not Api.EMBEDDINGS or self.entry.backend is BackendType.EXTERNAL:
            return True
        return self.entry.engine not in _WITHOUT_EMBEDDINGS

    def serves_features(self, features: frozenset[str]) -> bool:
        """Whether the pool's engine may have all of them."""
        return features.isdisjoint(refused_by(self.entry.engine))

    def has_room(self, now: float) -> bool:
        """Whether any replica could take a request now."""
        if self.warming:
            self.warm(now)
        return any(
            not state.full and not state.draining and state.breaker.allows(now)
            for state in self.states
        )

    def has_replica(self, now: float) -> bool:
        """Whether any replica serves, however busy it is."""
        return any(not state.draining and state.breaker.serves(now) for state in self.states)

    @property
    def capacity(self) -> int:
        """How many requests the replicas take at once."""
        return sum(state.most_in_flight for state in self.states)

    def find(self, key: ReplicaKey) -> ReplicaState | None:
        """A listed or draining replica."""
        return self.replicas.get(key) or self._draining.get(key)

    def set_replicas(self, addresses: Sequence[ReplicaAddress], *, now: float) -> None:
        """Take the full list of replicas; its order does not matter.

        Raises:
            ValueError: an address belongs to another pool.
        """
        self.prune()
        listed: dict[ReplicaKey, ReplicaAddress] = {}
        for address in sorted(addresses, key=lambda each: (each.key, each.host, each.port)):
            if address.key.pool != self.name:
                raise ValueError(
                    f"replica {address.key.replica!r} belongs to pool {address.key.pool!r}, "
                    f"not to {self.name!r}; list every pool's replicas by themselves"
                )
            listed.setdefault(address.key, address)
        known = self.replicas
        replicas: dict[ReplicaKey, ReplicaState] = {}
        newcomers: list[ReplicaState] = []
        cold: list[ReplicaState] = []
        for key, address in listed.items():
            state = known.get(key) or self._draining.pop(key, None)
            if state is None:
                state = ReplicaState(
                    address,
                    latency=self.latency,
                    tokens=self.tokens,
                    firsts=self.firsts,
                    asked=self._asked,
                    now=now,
                )
                newcomers.append(state)
                cold.append(state)
            elif state.address != address and _move(state, address, now):
                cold.append(state)
            state.draining = False
            replicas[key] = state
        for key, state in known.items():
            if key not in replicas:
                state.draining = True
                if state.load.in_flight:
                    self._draining[key] = state
                else:
                    state.cache.clear()
        self._level(newcomers, replicas, now)
        self.replicas = replicas
        self.states = tuple(replicas.values())
        self.named = {state.name: state for state in self.states}
        self.set_even_hour(int(now // HOUR_SECONDS))
        self.ring.set_members(key.replica for key in replicas)
        self.warming = {key: state for key, state in self.warming.items() if key in replicas}
        for state in cold:
            self._start_slowly(state, now)
        self.warm(now)

    def warm(self, now: float) -> None:
        """Raise the limits of those that get their slots by and by."""
        over_seconds = self._slow_start_seconds
        for key, state in list(self.warming.items()):
            if state.warm(now, over_seconds=over_seconds):
                del self.warming[key]

    def succeeded(self, state: ReplicaState, *, now: float, probe: bool, whole: bool) -> None:
        """Note a first token or, with ``whole``, a complete answer of a replica."""
        if state.breaker.succeeded(now, probe=probe, whole=whole):
            self._start_slowly(state, now)

    def failed(self, state: ReplicaState, *, now: float, hard: bool) -> None:
        """Note a failure of a replica; see ``Scheduler.failed``.

        Failures alone never eject more than half of the replicas: where all fail, the cause is
        elsewhere, and those that are left would drown.
        """
        may_eject = hard or self._out() < max(1, len(self.states) // 2)
        if state.breaker.failed(now, hard=hard, may_eject=may_eject):
            self.ejections += 1
            # It may come back under the same name as a new process.
            state.cache.clear()

    def instance(self, state: ReplicaState, value: str, *, now: float) -> bool:
        """Take the name of a replica's life; True where another one has begun."""
        before, state.instance = state.instance, value
        if not before or before == value:
            return False
        self.restarts += 1
        state.begin_anew(now)
        self._start_slowly(state, now)
        self.warm(now)
        return True

    def _out(self) -> int:
        return sum(state.breaker.state is not BreakerState.CLOSED for state in self.states)

    def _start_slowly(self, state: ReplicaState, now: float) -> None:
        """Give a cold replica its slots by and by, where warm ones can take the rest."""
        oldest = now - self._slow_start_seconds
        if self._slow_start_seconds > 0.0 and any(
            other is not state
            and max(other.listed_at, other.breaker.closed_at) <= oldest
            and other.warming_since is None
            and other.breaker.state is BreakerState.CLOSED
            for other in self.states
        ):
            state.warming_since = now
            self.warming[state.key] = state

    def assign(self, state: ReplicaState, tokens: float, *, number: int, now: float) -> None:
        """Note the dispatch of that number, of so many uncached tokens, to a replica."""
        hour = int(now // HOUR_SECONDS)
        if hour != self.even_hour:
            self.set_even_hour(hour)
        if state.even_tokens == self.least_even:
            self.least_even = None
        state.assign(tokens, number=number, now=now)
        self.note_uncached(tokens)

    def set_even_hour(self, hour: int) -> None:
        """Tell the replicas' ``even_tokens`` by another hour."""
        self.even_hour = hour
        self.least_even = None
        for state in self.states:
            state.set_even_hour(hour)
        self.lineup.set(self.states)

    def least_assigned_tokens(self, now: float) -> float:
        """The least that any replica was sent lately."""
        least = self.find_least_even() if self.least_even is None else self.least_even
        return least * faded(self.even_hour, now)

    def find_least_even(self) -> float:
        """The least of the replicas' ``even_tokens``."""
        self.least_even = least = self.lineup.least_even()
        return least

    def find_rates(self) -> Rates:
        """The pool's rates; kept until the next answer where they are the pool's own."""
        tokens, latency, pricing = self.tokens, self.latency, self.entry.pricing
        base, per_token = latency.prefill
        rates = (
            *tokens.prompt,
            tokens.mean_answer_tokens,
            base,
            max(per_token, _LEAST_SECONDS_PER_TOKEN),
            *latency.decode,
            pricing.input_dollars,
            pricing.cached_input_dollars,
            pricing.output_dollars,
        )
        if tokens.learned and latency.learned:
            self.rates = rates
        return rates

    def note_uncached(self, tokens: float) -> None:
        """Learn how much prefill a request of this pool costs, on average."""
        self.mean_uncached_tokens += (tokens - self.mean_uncached_tokens) * _MEAN_SHARE

    def prune(self) -> None:
        """Forget the replicas that have drained."""
        for key in [key for key, state in self._draining.items() if not state.load.in_flight]:
            self._draining.pop(key).cache.clear()

    def _level(
        self,
        newcomers: Sequence[ReplicaState],
        replicas: dict[ReplicaKey, ReplicaState],
        now: float,
    ) -> None:
        """Start newcomers at the mean of the others, or every tie would go to them for minutes."""
        veterans = len(replicas) - len(newcomers)
        if not veterans:
            return
        mean = sum(state.assigned_tokens(now) for state in replicas.values()) / veterans
        for state in newcomers:
            state.start_assigned(mean, now=now)


def _move(state: ReplicaState, address: ReplicaAddress, now: float) -> bool:
    """Take a new address; True where it is another process: without cache, without failures."""
    old = state.address
    state.move_to(address)
    if (old.host, old.port) == (address.host, address.port):
        return False
    state.instance = ""
    state.begin_anew(now)
    return True
