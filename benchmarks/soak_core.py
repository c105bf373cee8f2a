"""Everything of a gateway that remembers, in one process and in virtual time, as fast as it goes.

Prompts are drawn as block hashes, because hashing text is not what is tried here; one in a
thousand is real text. No prompt comes twice, except that some begin as an earlier one did.
"""

from __future__ import annotations

import gc
import random
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.resident import Sample, resident_bytes
from pointsman_api.route_table import BackendType, PoolEntry, Route, RouteTable, Rule, Target
from pointsman_serving.gateway.metrics import Metrics
from pointsman_serving.gateway.news import News
from pointsman_serving.routing.place import Place
from pointsman_serving.routing.prefix import prompt_of
from pointsman_serving.routing.queue import WaitQueue
from pointsman_serving.routing.scheduler import Scheduler
from pointsman_serving.routing.ticket import Ticket
from pointsman_serving.routing.types import (
    Api,
    LoadReport,
    Outcome,
    PrefixBlock,
    Prompt,
    ReplicaAddress,
    ReplicaKey,
    RouteRequest,
    Usage,
)

POOLS = ("dense", "experts")
REPLICAS = 3
SLOTS = 32
TENANTS = 100_000
REQUEST_SECONDS = 0.01
"""Of virtual time between two requests: ten million are 28 hours."""
JOINS_AT_ONCE = 0.1
"""Share of the requests that wait for a turn, room or not."""
IN_FLIGHT = 100
"""Of the 204 that all replicas take when none is ejected."""


