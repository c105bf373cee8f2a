"""What one routing decision costs: from the body's bytes to the chosen replica.

    python benchmarks/decision.py [--rounds 4000] [--seed 0] [--json decision.json]

A decision is what the gateway does before it sends: decode the body, hash the prompt, decide.
What comes after it (dispatch, first token, finish) is timed beside it. Four pools of different
quality, speed and price share the replicas; four requests are open for each. The estimate of
what the replicas have cached is full before anything is timed, most prompts are unlike any other,
and the garbage collector is on. All arms run in turns in one process, so that a core that slows
down slows all of them; so does what the times are compared with, a JSON decoder and one xxh3 over
the prompt.

It refuses to report when a decision is wrong: when the quick way chooses another replica than
the one that scores every candidate, or when a prompt that was just sent is not thought cached.
"""

from __future__ import annotations

import argparse
import gc
import heapq
import itertools
import json
import random
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from decision_fleet import TIERS, Fleet, WrongDecisionError, catch_up, fill, fleet_of
from provenance import provenance
from xxhash import xxh3_64_intdigest

from pointsman_serving.gateway.body import parse_body
from pointsman_serving.gateway.headers import parse_headers
from pointsman_serving.gateway.isolation import route_request
from pointsman_serving.routing.candidates import SCORE_ALL_UP_TO
from pointsman_serving.routing.types import Api

if TYPE_CHECKING:
    from pointsman_serving.routing.scheduler import Scheduler
    from pointsman_serving.routing.ticket import Ticket
    from pointsman_serving.routing.types import Decision, RouteRequest

try:
    import orjson

    DECODER, decode = "orjson", orjson.loads
except ImportError:
    DECODER, decode = "msgspec", msgspec.json.decode

SMALL, LARGE = 16, 1_024
SIZES = {"1 kB": 1_024, "48 kB": 48 * 1_024}
OPEN_PER_REPLICA = 4
GROUPS = 20
CHECKED_EVERY = 25
# Arms alternate in slices, or each would find the processor's caches full of the others' fleets.
SLICE = 25
STEPS = ("decode", "hash", "decide", "dispatch", "finish")


@dataclass(kw_only=True)
class Arm:
    """One fleet, one size of prompt, and whether nine tenths of a prompt are shared."""

    fleet: Fleet
    size: str
    shared: bool
    prefixes: list[str]
    times: dict[str, list[float]] = field(default_factory=lambda: {step: [] for step in STEPS})
    decision_us: list[float] = field(default_factory=list)
    reference_us: list[float] = field(default_factory=list)
    processor_us: list[float] = field(default_factory=list)
    """Of the decision, without the time in which other processes had the core."""
    regrets: list[tuple[float, float]] = field(default_factory=list)
    """What the choice costs and what the best of all replicas would: lost quality, time, money."""


