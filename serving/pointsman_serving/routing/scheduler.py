"""The fused choice over (pool, replica): one synchronous object that events are fed to.

``decide`` looks and changes nothing; ``dispatch`` counts the request at once; the ticket it
returns goes back with every event of the answer. ``now`` is seconds of any monotonic clock,
always the same one. Not thread-safe: one event loop owns it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pointsman_serving.routing.candidates import SCORE_ALL_UP_TO
from pointsman_serving.routing.choice import Question, choose, unroutable
from pointsman_serving.routing.holders import PrefixHolders, prefix_key
from pointsman_serving.routing.issuing import issue
from pointsman_serving.routing.kv.index import KvIndex
from pointsman_serving.routing.learning import learn_from
from pointsman_serving.routing.memory import share_memory
from pointsman_serving.routing.plan import RulePlan, plans_of
from pointsman_serving.routing.pool import FleetModels, PoolState
from pointsman_serving.routing.quick import quick_decision
from pointsman_serving.routing.slow_start import SLOW_START_SECONDS
from pointsman_serving.routing.snapshot import SchedulerSnapshot, snapshot_of
from pointsman_serving.routing.stickiness import Stickiness, conversation_of
from pointsman_serving.routing.table import CompiledTable
from pointsman_serving.routing.targets import eligible_targets
from pointsman_serving.routing.ticket import Ticket, TicketPhase
from pointsman_serving.routing.types import (
    Decision,
    LoadReport,
    ReplicaAddress,
    ReplicaKey,
    RouteRequest,
    Usage,
)

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Sequence

    from pointsman_api.route_table import Route, RouteTable, Rule
    from pointsman_serving.routing.replica import ReplicaState


class Scheduler:
    """Chooses a replica for each request and learns from what comes of it.

    Args:
        table: the route table; see ``set_table``.
        seed: salt of the rings and of ties. Gateways that shall agree need the same.
        asks_health: the caller asks the health of ejected replicas (``wanting_health``), which
            come back when it has answered; otherwise time alone brings them back.
        slow_start_seconds: over which a replica that joins others, or returns to them, gets its
            slots; 0: at once.

    Raises:
        ValueError: a header expression of the table is not valid.
    """

    def __init__(
        self,
        table: RouteTable,
        *,
        seed: int = 0,
        asks_health: bool = False,
        slow_start_seconds: float = SLOW_START_SECONDS,
    ) -> None:
        self._seed = seed
        self._asks_health = asks_health
        self._slow_start_seconds = slow_start_seconds
        self._table = CompiledTable(table)
        self._pools: dict[str, PoolState] = {}
        self._plans: dict[int, RulePlan] = {}
        """By the identity of the table's rules."""
        self._gone: dict[str, PoolState] = {}
        """Pools that are no longer in the table and still have requests."""
        self._unrouted: dict[str, tuple[ReplicaAddress, ...]] = {}
        self._stickiness = Stickiness()
        self._holders = PrefixHolders()
        self._fleet = FleetModels()
        self._dispatched = 0
        self.score_all_up_to = SCORE_ALL_UP_TO
        """The size of a fleet of which every replica is looked at; see ``candidates``."""
        self.kv = KvIndex(lambda: self._pools)
        """What the engines tell of their prefix caches."""
        self._set_pools(table)

    def set_table(self, table: RouteTable) -> None:
        """Change the table at once; pools that stay keep their replicas and all that was learned.

        Raises:
            ValueError: a header expression is not valid; the old table stays.
        """
        self._table = CompiledTable(table)
        self._set_pools(table)

    def set_replicas(self, pool: str, addresses: Sequence[ReplicaAddress], *, now: float) -> None:
        """Take the full list of a pool's replicas.

        Replicas that stay keep their state, new ones start empty, missing ones get nothing new
        while their requests end. A pool that the table does not know is remembered until it does.

        Raises:
            ValueError: an address belongs to another pool.
        """
        state = self._pools.get(pool)
        if state is None:
            self._unrouted.pop(pool, None)
            if addresses:
                self._unrouted[pool] = tuple(addresses)
            return
        state.set_replicas(addresses, now=now)
        share_memory(self._pools.values())

    def route(self, request: RouteRequest) -> tuple[Route, Rule] | None:
        """Which rule applies; None: no such model, or no rule of its route matches."""
        return self._table.route(request)

    def decide(
        self,
        request: RouteRequest,
        *,
        now: float,
        exclude: Container[ReplicaKey] = (),
        within: tuple[Route, Rule, str] | None = None,
        explain: bool = False,
    ) -> Decision:
        """Choose; has no side effects.

        Args:
            exclude: replicas that were tried already.
            within: the rule that holds whatever the table says, and its only pool to choose from,
                as a stream that goes on must; None: by the table.
            explain: return every candidate with its terms, and the full reason.
        """
        pool, quick = "", None
        if within is not None:
            route, rule, pool = within
        elif (found := self._table.route(request)) is not None:
            route, rule = found
        else:
            return unroutable(request, self._table.table)
        stay = self._stickiness.stay_of(request, rule, now=now)
        if within is None:
            quick = quick_decision(
                self._plans[id(rule)],
                route.policy,
                self._pools,
                request,
                stay=stay,
                holders=self._holders,
                exclude=exclude,
                score_all_up_to=self.score_all_up_to,
                seed=self._seed,
                now=now,
            )
            if quick is not None and not explain:
                return quick
        eligible = eligible_targets(
            rule,
            self._pools,
            request,
            conversation=conversation_of(request),
            stay=stay,
            exclude=exclude,
            only=pool,
            now=now,
        )
        question = Question(
            request=request,
            route=route,
            rule=rule,
            eligible=eligible,
            stay=stay,
            holders=self._holders.find(prefix_key(request.prompt)),
            also=None if quick is None or quick.winner is None else quick.winner.key,
            exclude=exclude,
            careful=within is not None,
            seed=self._seed,
            score_all_up_to=self.score_all_up_to,
            now=now,
        )
        return choose(question, self._pools, explain=explain)

    def dispatch(self, request: RouteRequest, decision: Decision, *, now: float) -> Ticket:
        """Count a request that is being sent to the decision's winner.

        Raises:
            ValueError: the decision has no winner, or the winner is gone since.
        """
        if decision.winner is None:
            raise ValueError(
                f"a decision of outcome {decision.outcome.value} has no replica to send to; "
                "dispatch only what was chosen"
            )
        key = decision.winner.key
        pool = self._pools.get(key.pool)
        replica = None if pool is None else pool.find(key)
        if pool is None or replica is None:
            raise ValueError(f"the replica {key.pool}/{key.replica} is gone; decide again")
        self._dispatched += 1
        ticket = issue(request, replica, decision.winner, pool, now)
        pool.assign(replica, ticket.uncached_tokens, number=self._dispatched, now=now)
        replica.load.dispatch(ticket, now=now)
        pool.lineup.move(replica)
        self._holders.note(prefix_key(request.prompt), key)
        self._remember(request, key, now)
        return ticket

    def first_token(self, ticket: Ticket, *, now: float) -> None:
        """Note the first piece of a streamed answer; further calls change nothing."""
        if ticket.phase is not TicketPhase.PREFILL:
            return
        replica = ticket.replica
        ticket.phase = TicketPhase.DECODE
        ticket.first_token_at = now
        replica.load.first_token(ticket, now=now)
        ticket.batch_seconds_at_first_token = replica.load.batch_seconds(now)
        replica.cache.confirm(ticket.request.prompt.blocks, ticket.belief)
        pool = self._pool(ticket.key) if ticket.probe else None
        if pool is not None:
            pool.succeeded(replica, now=now, probe=True, whole=False)

    def tokens(self, ticket: Ticket, count: int, *, now: float) -> None:
        """Note further pieces of a streamed answer; the first one is a first token."""
        if ticket.phase is TicketPhase.DONE or count <= 0:
            return
        self.first_token(ticket, now=now)
        if ticket.tokens:
            ticket.replica.load.heard_at = now
        ticket.tokens += count

    def paused(self, ticket: Ticket, paused: bool, *, now: float) -> None:
        """Note that the client of a stream does not read, or reads again: no token comes then."""
        ticket.replica.load.paused(ticket, paused, now=now)

    def finish(
        self,
        ticket: Ticket,
        *,
        now: float,
        ok: bool,
        usage: Usage | None = None,
        learn: bool = True,
    ) -> None:
        """Note the end of an answer, once; further calls change nothing.

        Args:
            ok: False where the answer is not complete (failed, or the client left): nothing is
                learned of its latency, and its blocks are believed cached only if its first
                token had come.
            usage: the engine's counts, where it sent them.
            learn: False for the rest of an answer that another replica began: it says nothing
                of lengths and latencies.
        """
        if ticket.phase is TicketPhase.DONE:
            return
        replica = ticket.replica
        pool = self._pool(ticket.key)
        blocks = ticket.request.prompt.blocks
        if ok:
            if ticket.phase is TicketPhase.PREFILL:
                replica.cache.confirm(blocks, ticket.belief)
            if learn:
                learn_from(ticket, usage, now=now)
                if pool is not None:
                    pool.rates = None
            if pool is not None:
                pool.succeeded(replica, now=now, probe=ticket.probe, whole=True)
        else:
            if ticket.phase is TicketPhase.PREFILL:
                replica.cache.abandon(blocks, ticket.belief)
            if ticket.probe:
                replica.breaker.gave_up(now)
        ticket.phase = TicketPhase.DONE
        replica.load.finish(ticket, now=now)
        if pool is not None:
            pool.lineup.move(replica)
        if replica.draining and not replica.load.in_flight and pool is not None:
            pool.prune()
            if not pool.draining:
                self._gone.pop(ticket.key.pool, None)

    def report(self, key: ReplicaKey, load: LoadReport, *, now: float) -> None:
        """Take what a replica said of itself; it can only make it look busier."""
        replica = self._find(key)
        if replica is not None:
            replica.load.report(load, now=now)

    def failed(self, key: ReplicaKey, *, now: float, hard: bool = False) -> None:
        """Note a failure of the replica (5xx, timeout, reset).

        Args:
            hard: no connection could be made, or its health does not answer: the replica is
                ejected at once.
        """
        pool, replica = self._pool(key), self._find(key)
        if pool is not None and replica is not None:
            pool.failed(replica, now=now, hard=hard)

    def instance(self, key: ReplicaKey, value: str, *, now: float) -> bool:
        """Take the name of the life that a replica's engine is in; True where it has changed.

        What was learned of the life before is forgotten then: blocks, reported load and failures.
        """
        pool, replica = self._pool(key), self._find(key)
        if pool is None or replica is None:
            return False
        return pool.instance(replica, value, now=now)

    def wanting_health(self, now: float) -> list[ReplicaAddress]:
        """The listed replicas whose ejection is over and whose health is to be asked."""
        return [
            state.address
            for pool in self._pools.values()
            for state in pool.states
            if state.breaker.wants_health(now)
        ]

    def health(self, address: ReplicaAddress, *, now: float, answered: bool) -> None:
        """Note what came of asking an ejected replica's health: 200 in time, or not.

        With an answer the next request tries the replica; without, it is asked again later.
        """
        replica = self._find(address.key)
        if replica is not None and replica.address == address:
            replica.breaker.health(now, answered=answered)

    def has_room(self, pools: Iterable[str], *, now: float) -> bool:
        """Whether a replica of any of the pools could take a request now."""
        return any(pool.has_room(now) for pool in self._known(pools))

    def has_replica(self, pools: Iterable[str], *, now: float) -> bool:
        """Whether any of the pools has a replica that serves, however busy it is."""
        return any(pool.has_replica(now) for pool in self._known(pools))

    def capacity(self, pools: Iterable[str]) -> int:
        """How many requests all replicas of the pools take at once."""
        return sum(pool.capacity for pool in self._known(pools))

    def _known(self, pools: Iterable[str]) -> list[PoolState]:
        return [self._pools[pool] for pool in pools if pool in self._pools]

    def address(self, key: ReplicaKey) -> ReplicaAddress | None:
        """Where a replica listens; None where it is not known (any more)."""
        replica = self._find(key)
        return None if replica is None else replica.address

    def snapshot(self) -> SchedulerSnapshot:
        """What is counted and what was learned, for metrics and for people."""
        pools = (*self._pools.values(), *self._gone.values())
        return snapshot_of(pools, conversations=len(self._stickiness))

    def _set_pools(self, table: RouteTable) -> None:
        pools: dict[str, PoolState] = {}
        for name, entry in table.pools.items():
            state = self._pools.get(name)
            if state is None:
                state = self._gone.pop(name, None) or PoolState(
                    entry,
                    fleet=self._fleet,
                    seed=self._seed,
                    asked=self._asks_health,
                    slow_start_seconds=self._slow_start_seconds,
                )
                state.set_replicas(self._unrouted.pop(name, ()), now=0.0)
            state.entry = entry
            state.rates = None
            pools[name] = state
        for name, state in self._pools.items():
            if name in pools:
                continue
            if state.replicas:
                self._unrouted[name] = tuple(each.address for each in state.states)
                state.set_replicas((), now=0.0)
            if state.draining:
                self._gone[name] = state
        self._pools = pools
        self._plans = plans_of(table, pools)
        share_memory(self._pools.values())

    def _pool(self, key: ReplicaKey) -> PoolState | None:
        return self._pools.get(key.pool) or self._gone.get(key.pool)

    def _find(self, key: ReplicaKey) -> ReplicaState | None:
        pool = self._pool(key)
        return None if pool is None else pool.find(key)

    def _remember(self, request: RouteRequest, key: ReplicaKey, now: float) -> None:
        found = self._table.route(request)
        if found is None:
            return
        ttl_seconds = found[1].strategy.stickiness.ttl_seconds
        if ttl_seconds > 0.0:
            self._stickiness.remember(
                conversation_of(request),
                pool=key.pool,
                replica=key.replica,
                ttl_seconds=ttl_seconds,
                now=now,
            )