class NotZeroError(AssertionError):
    """Something is left when every request has ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CoreOutcome:
    """What came of a run."""

    samples: list[Sample]
    outcomes: dict[str, int]
    queued: int
    """Requests that waited."""
    conversations: int
    """Remembered at the end."""
    cached_blocks: int
    """Believed cached at the end, of the replica with the most."""


class CoreSoak:
    """A scheduler, its queue, metrics and news under requests that never repeat.

    Args:
        seed: of everything that is drawn.
    """

    def __init__(self, *, seed: int) -> None:
        self._chance = random.Random(seed)
        self._now = 0.0
        self._table = route_table()
        self._scheduler = Scheduler(self._table, seed=seed)
        self._metrics = Metrics(version="soak", max_values=1000)
        self._news = News(lambda: self._now)
        self._lives = Counter[str]()
        self._listed = {pool: [f"{pool}-{n}" for n in range(REPLICAS)] for pool in POOLS}
        for pool in POOLS:
            self._publish(pool)
        self._open: deque[Ticket] = deque()
        self._queue: WaitQueue[int] = WaitQueue(limit=5000)
        self._waiting: dict[int, RouteRequest] = {}
        self._queued = 0
        self._recent: deque[tuple[PrefixBlock, ...]] = deque(maxlen=1000)
        self._outcomes = Counter[str]()

    def run(self, requests: int, *, every: int, say: Callable[[Sample], None]) -> CoreOutcome:
        """Play so many requests.

        Args:
            every: requests between two readings of the memory.
            say: gets each reading.

        Raises:
            NotZeroError: a counter is not zero at the end.
        """
        samples: list[Sample] = []
        started = time.monotonic()
        for number in range(1, requests + 1):
            self._play(number)
            if number % every == 0:
                sample = Sample(number, time.monotonic() - started, resident_bytes() / 2**20)
                samples.append(sample)
                say(sample)
        while self._open:
            self._end(self._open.popleft())
        for waiter in self._queue.waiters():
            self._leave(waiter)
        self._check()
        snapshot = self._scheduler.snapshot()
        return CoreOutcome(
            samples=samples,
            outcomes=dict(self._outcomes),
            queued=self._queued,
            conversations=snapshot.conversations,
            cached_blocks=max(
                replica.cached_blocks for pool in snapshot.pools for replica in pool.replicas
            ),
        )

    def _play(self, number: int) -> None:
        chance = self._chance
        self._now += REQUEST_SECONDS
        request = self._request(number)
        if chance.random() < JOINS_AT_ONCE or not self._try(request):
            self._join(number, request)
        if len(self._open) >= IN_FLIGHT or self._waiting:
            # Requests end in another order than they came.
            self._open.rotate(-chance.randrange(8))
            if self._open:
                self._end(self._open.popleft())
            self._let_go()
        if self._waiting and chance.random() < 0.02:
            self._leave(chance.choice(self._queue.waiters()[:16]))
        if number % 100 == 0:
            for address in self._scheduler.wanting_health(self._now):
                self._scheduler.health(address, now=self._now, answered=chance.random() < 0.8)
        if number % 20_000 == 0:
            self._churn()
        if number % 200_000 == 0:
            self._scheduler.set_table(self._table)

    def _try(self, request: RouteRequest) -> bool:
        """Send a request if a replica is chosen; False: it may wait."""
        decision = self._scheduler.decide(request, now=self._now)
        self._outcomes[decision.outcome.value] += 1
        if decision.outcome in (Outcome.WAIT, Outcome.NO_REPLICA):
            return False
        if decision.outcome is Outcome.CHOSEN:
            self._open.append(self._scheduler.dispatch(request, decision, now=self._now))
        else:
            self._count(request.model, "", 404)
        return True

    def _join(self, number: int, request: RouteRequest) -> None:
        place = Place(
            rule=("assistant", "default"),
            lane=frozenset(POOLS),
            priority=self._chance.randrange(3),
            tenant=request.tenant,
            cost_tokens=request.prompt.estimated_tokens + 200.0,
            deadline=self._now + 30.0,
            arrived_at=self._now,
            again=self._chance.random() < 0.1,
        )
        joined = self._queue.join(number, place, rule_limit=2000, now=self._now)
        if not joined.accepted:
            self._count(request.model, "", 429)
            return
        self._queued += 1
        self._waiting[number] = request
        if joined.pushed_out is not None:
            del self._waiting[joined.pushed_out]

    def _let_go(self) -> None:
        """Let go who can, two at most."""
        lanes = {frozenset(POOLS)}
        left = 2
        for waiter in self._queue.in_order(lanes):
            if not self._try(self._waiting[waiter]):
                return
            self._queue.admit(waiter, now=self._now)
            del self._waiting[waiter]
            left -= 1
            if not left:
                return

    def _leave(self, waiter: int) -> None:
        self._queue.leave(waiter, now=self._now)
        request = self._waiting.pop(waiter)
        self._count(request.model, "", 499)

    def _request(self, number: int) -> RouteRequest:
        chance = self._chance
        tenant = f"tenant-{chance.randrange(TENANTS)}"
        # Now and then somebody asks for a model that there is not, each time another.
        model = "assistant" if chance.random() < 0.99 else f"nobody-{number}"
        return RouteRequest(
            request_id=f"request-{number}",
            model=model,
            api=Api.CHAT,
            prompt=self._prompt(number, tenant),
            tenant=tenant,
            conversation=f"conversation-{number}" if chance.random() < 0.3 else "",
            max_output_tokens=200,
            stream=chance.random() < 0.8,
        )

    def _prompt(self, number: int, tenant: str) -> Prompt:
        chance = self._chance
        if number % 1000 == 0:
            text = f"{number} " + "all work and no play " * chance.randrange(400)
            body = {"messages": [{"role": "user", "content": text}]}
            return prompt_of(body, Api.CHAT, model="assistant", tenant=tenant)
        blocks: list[PrefixBlock] = []
        if self._recent and chance.random() < 0.2:
            earlier = chance.choice(self._recent)
            blocks += earlier[: chance.randrange(len(earlier)) + 1]
        end = blocks[-1].end_bytes if blocks else 0
        for _ in range(chance.randrange(2, 9)):
            end += 256
            blocks.append(PrefixBlock(chance.getrandbits(64), end))
        found = tuple(blocks)
        if chance.random() < 0.1:
            self._recent.append(found)
        return Prompt(
            blocks=found,
            total_bytes=end + 100,
            estimated_tokens=(end + 100) // 4,
            root=chance.getrandbits(64),
        )

    def _end(self, ticket: Ticket) -> None:
        """Most answers come whole; some fail, some clients leave, before or after a token."""
        chance, scheduler, now = self._chance, self._scheduler, self._now
        fate = chance.random()
        model, pool = ticket.request.model, ticket.key.pool
        if fate < 0.9:
            if ticket.request.stream:
                scheduler.first_token(ticket, now=now)
                scheduler.tokens(ticket, chance.randrange(1, 200), now=now)
            usage = Usage(
                prompt_tokens=ticket.request.prompt.estimated_tokens,
                completion_tokens=chance.randrange(1, 200),
                cached_tokens=int(ticket.predicted_cached_tokens),
            )
            scheduler.finish(ticket, now=now, ok=True, usage=usage)
            self._metrics.series(model, pool, Api.CHAT).used(usage, usage.cached_tokens or 0)
            self._count(model, pool, 200)
        elif fate < 0.905:
            scheduler.failed(ticket.key, now=now, hard=chance.random() < 0.1)
            scheduler.finish(ticket, now=now, ok=False)
            self._metrics.trouble.retries[chance.choice(("reset", "status_500"))] += 1
            self._news.is_new("failed", ticket.key, ticket.request.request_id)
            self._count(model, pool, 503)
        else:
            if fate < 0.97:
                scheduler.first_token(ticket, now=now)
            scheduler.finish(ticket, now=now, ok=False)
            self._count(model, pool, 499)
        if fate < 0.0002:
            scheduler.instance(ticket.key, f"{chance.getrandbits(64):016x}", now=now)
        if fate < 0.2:
            load = LoadReport(waiting_requests=chance.randrange(4), kv_cache_usage=chance.random())
            scheduler.report(ticket.key, load, now=now)

    def _count(self, model: str, pool: str, code: int) -> None:
        self._metrics.series(model, pool, Api.CHAT).ended(code, 0.5)

    def _churn(self) -> None:
        """A replica goes, and one of another name comes."""
        pool = self._chance.choice(POOLS)
        self._lives[pool] += 1
        self._listed[pool].pop(0)
        self._listed[pool].append(f"{pool}-life-{self._lives[pool]}")
        self._publish(pool)

    def _publish(self, pool: str) -> None:
        addresses = [
            ReplicaAddress(
                key=ReplicaKey(pool, name),
                host="127.0.0.1",
                port=8000,
                sequence_slots=SLOTS,
                health_path="/health",
            )
            for name in self._listed[pool]
        ]
        self._scheduler.set_replicas(pool, addresses, now=self._now)

    def _check(self) -> None:
        gc.collect()
        if len(self._queue) or self._queue.depths() or self._queue.lanes():
            raise NotZeroError(f"{len(self._queue)} requests are left in the queue")
        for pool in self._scheduler.snapshot().pools:
            for replica in pool.replicas:
                left = (replica.in_flight, replica.decoding, replica.pending_prefill_tokens)
                if any(left):
                    raise NotZeroError(
                        f"{replica.key} still counts {left} (in flight, decoding, pending prefill "
                        "tokens) when every request has ended"
                    )


def route_table() -> RouteTable:
    """One name over two pools."""
    pools = {
        name: PoolEntry(
            name=name,
            served_model_name=name,
            backend=BackendType.RAY_SERVE,
            engine="VLLM",
            sequence_slots=SLOTS,
        )
        for name in POOLS
    }
    rule = Rule(name="default", targets=tuple(Target(pool=name) for name in POOLS))
    return RouteTable(pools=pools, routes={"assistant": Route(policy="assistant", rules=(rule,))})
