"""Pointsman's own gateway as an arm: the same scheduler and the same queue, on virtual time.

``routing.Scheduler``, ``gateway.Dispatcher`` with its ``WaitQueue`` and ``gateway.Assignment`` are
the gateway's own objects. What stands here instead of ``gateway.Relay`` is a request without
bytes: it has no connection, no client and no retries of its own.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Final, cast

from pointsman_serving.gateway.dispatcher import Dispatcher
from pointsman_serving.gateway.phase import Phase
from pointsman_serving.gateway.queue_counts import QueueCounts
from pointsman_serving.routing.queue import WaitQueue
from pointsman_serving.routing.scheduler import Scheduler
from pointsman_serving.routing.types import (
    LoadReport,
    ReplicaAddress,
    ReplicaKey,
)
from pointsman_serving.simulator.arm import (
    Action,
    Arm,
    Event,
    Finished,
    FirstToken,
    InstanceAdded,
    InstanceRemoved,
    Reject,
    Tokens,
)
from pointsman_serving.simulator.relay import SimulatedRelay
from pointsman_serving.simulator.route_prompts import root_of, route_request
from pointsman_serving.simulator.tables import MODEL, fleet_table

if TYPE_CHECKING:
    from pointsman_api.route_table import RouteTable
    from pointsman_serving.simulator.arm import FleetView, InstanceView
    from pointsman_serving.simulator.request import SimRequest

# As ``gateway.plane`` has it.
_SWEEP_SECONDS: Final = 0.25
_MAX_QUEUED: Final = 1_000_000


class _Loop:
    """The part of an event loop that the dispatcher uses."""

    def __init__(self) -> None:
        self._soon: deque[Callable[[], object]] = deque()

    def call_soon(self, callback: Callable[[], object]) -> None:
        """Call it before virtual time goes on."""
        self._soon.append(callback)

    def settle(self) -> None:
        """Call all that is due."""
        while self._soon:
            self._soon.popleft()()


class Pointsman(Arm):
    """The gateway with one RoutePolicy over all pools of the fleet.

    Args:
        seed: the scheduler's; gateways that shall agree need the same.
        ttft_slo_seconds: the rule's objective; 0: it has none.
        reject: early rejection of the hopeless: ``overload.action`` of the rule.
        quality_per_second, quality_per_dollar: ``objective`` of the rule.
        sticky_seconds: how long a conversation keeps its model.
        queue_seconds: how long a request may wait in the gateway.
        sequence_slots: how many requests an instance is given at once; 0: what its engine runs.
        table: a route table to use instead, whose pools have the names of the fleet's; then the
            arguments from ``ttft_slo_seconds`` to ``queue_seconds`` say nothing.
        model: the name that requests ask for.
    """

    name: ClassVar[str] = "pointsman"
    # A replica whose streams bring nothing for a second is taken for stuck.
    tokens_every_seconds = 0.9

    def __init__(
        self,
        *,
        seed: int = 0,
        ttft_slo_seconds: float = 5.0,
        reject: bool = False,
        quality_per_second: float = 0.01,
        quality_per_dollar: float = 20.0,
        sticky_seconds: float = 3600.0,
        queue_seconds: float = 600.0,
        sequence_slots: int = 0,
        table: RouteTable | None = None,
        model: str = MODEL,
    ) -> None:
        self._seed = seed
        self._sequence_slots = sequence_slots
        self._given_table = table
        self._model = model
        self._rule_fields = {
            "ttft_slo_seconds": ttft_slo_seconds,
            "reject": reject,
            "quality_per_second": quality_per_second,
            "quality_per_dollar": quality_per_dollar,
            "sticky_seconds": sticky_seconds,
            "queue_seconds": queue_seconds,
        }
        self.now = 0.0
        self.view: FleetView | None = None
        self.actions: list[Action] = []
        self.queue: WaitQueue[Any] = WaitQueue(limit=_MAX_QUEUED)
        self._loop = _Loop()
        self._instances: dict[ReplicaKey, int] = {}
        self._lives: dict[int, int] = {}
        self._relays: dict[SimRequest, SimulatedRelay] = {}
        self._roots: set[int] = set()
        self._timers: list[tuple[float, int, SimulatedRelay]] = []
        self._order = itertools.count()
        self._sweep_at: float | None = None
        self.scheduler: Scheduler
        self.dispatcher: Dispatcher

    # As the simulator calls it.

    def arrive(self, request: SimRequest, view: FleetView, now: float) -> Sequence[Action]:
        """Let a request in, or in again after its instance has crashed."""
        self._look(view, now)
        relay = self._relays.get(request)
        if relay is None:
            root = root_of(request)
            continues = root in self._roots
            self._roots.add(root)
            routed = route_request(request, model=self._model, now=now, continues=continues)
            found = self.scheduler.route(routed)
            if found is None:
                return (Reject(request),)
            relay = SimulatedRelay(
                self, request, routed, found[1], (found[0].policy, found[1].name)
            )
            self._relays[request] = relay
        relay.begin()
        return self._settle()

    def event(self, event: Event, view: FleetView, now: float) -> Sequence[Action]:
        """Tell the scheduler what a stream or the list of replicas has brought."""
        self._look(view, now)
        if isinstance(event, InstanceAdded | InstanceRemoved):
            if isinstance(event, InstanceAdded):
                self._lives[event.instance] = self._lives.get(event.instance, -1) + 1
            self._publish((view.instances[event.instance].pool,))
            return self._settle()
        relay = self._relays[event.request]
        if isinstance(event, Tokens):
            relay.counted(event.new)
            return ()
        if isinstance(event, FirstToken):
            relay.cached_tokens = event.cached_tokens
            self._report(view.instances[event.instance])
            relay.brought(1)
        elif isinstance(event, Finished):
            relay.ended(event.output_tokens)
            del self._relays[event.request]
        else:
            relay.failed(event)
        return self._settle()

    def wake(self, view: FleetView, now: float) -> Sequence[Action]:
        """Sweep, and tell those whose time is over."""
        self._look(view, now)
        while self._timers and self._timers[0][0] <= now:
            at, _, relay = heapq.heappop(self._timers)
            if relay.phase is Phase.QUEUED and relay.late_at == at:
                relay.stop(self.dispatcher.late(relay))
        if self._sweep_at is not None and now >= self._sweep_at:
            self._sweep_at = None
            self.dispatcher.wake_soon()
        return self._settle()

    # As relays call it.

    def set_timer(self, relay: SimulatedRelay, at: float) -> None:
        """Its time in the queue ends then."""
        heapq.heappush(self._timers, (at, next(self._order), relay))

    def instance_of(self, key: ReplicaKey) -> int:
        """The simulator's number of a replica."""
        return self._instances[key]

    def clock(self) -> float:
        """Virtual time."""
        return self.now

    # Inside.

    def _look(self, view: FleetView, now: float) -> None:
        self.now = now
        if self.view is None:
            self._start(view)
        self.view = view

    def _start(self, view: FleetView) -> None:
        table = self._given_table or fleet_table(view, **self._rule_fields)  # type: ignore[arg-type]
        self.view = view
        self.scheduler = Scheduler(table, seed=self._seed)
        self.dispatcher = Dispatcher(
            self.queue,
            self.scheduler,
            counts=QueueCounts(),
            retry_after_seconds=1.0,
            # It calls nothing of the loop but call_soon.
            loop=cast("asyncio.AbstractEventLoop", self._loop),
            clock=self.clock,
        )
        self._publish(dict.fromkeys(each.pool for each in view.instances))

    def _publish(self, pools: Iterable[str]) -> None:
        """Give the scheduler the list of replicas, as discovery would."""
        if self.view is None:
            return
        for pool in pools:
            addresses = []
            for instance in self.view.alive:
                if instance.pool != pool:
                    continue
                key = ReplicaKey(pool, f"instance-{instance.index}")
                self._instances[key] = instance.index
                addresses.append(
                    ReplicaAddress(
                        key=key,
                        host="instance",
                        # Another process after a crash.
                        port=1 + self._lives.setdefault(instance.index, 0),
                        sequence_slots=self._sequence_slots or instance.profile.max_sequences,
                    )
                )
            self.scheduler.set_replicas(pool, addresses, now=self.now)
        self.dispatcher.wake_soon()

    def _report(self, instance: InstanceView) -> None:
        """What the head of a reply says of the replica's load."""
        key = ReplicaKey(instance.pool, f"instance-{instance.index}")
        report = LoadReport(
            waiting_requests=float(instance.waiting),
            running_requests=float(instance.running),
            kv_cache_usage=instance.used_kv_tokens / instance.profile.kv_capacity_tokens,
        )
        self.scheduler.report(key, report, now=self.now)

    def _settle(self) -> list[Action]:
        self._loop.settle()
        actions, self.actions = self.actions, []
        if len(self.queue):
            if self._sweep_at is None:
                self._sweep_at = self.now + _SWEEP_SECONDS
            due = self._timers[0][0] if self._timers else self._sweep_at
            self.wake_at = min(due, self._sweep_at)
        else:
            self._sweep_at = self.wake_at = None
            self._timers.clear()
        return actions
