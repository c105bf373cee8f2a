"""An instance as the simulation runs it, and as arms see it: now, or as it was a while ago."""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from pointsman_serving.simulator.engine import FastEngine
from pointsman_serving.simulator.request import BLOCK_TOKENS

if TYPE_CHECKING:
    from collections.abc import Container, Sequence

    from pointsman_serving.engines.timing import EngineProfile
    from pointsman_serving.simulator.arm import InstanceView
    from pointsman_serving.simulator.fleet import Group
    from pointsman_serving.simulator.request import SimRequest


class Clock:
    """What time it is."""

    __slots__ = ("now",)

    def __init__(self) -> None:
        self.now = 0.0


class Instance:
    """One instance; satisfies ``arm.InstanceView`` with what is true now."""

    __slots__ = (
        "_clock",
        "_follow_cache",
        "alive",
        "engine",
        "group",
        "index",
        "pool",
        "profile",
        "scheduled_at",
        "slots",
    )

    def __init__(self, index: int, group: Group, clock: Clock, *, follow_cache: bool) -> None:
        self.index = index
        self.group = group
        self.pool = group.pool
        self.profile: EngineProfile = group.profile
        self.slots = group.slots or group.profile.max_sequences
        self.alive = True
        self.scheduled_at = math.inf
        """When the simulation will look at the engine next."""
        self._clock = clock
        self._follow_cache = follow_cache
        self.engine = FastEngine(group.profile, follow_cache=follow_cache)

    def restart(self) -> None:
        """Begin anew with nothing in it."""
        self.engine = FastEngine(self.profile, follow_cache=self._follow_cache)

    @property
    def input_dollars(self) -> float:
        """See ``arm.InstanceView``."""
        return self.group.input_dollars

    @property
    def output_dollars(self) -> float:
        """See ``arm.InstanceView``."""
        return self.group.output_dollars

    @property
    def observed_at(self) -> float:
        """Now."""
        return self._clock.now

    @property
    def running(self) -> int:
        """See ``arm.InstanceView``."""
        return len(self.engine.running)

    @property
    def waiting(self) -> int:
        """See ``arm.InstanceView``."""
        return len(self.engine.waiting)

    @property
    def pending_prefill_tokens(self) -> int:
        """See ``arm.InstanceView``."""
        return self.engine.pending_prefill_tokens

    @property
    def pending_prefill_seconds(self) -> float:
        """See ``arm.InstanceView``."""
        return self.engine.pending_prefill_seconds

    @property
    def pending_decode_tokens(self) -> int:
        """See ``arm.InstanceView``."""
        return self.engine.seen(self._clock.now)[0]

    @property
    def context_tokens(self) -> int:
        """See ``arm.InstanceView``."""
        return self.engine.seen(self._clock.now)[1]

    @property
    def used_kv_tokens(self) -> int:
        """See ``arm.InstanceView``."""
        return self.engine.seen(self._clock.now)[2] * BLOCK_TOKENS

    def cached_tokens(self, request: SimRequest) -> int:
        """See ``arm.InstanceView``."""
        most = (request.prompt_tokens - 1) // BLOCK_TOKENS
        return self.engine.cache.match(request.blocks, most) * BLOCK_TOKENS

    def queued(self) -> Sequence[SimRequest]:
        """See ``arm.InstanceView``."""
        return [sequence.request for sequence in self.engine.waiting]


class _Reading(NamedTuple):
    """The metrics of an instance at one time, and what its cache has gained and lost until then."""

    at: float
    running: int
    waiting: int
    pending_prefill_tokens: int
    pending_prefill_seconds: float
    to_generate: int
    context_tokens: int
    held_blocks: int
    restarted: bool
    cache_changes: tuple[int, ...]


