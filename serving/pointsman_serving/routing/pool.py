"""A pool's replicas and what was learned about all of them together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pointsman_api.route_table import BackendType, PoolEntry
from pointsman_serving.routing.breaker import Breaker
from pointsman_serving.routing.features import refused_by
from pointsman_serving.routing.latency import PoolLatency
from pointsman_serving.routing.replica import ReplicaState
from pointsman_serving.routing.ring import DualRing
from pointsman_serving.routing.tokens import TokenModel
from pointsman_serving.routing.types import Api, ReplicaAddress, ReplicaKey

if TYPE_CHECKING:
    from collections.abc import Sequence

_WITHOUT_EMBEDDINGS: Final = frozenset({"Transformers", "Simulated"})
_MEAN_SHARE: Final = 0.05


class FleetModels:
    """What all pools together have taught; what an unknown pool is taken for."""

    __slots__ = ("latency", "tokens")

    def __init__(self) -> None:
        self.latency = PoolLatency()
        self.tokens = TokenModel()


class PoolState:
    """One pool: its entry in the table, its replicas by key in order, and its models."""

    __slots__ = (
        "_draining",
        "entry",
        "latency",
        "mean_uncached_tokens",
        "replicas",
        "ring",
        "states",
        "tokens",
    )

    def __init__(self, entry: PoolEntry, *, fleet: FleetModels, seed: int) -> None:
        self.entry = entry
        self.latency = PoolLatency(fleet.latency)
        self.tokens = TokenModel(fleet.tokens)
        self.mean_uncached_tokens = 0.0
        """Of the requests sent lately."""
        self.ring = DualRing(seed=seed)
        self.replicas: dict[ReplicaKey, ReplicaState] = {}
        self.states: tuple[ReplicaState, ...] = ()
        """The same, as a sequence."""
        self._draining: dict[ReplicaKey, ReplicaState] = {}

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
        return any(
            not state.full and not state.draining and state.breaker.allows(now)
            for state in self.states
        )

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
        newcomers = []
        for key, address in listed.items():
            state = known.get(key) or self._draining.pop(key, None)
            if state is None:
                state = ReplicaState(address, latency=self.latency, tokens=self.tokens)
                newcomers.append(state)
            elif state.address != address:
                _move(state, address)
            state.draining = False
            replicas[key] = state
        for key, state in known.items():
            if key not in replicas:
                state.draining = True
                if state.load.in_flight:
                    self._draining[key] = state
        self._level(newcomers, replicas, now)
        self.replicas = replicas
        self.states = tuple(replicas.values())
        self.ring.set_members(key.replica for key in replicas)

    def note_uncached(self, tokens: float) -> None:
        """Learn how much prefill a request of this pool costs, on average."""
        self.mean_uncached_tokens += (tokens - self.mean_uncached_tokens) * _MEAN_SHARE

    def prune(self) -> None:
        """Forget the replicas that have drained."""
        for key in [key for key, state in self._draining.items() if not state.load.in_flight]:
            del self._draining[key]

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


def _move(state: ReplicaState, address: ReplicaAddress) -> None:
    old = state.address
    state.move_to(address)
    if (old.host, old.port) != (address.host, address.port):
        # The same name at another address is another process: it has no cache and no failures.
        state.cache.clear()
        state.breaker = Breaker()
