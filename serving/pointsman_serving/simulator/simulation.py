"""The event loop: requests reach gateways, gateways choose, engines work, fleets change."""

from __future__ import annotations

import heapq
import math
import random
from enum import IntEnum
from typing import TYPE_CHECKING, Any

from pointsman_serving.engines.timing import EventKind
from pointsman_serving.simulator.arm import (
    Action,
    Dispatch,
    Failed,
    Finished,
    FirstToken,
    InstanceAdded,
    InstanceRemoved,
    Migrate,
    Reject,
    Tokens,
)
from pointsman_serving.simulator.fleet import Added, Removed, Slowed
from pointsman_serving.simulator.instance import Clock, Instance, LateInstance, Views
from pointsman_serving.simulator.record import Outcome, Record, Sample

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pointsman_serving.simulator.arm import Arm, InstanceView
    from pointsman_serving.simulator.fleet import Crashed, FleetEvent, Group
    from pointsman_serving.simulator.record import GiveUp
    from pointsman_serving.simulator.request import SimRequest

_NEVER = math.inf


class _Kind(IntEnum):
    ENGINE = 0
    FLEET = 1
    WAKE = 2
    TOKENS = 3
    SAMPLE = 4


class Simulation:
    """One run. Deterministic: the same arguments give the same outcome.

    Args:
        requests: in any order, each with an id of its own.
        arms: one for each gateway. A request reaches one of them by chance.
        lag_seconds: how old the views are that arms get.
        events: what happens to the fleet.
        seed: of the chance by which requests reach gateways.
        sample_seconds: how often it is noted how busy the instances are; 0: never.
        give_up: break off a hopeless run; None: never.

    Raises:
        ValueError: no instance or no gateway, an id that two requests have, or an event for an
            instance that never is.
    """

    def __init__(
        self,
        groups: Sequence[Group],
        arms: Sequence[Arm],
        requests: Iterable[SimRequest],
        *,
        lag_seconds: float = 0.0,
        events: Sequence[FleetEvent] = (),
        seed: int = 0,
        sample_seconds: float = 0.0,
        give_up: GiveUp | None = None,
    ) -> None:
        if not groups or not arms:
            raise ValueError("a simulation needs a group of instances and an arm at least")
        self._groups = groups
        self._arms = arms
        self._lag_seconds = lag_seconds
        self._give_up = give_up
        self._clock = Clock()
        self._heap: list[tuple[float, int, _Kind, Any]] = []
        self._order = 0
        self._instances: list[Instance] = []
        self._late: list[LateInstance] = []
        self._views = Views()
        for group in groups:
            for _ in range(group.count):
                self._new_instance(group)
        known = len(self._instances) + sum(isinstance(each, Added) for each in events)
        for event in events:
            if not isinstance(event, Added) and not 0 <= event.instance < known:
                raise ValueError(
                    f"{type(event).__name__} at {event.at_seconds:g} s names instance "
                    f"{event.instance}; there are 0 to {known - 1}"
                )
            self._push(event.at_seconds, _Kind.FLEET, event)
        source = random.Random(seed)
        self._arrivals = sorted(requests, key=lambda each: each.arrival_seconds)
        several = len(arms) > 1
        self._records = {
            request: Record(request, source.randrange(len(arms)) if several else 0)
            for request in self._arrivals
        }
        if len({each.request_id for each in self._arrivals}) < len(self._arrivals):
            raise ValueError("two requests have one request_id: give each its own")
        self._by_id: dict[str, Record] = {}
        self._number = {request: number for number, request in enumerate(self._arrivals)}
        self._open = 0
        self._to_come = len(self._arrivals)
        self._lates = 0
        self._wakes: list[float | None] = [None] * len(arms)
        self._outcome = Outcome(records=list(self._records.values()))
        self._sample_seconds = sample_seconds
        if sample_seconds > 0.0:
            self._push(0.0, _Kind.SAMPLE, None)
        for number, arm in enumerate(arms):
            if arm.tokens_every_seconds is not None:
                self._push(arm.tokens_every_seconds, _Kind.TOKENS, number)

    def run(self) -> Outcome:
        """Let everything happen until nothing is left to happen."""
        arrivals = self._arrivals
        heap = self._heap
        clock = self._clock
        position = 0
        count = len(arrivals)
        next_arrival = arrivals[0].arrival_seconds if arrivals else _NEVER
        while heap or position < count:
            if heap and heap[0][0] <= next_arrival:
                at, _, kind, subject = heapq.heappop(heap)
                if kind is _Kind.ENGINE:
                    if at != subject.scheduled_at:
                        continue
                    clock.now = at
                    self._step(subject, at)
                else:
                    if not self._open and not self._to_come:
                        break
                    clock.now = at
                    self._other(kind, subject, at)
                if self._outcome.gave_up:
                    break
                continue
            request = arrivals[position]
            position += 1
            self._to_come -= 1
            now = clock.now = next_arrival
            next_arrival = arrivals[position].arrival_seconds if position < count else _NEVER
            self._arrive(request, now)
        outcome = self._outcome
        outcome.ended_at = clock.now
        outcome.pools = [each.pool for each in self._instances]
        outcome.prices = [
            (each.group.input_dollars, each.group.output_dollars) for each in self._instances
        ]
        outcome.preemptions += sum(each.engine.preemptions for each in self._instances)
        return outcome

    # Arms.

    def _arrive(self, request: SimRequest, now: float) -> None:
        record = self._records[request]
        self._open += 1
        self._by_id[request.request_id] = record
        gateway = record.gateway
        self._act(self._arms[gateway].arrive(request, self._views, now), gateway, now)

    def _act(self, actions: Sequence[Action], gateway: int, now: float) -> None:
        for action in actions:
            if type(action) is Dispatch:
                self._dispatch(action.request, action.instance, now)
            elif type(action) is Reject:
                record = self._records[action.request]
                if record.instance >= 0:
                    raise ValueError(
                        f"request {record.request.request_id!r} is rejected; it is on instance "
                        f"{record.instance}"
                    )
                if record.rejected_at is None and record.first_token_at is None:
                    self._count_late(record)
                record.rejected_at = now
                self._close(record)
            elif type(action) is Migrate:
                self._migrate(action.request_id, action.to_instance, now)
        wake_at = self._arms[gateway].wake_at
        if wake_at != self._wakes[gateway]:
            self._wakes[gateway] = wake_at
            if wake_at is not None:
                self._push(max(wake_at, now), _Kind.WAKE, gateway)

    def _dispatch(self, request: SimRequest, index: int, now: float) -> None:
        instance = self._living(index, request.request_id)
        record = self._records[request]
        if record.instance >= 0 or record.rejected_at is not None:
            raise ValueError(
                f"request {request.request_id!r} is dispatched again; it is on instance "
                f"{record.instance} or was rejected"
            )
        record.dispatches += 1
        record.instance = index
        if record.dispatched_at is None:
            record.dispatched_at = now
        instance.engine.add(request, request.output_tokens_on(instance.pool), now)
        self._changed(instance)

    def _migrate(self, request_id: str, to_index: int, now: float) -> None:
        target = self._living(to_index, request_id)
        record = self._by_id.get(request_id)
        if record is None or not 0 <= record.instance != to_index:
            return
        source = self._instances[record.instance]
        if not source.engine.withdraw(record.request, now):
            return
        self._outcome.migrations += 1
        record.instance = to_index
        target.engine.add(record.request, record.request.output_tokens_on(target.pool), now)
        self._changed(source)
        self._changed(target)

    def _living(self, index: int, request_id: str) -> Instance:
        if not 0 <= index < len(self._instances) or not self._instances[index].alive:
            raise ValueError(
                f"request {request_id!r} is sent to instance {index}, which does not live; "
                f"these do: {[each.index for each in self._instances if each.alive]}"
            )
        return self._instances[index]

    # Engines.

    def _changed(self, instance: Instance) -> None:
        ends_at = instance.engine.ends_at
        if ends_at != instance.scheduled_at:
            instance.scheduled_at = ends_at
            if ends_at < _NEVER:
                self._order += 1
                heapq.heappush(self._heap, (ends_at, self._order, _Kind.ENGINE, instance))
        if self._late:
            self._late[instance.index].record()

    def _step(self, instance: Instance, now: float) -> None:
        events = instance.engine.step()
        self._changed(instance)
        for kind, sequence in events:
            request = sequence.request
            record = self._records[request]
            gateway = record.gateway
            arm = self._arms[gateway]
            if kind is EventKind.FIRST_TOKEN:
                record.cached_tokens = sequence.cached_tokens
                if record.first_token_at is None:
                    record.first_token_at = now
                    if self._give_up and record.ttft_seconds >= self._give_up.ttft_seconds:
                        self._count_late(record)
                told = FirstToken(request, instance.index, sequence.cached_tokens)
                actions = arm.event(told, self._views, now)
            else:
                record.finished_at = now
                record.output_tokens = sequence.output_tokens
                self._close(record)
                ended = Finished(request, instance.index, sequence.output_tokens)
                actions = arm.event(ended, self._views, now)
            self._act(actions, gateway, now)

    def _close(self, record: Record) -> None:
        if self._by_id.pop(record.request.request_id, None) is not None:
            self._open -= 1

    def _count_late(self, record: Record) -> None:
        give_up = self._give_up
        if give_up is not None and self._number[record.request] >= give_up.warm_up:
            self._lates += 1
            self._outcome.gave_up = self._lates > give_up.most_late

    # Everything else.

    def _push(self, at: float, kind: _Kind, subject: object) -> None:
        self._order += 1
        heapq.heappush(self._heap, (at, self._order, kind, subject))

    def _other(self, kind: _Kind, subject: Any, now: float) -> None:
        if kind is _Kind.WAKE:
            arm = self._arms[subject]
            if arm.wake_at is not None and arm.wake_at <= now:
                self._wakes[subject] = None
                actions = arm.wake(self._views, now)
                if arm.wake_at is not None and arm.wake_at <= now:
                    raise ValueError(
                        f"arm {arm.name!r} was woken at {now:g} s and wants to be at "
                        f"{arm.wake_at:g} s again: wake() must move wake_at on"
                    )
                self._act(actions, subject, now)
        elif kind is _Kind.TOKENS:
            self._tell_tokens(subject, now)
        elif kind is _Kind.SAMPLE:
            self._sample(now)
        else:
            self._change_fleet(subject, now)

    def _tell_tokens(self, gateway: int, now: float) -> None:
        arm = self._arms[gateway]
        if arm.tokens_every_seconds is None:
            return
        self._again(now + arm.tokens_every_seconds, _Kind.TOKENS, gateway)
        for instance in self._instances:
            engine = instance.engine
            for sequence in list(engine.running):
                if not sequence.finish_step:
                    continue
                record = self._records[sequence.request]
                if record.gateway != gateway:
                    continue
                new = engine.generated(sequence, now) - record.told_tokens
                if new > 0:
                    record.told_tokens += new
                    event = Tokens(sequence.request, instance.index, new)
                    self._act(arm.event(event, self._views, now), gateway, now)

    def _sample(self, now: float) -> None:
        engines = [each.engine for each in self._instances]
        self._outcome.samples.append(
            Sample(
                now,
                tuple(len(each.running) + len(each.waiting) for each in engines),
                tuple(each.pending_prefill_tokens for each in engines),
            )
        )
        self._again(now + self._sample_seconds, _Kind.SAMPLE, None)

    def _again(self, at: float, kind: _Kind, subject: object) -> None:
        """Repeat what only looks, as long as anything is left that acts."""
        if (
            self._to_come
            or any(each.engine.ends_at < _NEVER for each in self._instances)
            or any(each[2] in (_Kind.FLEET, _Kind.WAKE) for each in self._heap)
        ):
            self._push(at, kind, subject)

    # The fleet.

    def _new_instance(self, group: Group) -> Instance:
        late = self._lag_seconds > 0.0
        instance = Instance(len(self._instances), group, self._clock, follow_cache=late)
        self._instances.append(instance)
        view: InstanceView = instance
        if late:
            view = LateInstance(instance, self._clock, self._lag_seconds)
            self._late.append(view)
        self._views.add(view)
        return instance

    def _change_fleet(self, event: FleetEvent | Instance, now: float) -> None:
        if isinstance(event, Instance):
            event.alive = True
            self._views.look()
            self._tell_all(InstanceAdded(event.index), now)
        elif isinstance(event, Added):
            instance = self._new_instance(self._groups[event.group])
            self._tell_all(InstanceAdded(instance.index), now)
        elif isinstance(event, Slowed):
            instance = self._instances[event.instance]
            instance.engine.slow_down(event.slowness, now)
            self._changed(instance)
        elif isinstance(event, Removed):
            self._instances[event.instance].alive = False
            self._views.look()
            self._tell_all(InstanceRemoved(event.instance, crashed=False), now)
        else:
            self._crash(event, now)

    def _crash(self, event: Crashed, now: float) -> None:
        instance = self._instances[event.instance]
        if not instance.alive:
            return
        engine = instance.engine
        lost = [each.request for each in (*engine.running, *engine.waiting)]
        self._outcome.preemptions += engine.preemptions
        instance.alive = False
        instance.restart()
        self._changed(instance)
        self._views.look()
        if event.back_after_seconds is not None:
            self._push(now + event.back_after_seconds, _Kind.FLEET, instance)
        self._tell_all(InstanceRemoved(instance.index, crashed=True), now)
        for request in lost:
            record = self._records[request]
            record.instance = -1
            record.told_tokens = 0
            gateway = record.gateway
            arm = self._arms[gateway]
            self._act(arm.event(Failed(request, event.instance), self._views, now), gateway, now)
            self._act(arm.arrive(request, self._views, now), gateway, now)

    def _tell_all(self, event: InstanceAdded | InstanceRemoved, now: float) -> None:
        for gateway, arm in enumerate(self._arms):
            self._act(arm.event(event, self._views, now), gateway, now)