class LateInstance:
    """An instance as it was some time ago; satisfies ``arm.InstanceView``.

    Its queue and whether it lives are true now: a gateway knows what it has sent and not got back,
    and sees a connection break.
    """

    __slots__ = (
        "_at",
        "_clock",
        "_coming",
        "_engine",
        "_held",
        "_instance",
        "_lag_seconds",
        "_reading",
    )

    def __init__(self, instance: Instance, clock: Clock, lag_seconds: float) -> None:
        self._instance = instance
        self._clock = clock
        self._lag_seconds = lag_seconds
        self._engine = instance.engine
        self._coming: deque[_Reading] = deque()
        self._reading = _Reading(clock.now, 0, 0, 0, 0.0, 0, 0, 0, False, ())
        self._held: set[int] = set()
        self._at = -math.inf

    def record(self) -> None:
        """Read the metrics; call it whenever they have changed."""
        instance = self._instance
        engine = instance.engine
        now = self._clock.now
        restarted = engine is not self._engine
        self._engine = engine
        changes = engine.cache.changes
        taken: tuple[int, ...] = ()
        if changes:
            taken = tuple(changes)
            changes.clear()
        self._coming.append(
            _Reading(
                now,
                len(engine.running),
                len(engine.waiting),
                engine.pending_prefill_tokens,
                engine.pending_prefill_seconds,
                *engine.seen(now),
                restarted,
                taken,
            )
        )

    def _seen(self) -> _Reading:
        now = self._clock.now
        if now != self._at:
            self._at = now
            coming = self._coming
            until = now - self._lag_seconds
            while coming and coming[0].at <= until:
                reading = self._reading = coming.popleft()
                if reading.restarted:
                    self._held.clear()
                for block in reading.cache_changes:
                    if block >= 0:
                        self._held.add(block)
                    else:
                        self._held.discard(~block)
        return self._reading

    @property
    def index(self) -> int:
        """See ``arm.InstanceView``."""
        return self._instance.index

    @property
    def pool(self) -> str:
        """See ``arm.InstanceView``."""
        return self._instance.pool

    @property
    def profile(self) -> EngineProfile:
        """See ``arm.InstanceView``."""
        return self._instance.profile

    @property
    def slots(self) -> int:
        """See ``arm.InstanceView``."""
        return self._instance.slots

    @property
    def input_dollars(self) -> float:
        """See ``arm.InstanceView``."""
        return self._instance.group.input_dollars

    @property
    def output_dollars(self) -> float:
        """See ``arm.InstanceView``."""
        return self._instance.group.output_dollars

    @property
    def alive(self) -> bool:
        """Whether it lives now."""
        return self._instance.alive

    @property
    def observed_at(self) -> float:
        """See ``arm.InstanceView``."""
        return self._clock.now - self._lag_seconds

    @property
    def running(self) -> int:
        """See ``arm.InstanceView``."""
        return self._seen().running

    @property
    def waiting(self) -> int:
        """See ``arm.InstanceView``."""
        return self._seen().waiting

    @property
    def pending_prefill_tokens(self) -> int:
        """See ``arm.InstanceView``."""
        return self._seen().pending_prefill_tokens

    @property
    def pending_prefill_seconds(self) -> float:
        """See ``arm.InstanceView``."""
        return self._seen().pending_prefill_seconds

    @property
    def pending_decode_tokens(self) -> int:
        """See ``arm.InstanceView``."""
        return self._seen().to_generate

    @property
    def context_tokens(self) -> int:
        """See ``arm.InstanceView``."""
        return self._seen().context_tokens

    @property
    def used_kv_tokens(self) -> int:
        """See ``arm.InstanceView``."""
        return self._seen().held_blocks * BLOCK_TOKENS

    def cached_tokens(self, request: SimRequest) -> int:
        """See ``arm.InstanceView``."""
        self._seen()
        held = self._held
        count = 0
        for block in request.shareable_blocks:
            if block not in held:
                break
            count += 1
        return count * BLOCK_TOKENS

    def queued(self) -> Sequence[SimRequest]:
        """Its queue now."""
        return self._instance.queued()


class Views:
    """All instances as arms see them; satisfies ``arm.FleetView``."""

    __slots__ = ("_cached", "alive", "instances")

    def __init__(self) -> None:
        self.instances: list[InstanceView] = []
        self.alive: list[InstanceView] = []
        self._cached: list[Container[int]] = []
        """The blocks in each one's cache, where these are known as of now."""

    def add(self, view: InstanceView) -> None:
        """Take one more instance."""
        self.instances.append(view)
        self.look()

    def look(self) -> None:
        """Find out anew which of them live."""
        self.alive = [each for each in self.instances if each.alive]
        self._cached = [
            each.engine.cache.references for each in self.instances if isinstance(each, Instance)
        ]

    def cached_tokens(self, request: SimRequest) -> list[int]:
        """See ``arm.FleetView``."""
        instances = self.instances
        if len(self._cached) < len(instances):
            return [each.cached_tokens(request) for each in instances]
        if not request.blocks:
            return [0] * len(instances)
        # In a large fleet most have not even the first block.
        first = request.blocks[0]
        return [
            each.cached_tokens(request) if first in cached else 0
            for each, cached in zip(instances, self._cached, strict=True)
        ]
