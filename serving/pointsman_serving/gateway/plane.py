"""Everything the requests of one gateway share: scheduler, queue, connections and counts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Container, Iterable, Sequence
from typing import Protocol

from pointsman_api.route_table import BackendType, CacheIsolation, Route, RouteTable, Rule
from pointsman_serving.gateway import openai
from pointsman_serving.gateway.body import RequestBody
from pointsman_serving.gateway.budget import RuleBudgets
from pointsman_serving.gateway.credentials import PoolSecrets
from pointsman_serving.gateway.dispatcher import Dispatcher, Routed
from pointsman_serving.gateway.endpoint import Endpoint
from pointsman_serving.gateway.external import ExternalPools
from pointsman_serving.gateway.headers import RequestHeaders
from pointsman_serving.gateway.held import HeldBytes
from pointsman_serving.gateway.isolation import cache_salt, isolation_of, route_request
from pointsman_serving.gateway.kv.feeds import KvFeeds
from pointsman_serving.gateway.metrics import Metrics
from pointsman_serving.gateway.news import News
from pointsman_serving.gateway.openai import ApiError
from pointsman_serving.gateway.phase import Phase
from pointsman_serving.gateway.readings import Readings
from pointsman_serving.gateway.replica_tokens import ReplicaTokens
from pointsman_serving.gateway.settings import GatewaySettings
from pointsman_serving.gateway.upstream import Upstreams
from pointsman_serving.routing.place import RuleKey
from pointsman_serving.routing.queue import WaitQueue
from pointsman_serving.routing.scheduler import Scheduler
from pointsman_serving.routing.types import (
    Api,
    Decision,
    Outcome,
    ReplicaAddress,
    ReplicaKey,
    RouteRequest,
)

_CREDENTIALS_SECONDS = 5.0

# How often those who wait are looked at though nothing told us to: an ejected replica comes
# back by time alone.
_SWEEP_SECONDS = 0.25


class Wanted(Protocol):
    """What a stream that may be continued asks of a replica. ``continuation.Continuation``."""

    revision: str
    """Of the replica that began it."""

    @property
    def tokens(self) -> list[int] | None:
        """The ids after which the replica goes on; None: it begins."""


class DataPlane:
    """The shared state of one gateway; lives on one event loop.

    Args:
        table: None: nobody has told it yet.
        clock: seconds; monotonic.
        new_id: makes a request id where the client sent none.
    """

    def __init__(
        self,
        *,
        settings: GatewaySettings,
        table: RouteTable | None,
        scheduler: Scheduler,
        credentials: PoolSecrets,
        metrics: Metrics,
        loop: asyncio.AbstractEventLoop,
        new_id: Callable[[], str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.settings = settings
        self.scheduler = scheduler
        self.metrics = metrics
        self.loop = loop
        self.clock = clock
        self.new_id = new_id
        self.started_at = clock()
        self.ending = False
        """A stop has begun: readiness is over, and replies ask clients to close."""
        self.heard = False
        """Whether anybody has told which replicas there are, were it none."""
        self.admission: WaitQueue[Routed] = WaitQueue(limit=settings.max_queued_requests)
        self.dispatcher = Dispatcher(
            self.admission,
            scheduler,
            counts=metrics.queue,
            retry_after_seconds=settings.retry_after_seconds,
            loop=loop,
            clock=clock,
        )
        self.relays: set[Routed] = set()
        self.replicas: dict[str, tuple[ReplicaAddress, ...]] = {}
        self._told: dict[str, tuple[ReplicaAddress, ...]] = {}
        self.upstreams = Upstreams(
            idle_seconds=settings.upstream_idle_seconds,
            idle_connections=settings.upstream_idle_connections,
            clock=clock,
        )
        self.news = News(clock)
        self.kv_feeds = KvFeeds(scheduler.kv, lambda: self.table.pools, news=self.news, clock=clock)
        self.upstreams.announced = self.kv_feeds.announced
        self.bodies = HeldBytes(settings.max_held_body_bytes)
        self.kept_bodies = HeldBytes(settings.max_kept_body_bytes)
        self._budgets: dict[RuleKey, RuleBudgets] = {}
        self._revisions: dict[str, dict[ReplicaKey, str]] = {}
        self._external = ExternalPools(credentials)
        self._tokens = ReplicaTokens(credentials)
        self._sweeper: asyncio.TimerHandle | None = None
        self._credentials_due = 0.0
        metrics.readings = self.readings
        self.table = RouteTable()
        self.set_table(RouteTable() if table is None else table)
        self.told_table = table is not None
        """Whether anybody has told what to route."""

    # What changes from outside.

    def set_table(self, table: RouteTable, config_hash: str = "") -> None:
        """Put another route table in force; requests under way end by the old rules.

        Args:
            config_hash: what whoever wrote the table calls it; empty: its digest.

        Raises:
            ValueError: a header expression is not valid; the old table stays.
        """
        self.scheduler.set_table(table)
        self.told_table = True
        before, self.table = self.table, table
        self.config_hash = config_hash or table.digest()
        self._isolation = {name: isolation_of(route.rules) for name, route in table.routes.items()}
        for gone in self.replicas.keys() - table.pools.keys():
            self.upstreams.retain(gone, ())
        self.replicas = {name: self.replicas.get(name, ()) for name in table.pools}
        self._told = {name: told for name, told in self._told.items() if name in table.pools}
        self._revisions = {name: self._revisions.get(name, {}) for name in self._told}
        rules = [(route, rule) for route in table.routes.values() for rule in route.rules]
        self.admission.retain(
            (rule.overload.priority, frozenset(target.pool for target in rule.targets))
            for _, rule in rules
        )
        known_rules = {(route.policy, rule.name) for route, rule in rules}
        self._budgets = {key: each for key, each in self._budgets.items() if key in known_rules}
        self.kv_feeds.retain(self.replicas)
        for name, pool in table.pools.items():
            known = before.pools.get(name)
            if known is not None and known.backend is not pool.backend:
                # What was sent to a provider must not be sent as to a replica of our own.
                self._publish(name, ())
        self.refresh_credentials()
        self.dispatcher.look_again()

    def set_replicas(self, pool: str, addresses: Sequence[ReplicaAddress]) -> None:
        """The replicas of a pool, all of them; the same list again changes nothing.

        Where an external pool is, only the route table says.
        """
        entry = self.table.pools.get(pool)
        if entry is not None and entry.backend is not BackendType.EXTERNAL:
            self.heard = True
            self._publish(pool, addresses)

    def _publish(self, pool: str, addresses: Sequence[ReplicaAddress]) -> None:
        listed = tuple(addresses)
        if self._told.get(pool) == listed:
            return
        self.replicas[pool] = self._told[pool] = listed
        listed_keys = {address.key for address in listed}
        revisions = self._revisions.pop(pool, {})
        self._revisions[pool] = {key: revisions[key] for key in listed_keys & revisions.keys()}
        self.scheduler.set_replicas(pool, addresses, now=self.clock())
        self.upstreams.retain(pool, addresses)
        self.kv_feeds.retain(self.replicas)
        self.dispatcher.wake_soon()

    def refresh_credentials(self) -> None:
        """Read keys and tokens; external pools without a readable key have no replicas."""
        self._credentials_due = self.clock() + _CREDENTIALS_SECONDS
        self.upstreams.set_token_lines(self._tokens.refresh(self.table.pools.values()))
        for pool, addresses in self._external.refresh(self.table.pools.values()).items():
            self._publish(pool, addresses)

    def has_token(self, pool: str) -> bool:
        """Whether there is a token to show to a pool's replicas."""
        return self._tokens.has(pool)

    def is_external(self, pool: str) -> bool:
        """Whether somebody else's endpoints are behind a pool."""
        entry = self.table.pools.get(pool)
        return entry is not None and entry.backend is BackendType.EXTERNAL

    def engine(self, pool: str) -> str:
        """The engine of a pool's replicas; empty where it is somebody else's."""
        entry = self.table.pools.get(pool)
        return "" if entry is None else entry.engine

    def note_revision(self, key: ReplicaKey, revision: str) -> None:
        """Remember what revision a replica said that it is of."""
        self._revisions.setdefault(key.pool, {})[key] = revision

    def of_other_revisions(self, pool: str, revision: str) -> set[ReplicaKey]:
        """The replicas of a pool that are known to be of another revision."""
        known = self._revisions.get(pool, {})
        return {key for key, value in known.items() if value != revision}

    def budgets_of(self, key: RuleKey, rule: Rule) -> RuleBudgets:
        """What the requests of a rule may cost once more."""
        budgets = self._budgets.get(key)
        if budgets is None or not budgets.fit(rule.resilience):
            budgets = self._budgets[key] = RuleBudgets.of(rule.resilience)
        return budgets

    def may_come(self, pools: Iterable[str]) -> bool:
        """Whether replicas may come to one of the pools that has none.

        Somebody else's endpoints do not: where they are missing, their key cannot be read.
        """
        entries = (self.table.pools.get(pool) for pool in pools)
        return any(
            entry is not None and entry.backend is not BackendType.EXTERNAL for entry in entries
        )

    # Requests.

    def route(
        self, api: Api, headers: RequestHeaders, body: RequestBody
    ) -> tuple[RouteRequest, tuple[str, Rule] | None]:
        """A request in the scheduler's words, and the policy and rule that apply."""
        isolation = self._isolation.get(body.model)
        shared = isolation is CacheIsolation.GATEWAY
        now = self.clock()
        request = route_request(api, headers, body, now, shared=shared)
        found = self.scheduler.route(request)
        if found is None:
            return request, None
        route, rule = found
        if isolation is None and rule.cache_isolation is CacheIsolation.GATEWAY and headers.tenant:
            # Only the rule could say, and the rule may hang on the prompt's length.
            request = route_request(api, headers, body, now, shared=True)
        return request, (route.policy, rule)

    def refusal(self, decision: Decision, model: str) -> ApiError:
        """The answer to a request that is neither sent nor queued."""
        if decision.outcome is Outcome.NO_REPLICA and model in self.table.routes:
            rules = self.table.routes[model].rules
            pools = [t.pool for rule in rules if rule.name == decision.rule for t in rule.targets]
            unusable = self._external.unusable(pools)
            if unusable:
                return openai.key_unreadable(unusable, self.settings.retry_after_seconds)
        return openai.refusal(
            decision,
            model=model,
            names=self.table.routes,
            retry_after_seconds=self.settings.retry_after_seconds,
        )

    def decide(
        self,
        request: RouteRequest,
        now: float,
        exclude: Container[ReplicaKey],
        *,
        within: tuple[Route, Rule, str] | None = None,
    ) -> Decision:
        """Ask the scheduler, and note how long it took.

        Args:
            within: the rule that holds, and the only pool that may be chosen; None: by the table.
        """
        before = time.perf_counter()
        decision = self.scheduler.decide(request, now=now, exclude=exclude, within=within)
        self.metrics.decision.observe(time.perf_counter() - before)
        return decision

    def upstream_request(
        self,
        endpoint: Endpoint,
        request: RouteRequest,
        headers: RequestHeaders,
        body: RequestBody,
        rule: Rule,
        *,
        external: bool,
        continuation: Wanted | None = None,
    ) -> bytes:
        """The bytes of a request to a replica.

        Args:
            external: the replica is somebody else's endpoint.
            continuation: of a stream that may have to be continued, or is.

        Raises:
            RecursionError: the body is nested too deeply to be written anew.
        """
        address = endpoint.address
        pool = self.table.pools.get(address.key.pool)
        model = address.model_name or (pool.served_model_name if pool else body.model)
        if external:
            lines = headers.to_external() + self._external.authorization(address)
        else:
            lines = headers.to_replica() + endpoint.token_line
        after = None
        token_ids = False
        if continuation is not None:
            after = continuation.tokens
            token_ids = True
            if after is not None:
                lines += b"x-pointsman-revision: %b\r\n" % continuation.revision.encode("latin-1")
        content = body.rewritten(
            model=model,
            add_usage=body.can_add_usage,
            cache_salt=cache_salt(pool, request.api, headers.tenant, body.cache_salt, rule),
            add_token_ids=token_ids,
            after=after,
        )
        return endpoint.request(request.api, lines, content)

    # Life.

    def start(self) -> None:
        """Begin the periodic work."""
        self._sweep()

    def _sweep(self) -> None:
        self.upstreams.close_stale()
        if self.clock() >= self._credentials_due:
            self.refresh_credentials()
        self.dispatcher.wake_soon()
        self._sweeper = self.loop.call_later(_SWEEP_SECONDS, self._sweep)

    def stop(self) -> None:
        """Cut what is left and close every connection."""
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        for relay in list(self.relays):
            relay.stop(openai.shutting_down())
        self.upstreams.close()
        self.kv_feeds.close()

    # What can be read.

    def serving_routes(self) -> list[str]:
        """The model names of which at least one target has a replica."""
        return [
            name
            for name, route in self.table.routes.items()
            if any(self.replicas.get(t.pool) for rule in route.rules for t in rule.targets)
        ]

    @property
    def ready(self) -> bool:
        """Whether requests are served, or held for a replica to come."""
        heard = self.told_table and self.heard
        return (heard or bool(self.serving_routes())) and not self.ending

    def readings(self) -> Readings:
        """What is measured at a scrape."""
        in_flight = dict.fromkeys(self.table.pools, 0)
        queued: dict[str, int] = {}
        for relay in self.relays:
            if relay.phase is not Phase.QUEUED:
                in_flight[relay.pool] = in_flight.get(relay.pool, 0) + 1
                continue
            for pool in relay.pools:
                queued[pool] = queued.get(pool, 0) + 1
        # A rule of which nobody waits says 0, rather than nothing.
        queue_depth = {
            (route.policy, rule.name): 0
            for route in self.table.routes.values()
            for rule in route.rules
        }
        return Readings(
            in_flight=in_flight,
            queue_depth=queue_depth | self.admission.depths(),
            queued=queued,
            replicas={pool: len(addresses) for pool, addresses in self.replicas.items()},
            open_upstream_connections=self.upstreams.open_connections,
            config_hash=self.config_hash,
            scheduler=self.scheduler.snapshot(),
            kv=self.scheduler.kv.snapshot(),
            kv_feeds=self.kv_feeds.readings(),
        )
