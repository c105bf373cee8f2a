"""The quick way and the one that scores every candidate choose alike, on any fleet."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pointsman_api.route_table import (
    FusedObjective,
    LatencyObjective,
    Pricing,
    Stickiness,
    Strategy,
    StrategyType,
    Target,
)
from pointsman_serving.routing.quick import quick_decision
from pointsman_serving.routing.scheduler import Scheduler
from pointsman_serving.routing.types import LoadReport, Outcome, ReplicaKey, RouteRequest, Usage
from tests.unit.routing.fleet import addresses, chat, pool_entry, table_of, text

if TYPE_CHECKING:
    from pointsman_serving.routing.ticket import Ticket

NAMES = "pqrs"
PREFIXES = [text(("prefix", number), 4_000) for number in range(3)]


def fleet(chance: random.Random, *, most_replicas: int = 8) -> Scheduler:
    """A few pools of different worth, price and context."""
    names = NAMES[: chance.randint(1, 4)]
    entries = [
        pool_entry(
            name,
            quality={"Default": chance.choice([0.5, 0.5, 0.52, 0.8]), "Code": chance.random()},
            pricing=Pricing(
                input_dollars=chance.choice([0.0, 1e-6]),
                cached_input_dollars=chance.choice([0.0, 1e-7]),
                output_dollars=chance.choice([0.0, 4e-6]),
            ),
            context_tokens=chance.choice([None, None, 900]),
        )
        for name in names
    ]
    objective = FusedObjective(
        quality_per_second=chance.choice([0.0, 0.01, 0.1]),
        quality_per_dollar=chance.choice([0.0, 20.0]),
    )
    strategy = Strategy(
        type=chance.choice([StrategyType.FUSED, StrategyType.FUSED, StrategyType.WEIGHTED]),
        objective=objective,
        stickiness=Stickiness(ttl_seconds=chance.choice([0.0, 60.0])),
    )
    targets = tuple(Target(pool=name, weight=chance.randint(0, 3)) for name in names)
    slo = LatencyObjective(ttft_seconds=chance.choice([None, None, 0.2]))
    table = table_of(*entries, strategy=strategy, targets=targets, slo=slo)
    scheduler = Scheduler(table, seed=chance.randint(0, 3))
    for name in names:
        replicas = [f"r{number}" for number in range(chance.randint(0, most_replicas))]
        scheduler.set_replicas(name, addresses(name, *replicas, slots=4), now=0.0)
    return scheduler


def question(chance: random.Random, number: int) -> RouteRequest:
    """Short or long, known or new, the first of a conversation or not."""
    messages = [chance.choice([*PREFIXES, ""]) + text(number, chance.choice([20, 300, 3_000]))]
    if chance.random() < 0.3:
        messages = [PREFIXES[0][:500], "an answer", *messages]
    return chat(
        *messages,
        request_id=f"r{number}",
        stream=chance.random() < 0.7,
        task=chance.choice(["Default", "Code", "Unheard"]),
        max_output_tokens=chance.choice([None, 1, 64, 4_000]),
        conversation=chance.choice(["", "", "c1", "c2"]),
    )


def live(scheduler: Scheduler, chance: random.Random, *, steps: int) -> float:
    """Let things happen to a fleet; returns the time."""
    now = chance.choice([0.0, 3_590.0, 1e6])
    opened: list[Ticket] = []
    keys = [each.key for pool in scheduler.snapshot().pools for each in pool.replicas]
    for number in range(steps):
        now += chance.choice([0.0, 0.01, 1.0, 20.0])
        if opened and chance.random() < 0.4:
            ticket = opened.pop(chance.randrange(len(opened)))
            scheduler.first_token(ticket, now=now)
            # One replica in three is far slower than the others.
            slow = 8.0 if ticket.key.replica in {"r0", "r3", "r6"} else 1.0
            usage = Usage(
                prompt_tokens=ticket.request.prompt.estimated_tokens,
                completion_tokens=chance.randint(1, 60),
                cached_tokens=chance.choice([0, 500]),
            )
            scheduler.tokens(ticket, 20, now=now)
            ok = chance.random() < 0.8
            scheduler.finish(ticket, now=now + slow * 0.3, ok=ok, usage=usage)
            continue
        if opened and chance.random() < 0.3:
            scheduler.tokens(chance.choice(opened), 2, now=now)
        if keys and chance.random() < 0.1:
            report = LoadReport(waiting_requests=chance.randint(0, 5), running_requests=6.0)
            scheduler.report(chance.choice(keys), report, now=now)
        if keys and chance.random() < 0.1:
            scheduler.failed(chance.choice(keys), now=now, hard=chance.random() < 0.5)
        request = question(chance, number)
        decision = scheduler.decide(request, now=now)
        if decision.winner is not None:
            opened.append(scheduler.dispatch(request, decision, now=now))
    return now


@settings(max_examples=150)
@given(st.randoms(use_true_random=False), st.integers(0, 60))
def test_quick_choice_is_that_of_a_full_score_when_anything_has_happened(
    chance: random.Random, steps: int
) -> None:
    scheduler = fleet(chance)
    now = live(scheduler, chance, steps=steps)
    keys = [each.key for pool in scheduler.snapshot().pools for each in pool.replicas]
    for number in range(6):
        request = question(chance, 1_000 + number)
        exclude = set(chance.sample(keys, min(len(keys), chance.choice([0, 0, 2]))))
        later = now + chance.choice([0.0, 0.5, 40.0])
        full = scheduler.decide(request, now=later, exclude=exclude, explain=True)
        quick = scheduler.decide(request, now=later, exclude=exclude)
        assert (full.outcome, full.winner) == (quick.outcome, quick.winner)


@settings(max_examples=30)
@given(st.randoms(use_true_random=False), st.integers(0, 60))
def test_explanation_is_of_the_choice_when_the_fleet_is_large(
    chance: random.Random, steps: int
) -> None:
    scheduler = fleet(chance, most_replicas=60)
    now = live(scheduler, chance, steps=steps)
    for number in range(4):
        request = question(chance, 1_000 + number)
        full = scheduler.decide(request, now=now, explain=True)
        quick = scheduler.decide(request, now=now)
        assert full.winner == quick.winner


@pytest.mark.parametrize("replicas", [4, 40])
def test_choice_is_quick_when_nothing_is_odd(replicas: int) -> None:
    scheduler = Scheduler(table_of(pool_entry("p"), pool_entry("q")))
    for pool in "pq":
        names = [f"r{number}" for number in range(replicas)]
        scheduler.set_replicas(pool, addresses(pool, *names), now=0.0)
    request = chat(text("x", 500))
    decision = quick_decision(
        scheduler._plans[id(scheduler._table.table.routes["assistant"].rules[0])],
        "assistant",
        scheduler._pools,
        request,
        stay=None,
        holders=scheduler._holders,
        exclude=(),
        score_all_up_to=32,
        seed=0,
        now=0.0,
    )
    assert decision is not None
    assert Outcome.CHOSEN is decision.outcome


def test_far_less_busy_replica_is_found_when_the_fleet_is_large() -> None:
    scheduler = Scheduler(table_of(pool_entry()))
    names = [f"r{number}" for number in range(200)]
    scheduler.set_replicas("dense", addresses("dense", *names), now=0.0)
    idle = ReplicaKey("dense", "r77")
    for number in range(3 * 199):
        request = chat(text(number, 200))
        decision = scheduler.decide(request, now=0.0, exclude={idle})
        scheduler.dispatch(request, decision, now=0.0)
    winner = scheduler.decide(chat(text("new", 200)), now=0.0).winner
    assert winner is not None
    assert idle == winner.key
