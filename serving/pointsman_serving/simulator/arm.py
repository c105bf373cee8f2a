"""What every rule of choosing an instance is to the simulator: an arm.

An arm stands for one gateway. It is told of its own requests only, sees the fleet through views
that may be stale, and answers with actions. It owns its randomness (``seed``) and knows no clock
but the ``now`` that it is given.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, NamedTuple, Protocol

from pointsman_serving.engines.timing import EngineProfile
from pointsman_serving.simulator.request import SimRequest


class InstanceView(Protocol):
    """What is known of one instance: its metrics and cache as of ``observed_at``."""

    @property
    def index(self) -> int:
        """Its number in the fleet; never used twice."""
        ...

    @property
    def pool(self) -> str:
        """The name of its model."""
        ...

    @property
    def profile(self) -> EngineProfile:
        """What it can hold and how fast it is when nothing slows it down."""
        ...

    @property
    def slots(self) -> int:
        """How many sequences it serves at its nominal speed."""
        ...

    @property
    def input_dollars(self) -> float:
        """Price of a prompt token."""
        ...

    @property
    def output_dollars(self) -> float:
        """Price of an answer token."""
        ...

    @property
    def alive(self) -> bool:
        """False: it was removed or has crashed; nothing may be dispatched to it."""
        ...

    @property
    def observed_at(self) -> float:
        """When all this was true."""
        ...

    @property
    def running(self) -> int:
        """Sequences in its batch, those in prefill among them."""
        ...

    @property
    def waiting(self) -> int:
        """Requests in its queue."""
        ...

    @property
    def pending_prefill_tokens(self) -> int:
        """Prompt tokens that are not yet computed, queued and running; cached ones left out."""
        ...

    @property
    def pending_prefill_seconds(self) -> float:
        """The time that computing them takes alone, attention to their context included."""
        ...

    @property
    def pending_decode_tokens(self) -> int:
        """Answer tokens still to come, queued and running. Only an oracle knows this number."""
        ...

    @property
    def context_tokens(self) -> int:
        """Tokens in the cache of the sequences that decode."""
        ...

    @property
    def used_kv_tokens(self) -> int:
        """Tokens of cache that sequences hold, in whole blocks; idle cached blocks are free."""
        ...

    def cached_tokens(self, request: SimRequest) -> int:
        """Tokens of the prompt's prefix in its cache, in whole blocks, at most all but one."""
        ...

    def queued(self) -> Sequence[SimRequest]:
        """The requests in its queue, next first."""
        ...


class FleetView(Protocol):
    """All instances."""

    @property
    def instances(self) -> Sequence[InstanceView]:
        """By index, dead ones among them."""
        ...

    @property
    def alive(self) -> Sequence[InstanceView]:
        """Those that something may be dispatched to, by index."""
        ...

    def cached_tokens(self, request: SimRequest) -> Sequence[int]:
        """``InstanceView.cached_tokens`` of all ``instances``, in one walk over the prompt."""
        ...


# What an arm is told. ``instance`` is an ``InstanceView.index``.


class FirstToken(NamedTuple):
    """The prefill of a request is done."""

    request: SimRequest
    instance: int
    cached_tokens: int
    """What the engine had of it, as its usage says."""


class Tokens(NamedTuple):
    """More of an answer came; told only to arms with ``tokens_every_seconds``."""

    request: SimRequest
    instance: int
    new: int
    """Since the last time; the first token is among them."""


class Finished(NamedTuple):
    """The answer is complete."""

    request: SimRequest
    instance: int
    output_tokens: int


class Failed(NamedTuple):
    """The instance has gone with the request on it. Its ``arrive`` follows, once more."""

    request: SimRequest
    instance: int


class InstanceAdded(NamedTuple):
    """There is one more instance, or a crashed one is back, empty."""

    instance: int


class InstanceRemoved(NamedTuple):
    """Nothing may be dispatched to it any more.

    Where it was removed, its requests go on to their end; where it has crashed, a ``Failed`` for
    each of them follows.
    """

    instance: int
    crashed: bool


Event = FirstToken | Tokens | Finished | Failed | InstanceAdded | InstanceRemoved


# What an arm may do. ``instance`` is an ``InstanceView.index``.


class Dispatch(NamedTuple):
    """Send a request, arrived just now or earlier, to an instance."""

    request: SimRequest
    instance: int


class Reject(NamedTuple):
    """Answer at once that it cannot be served in time; counts as a failure."""

    request: SimRequest


class Migrate(NamedTuple):
    """Move a request that waits in an engine's queue; nothing happens if it no longer does."""

    request_id: str
    to_instance: int


Action = Dispatch | Reject | Migrate


class Arm(ABC):
    """One gateway with one rule.

    Parameters of a rule are keyword arguments with the published defaults; each takes ``seed``.
    """

    name: ClassVar[str]
    """How tables call it."""

    tokens_every_seconds: float | None = None
    """How often it is told of new tokens of a running answer; None: never."""

    wake_at: float | None = None
    """When ``wake`` is to be called; read after each call of the arm, and moved on by ``wake``."""

    @abstractmethod
    def arrive(self, request: SimRequest, view: FleetView, now: float) -> Sequence[Action]:
        """Take a request; one that is neither dispatched nor rejected is kept by the arm."""

    def event(self, event: Event, view: FleetView, now: float) -> Sequence[Action]:
        """Take note of something."""
        return ()

    def wake(self, view: FleetView, now: float) -> Sequence[Action]:
        """Act because ``wake_at`` has come."""
        return ()


class ImmediateArm(Arm):
    """An arm that sends every request on as it comes."""

    @abstractmethod
    def choose(self, request: SimRequest, view: FleetView, now: float) -> int:
        """The index of a living instance; ``view.alive`` is never empty here."""

    def arrive(self, request: SimRequest, view: FleetView, now: float) -> Sequence[Action]:
        """Dispatch to the chosen instance; reject where there is none."""
        if not view.alive:
            return (Reject(request),)
        return (Dispatch(request, self.choose(request, view, now)),)
