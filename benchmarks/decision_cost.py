"""What one routing decision costs, by size of the fleet and of the prompt.

    python benchmarks/decision_cost.py [--rounds 2000] [--seed 0] [--out decision_cost.json]

All arms run in turns in one process, so that a core that slows down slows all of them. Each
round hashes a prompt, decides, dispatches and finishes it. Times are microseconds of one core.
The benchmark refuses to report when a decision is wrong: a replica that was just sent a prompt
must be predicted to hold it, and no more candidates may be scored than the scheduler promises.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from provenance import provenance

from pointsman_api.route_table import (
    BackendType,
    PoolEntry,
    Pricing,
    Route,
    RouteTable,
    Rule,
    Target,
)
from pointsman_serving.routing.candidates import SCORE_ALL_UP_TO, SCORED_BEYOND
from pointsman_serving.routing.prefix import prompt_of
from pointsman_serving.routing.scheduler import Scheduler
from pointsman_serving.routing.types import (
    Api,
    Outcome,
    ReplicaAddress,
    ReplicaKey,
    RouteRequest,
    Usage,
)

FLEETS = (2, 8, 32, 33, 100, 300)
PROMPT_BYTES = (1_024, 48 * 1_024)
POOLS = 2
GROUPS = 20
STEPS = ("hash", "decide", "dispatch", "finish")


class WrongDecisionError(Exception):
    """The arm does not do what it is timed for."""


@dataclass(kw_only=True)
class Arm:
    """One fleet and one size of prompt."""

    replicas: int
    prompt_bytes: int
    scheduler: Scheduler
    prefixes: list[str]
    scored: int = 0
    times: dict[str, list[float]] = field(default_factory=lambda: {step: [] for step in STEPS})


def arm_of(replicas: int, prompt_bytes: int, seed: int) -> Arm:
    """Two pools that share the replicas, and twenty shared prefixes of nine tenths."""
    names = [f"pool-{number}" for number in range(POOLS)]
    entries = {
        name: PoolEntry(
            name=name,
            served_model_name=name,
            backend=BackendType.RAY_SERVE,
            engine="VLLM",
            pricing=Pricing(input_dollars=1e-7, cached_input_dollars=1e-8, output_dollars=4e-7),
            quality={"Default": 0.6},
        )
        for name in names
    }
    rule = Rule(name="default", targets=tuple(Target(pool=name) for name in names))
    table = RouteTable(
        pools=entries, routes={"assistant": Route(policy="assistant", rules=(rule,))}
    )
    scheduler = Scheduler(table, seed=seed)
    for index, name in enumerate(names):
        count = replicas // POOLS + (index < replicas % POOLS)
        listed = [
            ReplicaAddress(key=ReplicaKey(name, f"r{number}"), host="127.0.0.1", port=8000)
            for number in range(count)
        ]
        scheduler.set_replicas(name, listed, now=0.0)
    chance = random.Random(seed)
    prefixes = [
        "".join(chance.choices("abcdefgh ijklmnop", k=prompt_bytes * 9 // 10))
        for _ in range(GROUPS)
    ]
    return Arm(replicas=replicas, prompt_bytes=prompt_bytes, scheduler=scheduler, prefixes=prefixes)


def play(arm: Arm, number: int, chance: random.Random) -> None:
    """One request through its life; ten seconds of virtual time apart."""
    clock = time.perf_counter
    now = 10.0 * number
    content = chance.choice(arm.prefixes) + "".join(
        chance.choices("abcdefgh", k=arm.prompt_bytes // 10)
    )
    body = {"messages": [{"role": "user", "content": content}]}
    started = clock()
    prompt = prompt_of(body, Api.CHAT, model="assistant", tenant="")
    hashed = clock()
    request = RouteRequest(
        request_id=f"request-{number}", model="assistant", api=Api.CHAT, prompt=prompt
    )
    before = clock()
    decision = arm.scheduler.decide(request, now=now)
    decided = clock()
    if decision.outcome is not Outcome.CHOSEN:
        raise WrongDecisionError(f"expected a choice, got: {decision.reason}")
    ticket = arm.scheduler.dispatch(request, decision, now=now)
    dispatched = clock()
    explained = arm.scheduler.decide(request, now=now, explain=True)
    check(arm, ticket.key, explained.candidates, prompt.estimated_tokens)
    arm.scored = max(arm.scored, len(explained.candidates))
    arm.scheduler.first_token(ticket, now=now + 0.1)
    arm.scheduler.tokens(ticket, 100, now=now + 0.1)
    usage = Usage(
        prompt_tokens=prompt.estimated_tokens,
        completion_tokens=100,
        cached_tokens=int(ticket.predicted_cached_tokens),
    )
    ended = clock()
    arm.scheduler.finish(ticket, now=now + 1.5, ok=True, usage=usage)
    finished = clock()
    spent = (hashed - started, decided - before, dispatched - decided, finished - ended)
    for step, seconds in zip(STEPS, spent, strict=True):
        arm.times[step].append(seconds * 1e6)


def check(arm: Arm, key: ReplicaKey, candidates: tuple, tokens: int) -> None:  # type: ignore[type-arg]
    """Refuse to time a scheduler that decides wrongly."""
    most = arm.replicas if arm.replicas <= SCORE_ALL_UP_TO else SCORED_BEYOND
    if len(candidates) > most:
        raise WrongDecisionError(f"{len(candidates)} candidates were scored, at most {most} may be")
    cached = {each.key: each.predicted_cached_tokens for each in candidates}
    if cached.get(key, 0) < 0.8 * tokens:
        raise WrongDecisionError(
            f"{key} was just sent a prompt of {tokens} tokens and is thought to hold "
            f"{cached.get(key, 0)} of them"
        )


def summary(arm: Arm) -> dict[str, object]:
    """Medians and 95th percentiles of an arm, its first tenth left out as warm-up."""
    steps = {}
    warm = {step: times[len(times) // 10 :] for step, times in arm.times.items()}
    warm["total"] = [sum(each) for each in zip(*warm.values(), strict=True)]
    for step, times in warm.items():
        cuts = statistics.quantiles(times, n=20)
        steps[step] = {"p50_us": round(cuts[9], 2), "p95_us": round(cuts[18], 2)}
    return {
        "replicas": arm.replicas,
        "prompt_bytes": arm.prompt_bytes,
        "scored_candidates": arm.scored,
        "steps": steps,
    }


def print_table(rows: list[dict[str, object]]) -> None:
    """One line an arm: p50 and p95 of every step."""
    columns = (*STEPS, "total")
    head = f"{'replicas':>8} {'prompt':>8} {'scored':>6}"
    print(head + "".join(f"{column + ' p50/p95':>20}" for column in columns) + "   microseconds")
    for row in rows:
        steps = row["steps"]
        assert isinstance(steps, dict)
        cells = "".join(
            f"{steps[column]['p50_us']:>12.1f}/{steps[column]['p95_us']:<7.1f}"
            for column in columns
        )
        print(f"{row['replicas']:>8} {row['prompt_bytes']:>8} {row['scored_candidates']:>6}{cells}")


def main() -> int:
    """Run all arms in turns, print the table and write the JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=2_000, help="requests for each arm")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("decision_cost.json"))
    options = parser.parse_args()
    if options.rounds < 40:
        parser.error(f"--rounds is {options.rounds}; at least 40 are needed for a 95th percentile")
    arms = [arm_of(fleet, size, options.seed) for size in PROMPT_BYTES for fleet in FLEETS]
    chance = random.Random(options.seed)
    try:
        for number in range(options.rounds):
            for arm in arms:
                play(arm, number, chance)
    except WrongDecisionError as error:
        print(f"no report: {error}", file=sys.stderr)
        return 1
    rows = [summary(arm) for arm in arms]
    print_table(rows)
    document = {
        **provenance("xxhash"),
        "seed": options.seed,
        "rounds": options.rounds,
        "pools": POOLS,
        "arms": rows,
    }
    options.out.write_text(json.dumps(document, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
