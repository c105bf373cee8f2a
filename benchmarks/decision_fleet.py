"""The fleets that ``decision.py`` decides on: four pools, a full estimate, answers that come."""

from __future__ import annotations

import heapq
import itertools
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from resident import resident_bytes

from pointsman_api.route_table import (
    BackendType,
    FusedObjective,
    PoolEntry,
    Pricing,
    Route,
    RouteTable,
    Rule,
    Strategy,
    Target,
)
from pointsman_serving.routing.scheduler import Scheduler
from pointsman_serving.routing.types import (
    Api,
    Prompt,
    ReplicaAddress,
    ReplicaKey,
    RouteRequest,
    Usage,
)

if TYPE_CHECKING:
    import random

    from pointsman_serving.routing.ticket import Ticket

# At this price of a second every pool gets its share of what comes.
QUALITY_PER_SECOND = 0.05

# Quality, seconds to the first token, seconds a token, dollars per million tokens in and out.
TIERS = (
    (0.60, 0.05, 0.008, 0.06, 0.06),
    (0.61, 0.08, 0.010, 0.07, 0.07),
    (0.63, 0.12, 0.013, 0.15, 0.15),
    (0.66, 0.20, 0.018, 0.38, 0.40),
)


class WrongDecisionError(Exception):
    """The arm does not do what it is timed for."""


@dataclass(kw_only=True)
class Fleet:
    """A scheduler with its pools, and the events that are still to come."""

    replicas: int
    scheduler: Scheduler
    now: float = 0.0
    events: list[tuple[float, int, Ticket, bool]] = field(default_factory=list)
    finish_us: list[float] = field(default_factory=list)
    blocks: int = 0
    block_bytes: float = 0.0


def fleet_of(replicas: int, seed: int) -> Fleet:
    """Four pools that share the replicas evenly, none busy."""
    entries = {}
    for number, (quality, _, _, dollars_in, dollars_out) in enumerate(TIERS):
        name = f"pool-{number}"
        entries[name] = PoolEntry(
            name=name,
            served_model_name=name,
            backend=BackendType.RAY_SERVE,
            engine="VLLM",
            pricing=Pricing(
                input_dollars=dollars_in * 1e-6,
                cached_input_dollars=dollars_in * 1e-7,
                output_dollars=dollars_out * 1e-6,
            ),
            quality={"Default": quality},
        )
    rule = Rule(
        name="default",
        targets=tuple(Target(pool=name) for name in entries),
        strategy=Strategy(objective=FusedObjective(quality_per_second=QUALITY_PER_SECOND)),
    )
    routes = {"assistant": Route(policy="assistant", rules=(rule,))}
    for name in entries:
        own = Rule(name="default", targets=(Target(pool=name),))
        routes[name] = Route(policy=name, rules=(own,))
    scheduler = Scheduler(RouteTable(pools=entries, routes=routes), seed=seed)
    for name in entries:
        listed = [
            ReplicaAddress(key=ReplicaKey(name, f"r{number}"), host="127.0.0.1", port=8000)
            for number in range(replicas // len(entries))
        ]
        scheduler.set_replicas(name, listed, now=0.0)
    return Fleet(replicas=replicas, scheduler=scheduler)


def fill(fleet: Fleet, chance: random.Random) -> None:
    """Send every replica prompts that are never seen again until it holds what it may."""
    scheduler = fleet.scheduler
    before = resident_bytes()
    pools = scheduler.snapshot().pools
    keys = [replica.key for pool in pools for replica in pool.replicas]
    every = set(keys)
    found = scheduler.route(request_of(0, chance))
    if found is None:
        raise WrongDecisionError("no rule takes the requests that fill the estimate")
    counts = dict.fromkeys(keys, -1)
    for number in itertools.count():
        for key in keys:
            request = request_of(number, chance)
            decision = scheduler.decide(
                request, now=0.0, exclude=every - {key}, within=(*found, key.pool)
            )
            ticket = scheduler.dispatch(request, decision, now=0.0)
            scheduler.finish(ticket, now=0.0, ok=True, learn=False)
        after = {
            each.key: each.cached_blocks for p in scheduler.snapshot().pools for each in p.replicas
        }
        if after == counts:
            break
        counts = after
    fleet.blocks = sum(counts.values())
    fleet.block_bytes = max(0, resident_bytes() - before) / max(1, fleet.blocks)


def request_of(number: int, chance: random.Random) -> RouteRequest:
    """A prompt of a thousand small blocks that no other shares."""
    blocks = [(chance.getrandbits(64), 64 * (at + 1)) for at in range(1_000)]
    return RouteRequest(
        request_id=f"fill-{number}",
        model="assistant",
        api=Api.CHAT,
        prompt=Prompt(
            blocks=blocks, total_bytes=64_000, estimated_tokens=16_000, root=chance.getrandbits(64)
        ),
    )


def catch_up(fleet: Fleet) -> None:
    """Let the answers come that are due."""
    scheduler = fleet.scheduler
    clock = time.perf_counter
    while fleet.events and fleet.events[0][0] <= fleet.now:
        at, _, ticket, ends = heapq.heappop(fleet.events)
        if not ends:
            scheduler.first_token(ticket, now=at)
            scheduler.tokens(ticket, 100, now=at)
            continue
        usage = Usage(
            prompt_tokens=ticket.request.prompt.estimated_tokens,
            completion_tokens=100,
            cached_tokens=int(ticket.predicted_cached_tokens),
        )
        started = clock()
        scheduler.finish(ticket, now=at, ok=True, usage=usage)
        fleet.finish_us.append((clock() - started) * 1e6)
