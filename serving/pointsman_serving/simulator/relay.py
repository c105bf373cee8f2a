"""A request in our simulated gateway: ``gateway.Relay`` without bytes, client and connection."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from pointsman_serving.gateway.assignment import Assignment
from pointsman_serving.gateway.phase import Phase
from pointsman_serving.routing.types import Decision, Outcome, ReplicaKey, RouteRequest, Usage
from pointsman_serving.simulator.arm import Action, Dispatch, Failed, Reject

if TYPE_CHECKING:
    from pointsman_api.route_table import Rule
    from pointsman_serving.gateway.dispatcher import Dispatcher
    from pointsman_serving.gateway.openai import ApiError
    from pointsman_serving.routing.place import RuleKey
    from pointsman_serving.routing.scheduler import Scheduler
    from pointsman_serving.simulator.request import SimRequest


class RelayOwner(Protocol):
    """The gateway of a request. ``ours.Pointsman`` is one."""

    now: float
    scheduler: Scheduler
    dispatcher: Dispatcher
    actions: list[Action]

    def clock(self) -> float:
        """Virtual time."""
        ...

    def set_timer(self, relay: SimulatedRelay, at: float) -> None:
        """Its time in the queue ends then."""
        ...

    def instance_of(self, key: ReplicaKey) -> int:
        """The simulator's number of a replica."""
        ...


class SimulatedRelay:
    """One request; does what ``gateway.Relay`` does. Implements ``dispatcher.Routed``."""

    __slots__ = (
        "_assignment",
        "_counted",
        "_gateway",
        "_sent",
        "_tokens",
        "cached_tokens",
        "late_at",
        "phase",
        "request",
        "rule",
        "rule_key",
        "simulated",
    )

    def __init__(
        self,
        gateway: RelayOwner,
        simulated: SimRequest,
        request: RouteRequest,
        rule: Rule,
        rule_key: RuleKey,
    ) -> None:
        self._gateway = gateway
        self.simulated = simulated
        self.request = request
        self.rule = rule
        self.rule_key = rule_key
        self.phase = Phase.NEW
        self.late_at = 0.0
        self.cached_tokens = 0
        self._tokens = 0
        self._counted = 0
        self._sent = 0
        self._assignment: Assignment | None = None

    @property
    def pools(self) -> list[str]:
        """See ``dispatcher.Routed``."""
        return [target.pool for target in self.rule.targets]

    @property
    def bound(self) -> bool:
        """See ``dispatcher.Routed``."""
        return False

    @property
    def pool(self) -> str:
        """See ``dispatcher.Routed``."""
        return "" if self._assignment is None else self._assignment.key.pool

    def begin(self) -> None:
        """Start: behind those who wait for the same room already, else at once."""
        now = self._gateway.now
        if self._gateway.dispatcher.may_go_first(self):
            self.take(self.decide(now), now)
        else:
            self._queue(now)

    def decide(self, now: float) -> Decision:
        """See ``dispatcher.Routed``."""
        return self._gateway.scheduler.decide(self.request, now=now)

    def waits(self, decision: Decision) -> bool:
        """See ``dispatcher.Routed``; replicas may always come."""
        return decision.outcome in (Outcome.WAIT, Outcome.NO_REPLICA)

    def take(self, decision: Decision, now: float) -> None:
        """See ``dispatcher.Routed``."""
        gateway = self._gateway
        if decision.outcome is Outcome.CHOSEN:
            assignment = Assignment(gateway.scheduler, self.request, decision, gateway.clock)
            self._assignment = assignment
            self._sent += 1
            self.phase = Phase.SENT
            index = gateway.instance_of(assignment.key)
            gateway.actions.append(Dispatch(self.simulated, index))
        elif self.waits(decision):
            self._queue(now, cold=decision.outcome is Outcome.NO_REPLICA)
        else:
            self._reject()

    def wait_until(self, at: float) -> None:
        """See ``dispatcher.Routed``."""
        self.late_at = at
        self._gateway.set_timer(self, at)

    def stop(self, error: ApiError) -> None:
        """See ``dispatcher.Routed``."""
        self._reject()

    def brought(self, new: int) -> None:
        """Note tokens that came."""
        if new > 0 and self._assignment is not None:
            self.phase = Phase.REPLYING
            self._tokens += new
            self._assignment.events(new)

    def counted(self, new: int) -> None:
        """Note what the simulator has counted since the last time; a first token is known."""
        self._counted += new
        self.brought(self._counted - self._tokens)

    def ended(self, output_tokens: int) -> None:
        """Note the whole answer."""
        self.brought(output_tokens - self._tokens)
        self.phase = Phase.ENDED
        if self._assignment is not None:
            usage = Usage(
                prompt_tokens=self.simulated.prompt_tokens,
                completion_tokens=output_tokens,
                cached_tokens=self.cached_tokens,
            )
            self._assignment.finish(ok=True, usage=usage)
        self._gateway.dispatcher.wake_soon()

    def failed(self, event: Failed) -> None:
        """Note that its replica has gone; it arrives again."""
        assignment = self._assignment
        if assignment is not None:
            assignment.eject()
            assignment.finish(ok=False)
        self._assignment = None
        self._tokens = self._counted = 0
        self.phase = Phase.NEW
        self._gateway.dispatcher.wake_soon()

    def _queue(self, now: float, *, cold: bool = False) -> None:
        dispatcher = self._gateway.dispatcher
        refused = dispatcher.join(self, now=now, again=self._sent > 0, cold=cold)
        if refused is not None:
            self._reject()
            return
        self.phase = Phase.QUEUED

    def _reject(self) -> None:
        gateway = self._gateway
        if self.phase is Phase.ENDED:
            return
        if self.phase is Phase.QUEUED:
            gateway.dispatcher.leave(self)
        self.phase = Phase.ENDED
        gateway.actions.append(Reject(self.simulated))
