"""A fleet on virtual time, to try the scheduler on: engines with slots, prefill and a cache."""

from __future__ import annotations

import heapq
import itertools
import random
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pointsman_api.route_table import (
    BackendType,
    PoolEntry,
    Route,
    RouteTable,
    Rule,
    Target,
)
from pointsman_serving.routing.prefix import prompt_of
from pointsman_serving.routing.scheduler import Scheduler
from pointsman_serving.routing.types import (
    Api,
    Decision,
    Outcome,
    ReplicaAddress,
    ReplicaKey,
    RouteRequest,
    Usage,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Mapping, Sequence

    from pointsman_serving.routing.ticket import Ticket

_numbers = itertools.count()


def pool_entry(name: str = "dense", **changes: object) -> PoolEntry:
    fields: dict[str, object] = {
        "name": name,
        "served_model_name": name,
        "backend": BackendType.RAY_SERVE,
        "engine": "VLLM",
        "sequence_slots": 8,
    }
    return PoolEntry(**(fields | changes))  # type: ignore[arg-type]


def table_of(*pools: PoolEntry, **rule: object) -> RouteTable:
    """One route, ``assistant``, with one rule over all pools, and each pool's own."""
    fields: dict[str, object] = {
        "name": "default",
        "targets": tuple(Target(pool=pool.name) for pool in pools),
    }
    routes = {"assistant": Route(policy="assistant", rules=(Rule(**(fields | rule)),))}  # type: ignore[arg-type]
    for pool in pools:
        own = Rule(name="default", targets=(Target(pool=pool.name),))
        routes[pool.served_model_name] = Route(policy=f"pool:{pool.name}", rules=(own,))
    return RouteTable(pools={pool.name: pool for pool in pools}, routes=routes)


def addresses(pool: str, *names: str, slots: int = 8, port: int = 8000) -> list[ReplicaAddress]:
    return [
        ReplicaAddress(
            key=ReplicaKey(pool, name), host="127.0.0.1", port=port + i, sequence_slots=slots
        )
        for i, name in enumerate(names)
    ]


def chat(*messages: str, model: str = "assistant", **fields: object) -> RouteRequest:
    """A chat whose messages are the user's and the assistant's by turns."""
    body = {
        "messages": [
            {"role": "user" if i % 2 == 0 else "assistant", "content": text}
            for i, text in enumerate(messages)
        ]
    }
    tenant = str(fields.get("tenant", ""))
    values: dict[str, object] = {
        "request_id": f"request-{next(_numbers)}",
        "model": model,
        "api": Api.CHAT,
        "prompt": prompt_of(body, Api.CHAT, model=model, tenant=tenant),
    }
    return RouteRequest(**(values | fields))  # type: ignore[arg-type]


def text(seed: object, size: int) -> str:
    """Words that share nothing with those of another seed."""
    chance = random.Random(str(seed))
    return "".join(chance.choices("abcdefghij klmnop", k=size))


@dataclass(kw_only=True)
class Engine:
    """One replica: prefill one after another, decode together, blocks cached least recently."""

    slots: int = 8
    prefill_seconds_per_token: float = 1e-4
    base_seconds: float = 0.02
    step_seconds: float = 0.015
    step_seconds_per_sequence: float = 5e-5
    noise: float = 0.0
    capacity_blocks: int = 4_000
    caches: bool = True
    bytes_per_token: int = 4
    template_tokens: int = 0
    running: int = 0
    prefill_free_at: float = 0.0
    waiting: deque[Call] = field(default_factory=deque)
    blocks: OrderedDict[int, None] = field(default_factory=OrderedDict)

    def prompt_tokens(self, request: RouteRequest) -> int:
        return self.template_tokens + max(1, request.prompt.total_bytes // self.bytes_per_token)

    def cached_tokens(self, request: RouteRequest) -> int:
        """In whole blocks of sixteen tokens."""
        return self.cached_bytes(request) // self.bytes_per_token // 16 * 16

    def cached_bytes(self, request: RouteRequest) -> int:
        found = 0
        for block, end in request.prompt.blocks:
            if block not in self.blocks:
                break
            found = end
        return found if self.caches else 0

    def store(self, request: RouteRequest) -> None:
        for block, _ in reversed(request.prompt.blocks):
            self.blocks[block] = None
            self.blocks.move_to_end(block)
        while len(self.blocks) > self.capacity_blocks:
            self.blocks.popitem(last=False)


@dataclass(kw_only=True, eq=False)
class Call:
    """One request on one engine."""

    key: ReplicaKey
    ticket: Ticket
    request: RouteRequest
    output_tokens: int
    sent_at: float
    cached_tokens: int = 0
    first_token_at: float | None = None
    finished_at: float | None = None


class Fleet:
    """Engines, a scheduler that sees their events, and a clock."""

    def __init__(self, scheduler: Scheduler, *, seed: int = 0) -> None:
        self.scheduler = scheduler
        self.now = 0.0
        self.engines: dict[ReplicaKey, Engine] = {}
        self.calls: list[Call] = []
        self._chance = random.Random(seed)
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()

    def start(self, pool: str, engines: Mapping[str, Engine]) -> None:
        """List a pool's replicas, each with its engine."""
        listed: list[ReplicaAddress] = []
        for i, (name, engine) in enumerate(engines.items()):
            self.engines[ReplicaKey(pool, name)] = engine
            listed += addresses(pool, name, slots=engine.slots, port=8000 + i)
        self.scheduler.set_replicas(pool, listed, now=self.now)

    def send(
        self,
        request: RouteRequest,
        *,
        output_tokens: int = 32,
        exclude: Container[ReplicaKey] = (),
    ) -> tuple[Decision, Call | None]:
        """Decide and, if a replica was chosen, dispatch."""
        decision = self.scheduler.decide(request, now=self.now, exclude=exclude)
        if decision.outcome is not Outcome.CHOSEN or decision.winner is None:
            return decision, None
        ticket = self.scheduler.dispatch(request, decision, now=self.now)
        call = Call(
            key=decision.winner.key,
            ticket=ticket,
            request=request,
            output_tokens=output_tokens,
            sent_at=self.now,
        )
        self.calls.append(call)
        engine = self.engines[call.key]
        if engine.running < engine.slots:
            self._begin(engine, call)
        else:
            engine.waiting.append(call)
        return decision, call

    def ask(self, request: RouteRequest, *, output_tokens: int = 32) -> Call:
        """Send one request and wait for its end."""
        decision, call = self.send(request, output_tokens=output_tokens)
        assert call is not None, decision
        while call.finished_at is None:
            self.step()
        return call

    def step(self) -> None:
        """Go to the next event."""
        self.now, _, event = heapq.heappop(self._events)
        event()

    def run(self, until: float | None = None) -> None:
        """Let events happen, all of them or those up to a time."""
        while self._events and (until is None or self._events[0][0] <= until):
            self.step()
        if until is not None:
            self.now = max(self.now, until)

    def _at(self, when: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when, next(self._order), event))

    def _noisy(self, engine: Engine, seconds: float) -> float:
        return seconds * (1.0 + engine.noise * self._chance.uniform(-1.0, 1.0))

    def _begin(self, engine: Engine, call: Call) -> None:
        engine.running += 1
        call.cached_tokens = engine.cached_tokens(call.request)
        tokens = engine.prompt_tokens(call.request) - call.cached_tokens
        seconds = self._noisy(
            engine, engine.base_seconds + tokens * engine.prefill_seconds_per_token
        )
        engine.prefill_free_at = max(engine.prefill_free_at, self.now) + seconds
        self._at(engine.prefill_free_at, lambda: self._first(engine, call))

    def _first(self, engine: Engine, call: Call) -> None:
        engine.store(call.request)
        call.first_token_at = self.now
        if call.request.stream:
            self.scheduler.first_token(call.ticket, now=self.now)
            self.scheduler.tokens(call.ticket, call.output_tokens, now=self.now)
        step = engine.step_seconds + engine.running * engine.step_seconds_per_sequence
        seconds = self._noisy(engine, step * max(0, call.output_tokens - 1))
        self._at(self.now + seconds, lambda: self._end(engine, call))

    def _end(self, engine: Engine, call: Call) -> None:
        call.finished_at = self.now
        engine.running -= 1
        usage = Usage(
            prompt_tokens=engine.prompt_tokens(call.request),
            completion_tokens=call.output_tokens,
            cached_tokens=call.cached_tokens,
        )
        self.scheduler.finish(call.ticket, now=self.now, ok=True, usage=usage)
        if engine.waiting:
            self._begin(engine, engine.waiting.popleft())


def fleet_of(
    *pools: PoolEntry,
    replicas: int = 2,
    seed: int = 0,
    engine: Callable[[], Engine] = Engine,
    **rule: object,
) -> Fleet:
    """Pools of equal engines, named a, b, c, …"""
    fleet = Fleet(Scheduler(table_of(*pools, **rule), seed=seed), seed=seed)
    for pool in pools:
        names = [f"{chr(ord('a') + i % 26)}{i // 26 or ''}" for i in range(replicas)]
        fleet.start(pool.name, {name: engine() for name in names})
    return fleet


def places(calls: Sequence[Call]) -> list[str]:
    """Where calls went, by replica name."""
    return [call.key.replica for call in calls]