def body_of(arm: Arm, chance: random.Random, model: str = "assistant") -> bytes:
    """A chat completion whose prompt has the arm's size."""
    size = SIZES[arm.size]
    if arm.shared:
        content = chance.choice(arm.prefixes) + words(chance, size // 10)
    else:
        content = words(chance, size)
    body = {
        "model": model,
        "messages": [{"role": "user", "content": content}],
        "max_tokens": 128,
        "temperature": 0.7,
        "stream": True,
    }
    return json.dumps(body).encode()


def words(chance: random.Random, size: int) -> str:
    """Text that shares nothing with any other."""
    return chance.randbytes(size // 2 + 1).hex()[:size]


def settle(fleet: Fleet, chance: random.Random) -> None:
    """Let as many requests be open as will be, and the pools be known."""
    arm = Arm(fleet=fleet, size="1 kB", shared=False, prefixes=[])
    for number in range(4 * OPEN_PER_REPLICA * fleet.replicas):
        # First every pool by itself, or those that nobody has tried might never be.
        learns = number < OPEN_PER_REPLICA * fleet.replicas
        model = f"pool-{number % len(TIERS)}" if learns else "assistant"
        play(arm, -1 - number, chance, checked=False, model=model)
    fleet.finish_us.clear()


def play(
    arm: Arm, number: int, chance: random.Random, *, checked: bool, model: str = "assistant"
) -> None:
    """One request, up to its dispatch, and all events that are due before it."""
    fleet = arm.fleet
    scheduler = fleet.scheduler
    fleet.now += 1.0 / (OPEN_PER_REPLICA * fleet.replicas)
    now = fleet.now
    catch_up(fleet)
    raw = body_of(arm, chance, model)
    content = raw[60:]
    headers = parse_headers([], f"request-{number}", trust_fairness=False)
    clock = time.perf_counter
    started = clock()
    decode(raw)
    xxh3_64_intdigest(content)
    arm.reference_us.append((clock() - started) * 1e6)
    on_core = time.thread_time()
    started = clock()
    body = parse_body(raw)
    decoded = clock()
    request = route_request(Api.CHAT, headers, body, now, shared=False)
    hashed = clock()
    decision = scheduler.decide(request, now=now)
    decided = clock()
    arm.processor_us.append((time.thread_time() - on_core) * 1e6)
    if decision.winner is None:
        raise WrongDecisionError(f"expected a choice, got: {decision.reason}")
    if checked:
        compare(arm, request, decision)
    before = clock()
    ticket = scheduler.dispatch(request, decision, now=now)
    dispatched = clock()
    arm.decision_us.append((decided - started) * 1e6)
    steps = (decoded - started, hashed - decoded, decided - hashed, dispatched - before)
    for step, seconds in zip(STEPS, steps, strict=False):
        arm.times[step].append(seconds * 1e6)
    if checked:
        check_cached(scheduler, request, ticket, now)
    _, first, step_seconds, _, _ = TIERS[int(ticket.key.pool[-1])]
    first *= chance.uniform(0.7, 1.3)
    step_seconds *= 1.0 + ticket.replica.load.in_flight / 64
    ends = first + 100 * step_seconds * chance.uniform(0.7, 1.3)
    order = 2 * number
    heapq.heappush(fleet.events, (now + first, order, ticket, False))
    heapq.heappush(fleet.events, (now + ends, order + 1, ticket, True))


def compare(arm: Arm, request: RouteRequest, decision: Decision) -> None:
    """Hold the choice against one that scores all it looks at, and against all replicas."""
    scheduler, now = arm.fleet.scheduler, arm.fleet.now
    explained = scheduler.decide(request, now=now, explain=True)
    if explained.winner != decision.winner:
        raise WrongDecisionError(f"chose {decision.winner}; scoring all: {explained.winner}")
    scheduler.score_all_up_to = arm.fleet.replicas
    every = scheduler.decide(request, now=now)
    scheduler.score_all_up_to = SCORE_ALL_UP_TO
    if every.winner is None or decision.winner is None:
        raise WrongDecisionError(f"expected a choice, got: {every.reason}")
    highest = max(tier[0] for tier in TIERS)
    arm.regrets.append((highest - decision.winner.score, highest - every.winner.score))


def check_cached(scheduler: Scheduler, request: RouteRequest, ticket: Ticket, now: float) -> None:
    """The replica that was just sent a prompt must be thought to hold it."""
    candidates = scheduler.decide(request, now=now, explain=True).candidates
    cached = {each.key: each.predicted_cached_tokens for each in candidates}
    tokens = request.prompt.estimated_tokens
    if cached.get(ticket.key, 0) < 0.8 * tokens:
        raise WrongDecisionError(
            f"{ticket.key} was just sent a prompt of {tokens} tokens and is thought to hold "
            f"{cached.get(ticket.key, 0)} of them"
        )


def quantile(times: list[float], share: float) -> float:
    """A quantile, the first tenth left out as warm-up."""
    warm = sorted(times[len(times) // 10 :])
    return warm[min(len(warm) - 1, int(share * len(warm)))]


def row_of(arm: Arm) -> dict[str, Any]:
    """An arm's figures."""
    reference = quantile(arm.reference_us, 0.5)
    p50 = quantile(arm.decision_us, 0.5)
    chosen = sum(cost for cost, _ in arm.regrets)
    best = sum(cost for _, cost in arm.regrets)
    return {
        "replicas": arm.fleet.replicas,
        "prompt": arm.size,
        "shared": arm.shared,
        "p50_us": round(p50, 2),
        "p99_us": round(quantile(arm.decision_us, 0.99), 2),
        "p50_processor_us": round(quantile(arm.processor_us, 0.5), 2),
        "p99_processor_us": round(quantile(arm.processor_us, 0.99), 2),
        "reference_p50_us": round(reference, 2),
        "times_reference": round(p50 / reference, 2),
        "regret": round(chosen / best - 1.0, 4),
        "steps_p50_us": {
            step: round(quantile(times, 0.5), 2) for step, times in arm.times.items() if times
        },
    }


def print_table(rows: list[dict[str, Any]], fleets: list[Fleet]) -> None:
    """One line an arm, in microseconds."""
    print(
        f"{'replicas':>8} {'prompt':>6} {'shared':>6} {'p50':>7} {'p99':>7} {'p99 cpu':>8} "
        f"{'/reference':>10} {'regret':>7}" + "".join(f"{step:>10}" for step in STEPS[:-1])
    )
    for row in rows:
        steps = "".join(f"{row['steps_p50_us'][step]:>10.1f}" for step in STEPS[:-1])
        print(
            f"{row['replicas']:>8} {row['prompt']:>6} {'90%' if row['shared'] else '-':>6} "
            f"{row['p50_us']:>7.1f} {row['p99_us']:>7.1f} {row['p99_processor_us']:>8.1f} "
            f"{row['times_reference']:>10.2f} {row['regret']:>7.2%}{steps}"
        )
    for fleet in fleets:
        print(
            f"{fleet.replicas} replicas: finish {quantile(fleet.finish_us, 0.5):.1f} us; estimate "
            f"of {fleet.blocks:,} blocks, {fleet.block_bytes:.0f} bytes each, "
            f"{fleet.blocks * fleet.block_bytes / 2**20:.0f} MiB in all"
        )


def figures(rows: list[dict[str, Any]]) -> dict[str, float]:
    """The headline: unlike prompts; growth is that of the size that grows more."""
    unlike = {(row["replicas"], row["prompt"]): row for row in rows if not row["shared"]}
    growth = max(unlike[LARGE, size]["p50_us"] / unlike[SMALL, size]["p50_us"] for size in SIZES)
    return {
        "p50_us_16_1kB": unlike[SMALL, "1 kB"]["p50_us"],
        "p50_us_16": unlike[SMALL, "48 kB"]["p50_us"],
        "p99_us_16": unlike[SMALL, "48 kB"]["p99_us"],
        "growth_16_to_1024": round(growth, 3),
        "regret_1024": max(row["regret"] for row in rows if row["replicas"] == LARGE),
        "times_reference_16_1kB": unlike[SMALL, "1 kB"]["times_reference"],
        "times_reference_16": unlike[SMALL, "48 kB"]["times_reference"],
    }


def main() -> int:
    """Run all arms in turns, print the table and write the JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=4_000, help="requests for each arm")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", help="a path, or - for the standard output in the table's place")
    options = parser.parse_args()
    if options.rounds < 200:
        parser.error(f"--rounds is {options.rounds}; at least 200 are needed for a 99th percentile")
    chance = random.Random(options.seed)
    fleets = [fleet_of(replicas, options.seed) for replicas in (SMALL, LARGE)]
    try:
        for fleet in fleets:
            fill(fleet, chance)
            settle(fleet, chance)
        arms = [
            Arm(
                fleet=fleet,
                size=size,
                shared=shared,
                prefixes=[words(chance, SIZES[size] * 9 // 10) for _ in range(GROUPS)],
            )
            for fleet in fleets
            for shared in (False, True)
            for size in SIZES
        ]
        numbers = itertools.count()
        for start in range(0, options.rounds, SLICE):
            for arm in arms:
                for step in range(SLICE):
                    checked = (start + step) % CHECKED_EVERY == 0
                    play(arm, next(numbers), chance, checked=checked)
    except WrongDecisionError as error:
        print(f"no report: {error}", file=sys.stderr)
        return 1
    rows = [row_of(arm) for arm in arms]
    document = {
        **provenance("xxhash", DECODER),
        **figures(rows),
        "seed": options.seed,
        "rounds": options.rounds,
        "reference": f"{DECODER} and one xxh3 over the prompt",
        "garbage_collections": gc.get_stats()[2]["collections"],
        "arms": rows,
        "fleets": [
            {
                "replicas": fleet.replicas,
                "finish_p50_us": round(quantile(fleet.finish_us, 0.5), 2),
                "estimated_blocks": fleet.blocks,
                "bytes_per_block": round(fleet.block_bytes, 1),
            }
            for fleet in fleets
        ],
    }
    text = json.dumps(document, indent=2) + "\n"
    if options.json == "-":
        print(text, end="")
        return 0
    print_table(rows, fleets)
    if options.json:
        Path(options.json).write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
