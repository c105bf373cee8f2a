"""What a run is judged by, as a table, as JSON and as a list of what was not kept."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from tests.chaos.counters import leftovers, total
from tests.chaos.storm import Plan, StormOutcome, StreamRecord


def counted(outcome: StormOutcome) -> list[StreamRecord]:
    """The streams whose gateway was not killed under them."""
    return [record for record in outcome.records if record.counts]


def quantiles_of(values: Sequence[float]) -> dict[str, float]:
    """p50, p99 and the largest."""
    if len(values) < 2:
        return dict.fromkeys(("p50", "p99", "max"), max(values, default=0.0))
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    return {"p50": cuts[49], "p99": cuts[98], "max": max(values)}


def breaches_of(plan: Plan, outcome: StormOutcome) -> list[str]:
    """What was promised and not kept, a line each."""
    breaches = [
        f"stream {record.name} at gateway {record.gateway}: {flaw}"
        for record in counted(outcome)
        for flaw in record.verdict.flaws
    ]
    gap = quantiles_of([record.verdict.longest_gap_seconds for record in counted(outcome)])["p99"]
    if gap > plan.gap_p99_seconds:
        allowed = f"allowed {plan.gap_p99_seconds:g} s"
        breaches.append(f"the longest gap's p99 is {gap:.2f} s, {allowed}")
    for series, value in leftovers(outcome.metrics).items():
        breaches.append(f"{series} is {value:g} when all has ended, expected 0")
    own = [record for record in counted(outcome) if record.gateway == "A"]
    for name, expected in (
        ("requests", len(own)),
        ("completion_tokens", sum(record.completion_tokens for record in own)),
        ("prompt_tokens", sum(record.prompt_tokens for record in own)),
    ):
        if total(outcome.metrics, name) != expected:
            breaches.append(
                f"the survivor counted {total(outcome.metrics, name):g} {name}, expected {expected}"
            )
    for name, code in outcome.exits.items():
        if code != 0:
            breaches.append(f"gateway {name} ended with exit code {code}, expected 0")
    if not plan.calm:
        wanted = round(plan.seconds / plan.every_seconds)
        if sum(outcome.faults.values()) < wanted:
            breaches.append(f"{sum(outcome.faults.values())} faults, expected {wanted}")
    if outcome.fewest_open < plan.streams * 0.95 - 2:
        breaches.append(
            f"only {outcome.fewest_open} streams were open at some moment, "
            f"expected about {plan.streams}"
        )
    return breaches


def by_gateway(outcome: StormOutcome) -> dict[str, list[StreamRecord]]:
    """The streams that count, by where they were asked for."""
    found: dict[str, list[StreamRecord]] = {}
    for record in sorted(counted(outcome), key=lambda each: each.gateway):
        found.setdefault(record.gateway, []).append(record)
    return found


def summary_of(records: Sequence[StreamRecord]) -> dict[str, object]:
    """Counts and times of some streams."""
    return {
        "streams": len(records),
        "flawed": sum(bool(record.verdict.flaws) for record in records),
        "seconds": quantiles_of([record.verdict.seconds for record in records]),
        "first_token_seconds": quantiles_of([r.verdict.first_token_seconds for r in records]),
        "longest_gap_seconds": quantiles_of([r.verdict.longest_gap_seconds for r in records]),
        "gaps_above_1_second": sum(r.verdict.longest_gap_seconds > 1.0 for r in records),
    }


def document_of(plan: Plan, outcome: StormOutcome, breaches: Sequence[str]) -> dict[str, object]:
    """The JSON, without what it was measured on."""
    return {
        "seed": plan.seed,
        "engines": plan.engines,
        "streams_at_the_survivor": plan.streams,
        "streams_at_the_other_gateway": plan.others,
        "fewest_open_at_the_survivor": outcome.fewest_open,
        "fault_seconds": plan.seconds,
        "faults": dict(sorted(outcome.faults.items())),
        "faults_left_out": outcome.left_out,
        "broken_with_their_gateway": len(outcome.records) - len(counted(outcome)),
        "gateways": {name: summary_of(records) for name, records in by_gateway(outcome).items()},
        "leftovers": leftovers(outcome.metrics),
        "retries": {
            series: value for series, value in outcome.metrics.items() if "_retries_" in series
        },
        "exit_codes": outcome.exits,
        "breaches": list(breaches),
    }


def table_of(plan: Plan, outcome: StormOutcome) -> list[str]:
    """What people read."""
    faults = ", ".join(f"{kind} {count}" for kind, count in sorted(outcome.faults.items()))
    head = f"{'gateway':<9}{'streams':>8}{'flawed':>8}{'longest gap p50/p99/max s':>28}"
    head += f"{'first token p50/p99/max s':>28}{'stream p50 s':>14}"
    lines = [
        "",
        f"{sum(outcome.faults.values())} faults in {plan.seconds:g} s: {faults or 'none'}",
        *(f"left out: {kind} ({why})" for kind, why in outcome.left_out.items()),
        f"at least {outcome.fewest_open} streams open at the survivor at any moment of them",
        head,
    ]
    for name, records in by_gateway(outcome).items():
        gap = quantiles_of([record.verdict.longest_gap_seconds for record in records])
        first = quantiles_of([record.verdict.first_token_seconds for record in records])
        whole = quantiles_of([record.verdict.seconds for record in records])
        flawed = sum(bool(record.verdict.flaws) for record in records)
        lines.append(
            f"{name:<9}{len(records):>8}{flawed:>8}"
            f"{_three(gap):>28}{_three(first):>28}{whole['p50']:>14.1f}"
        )
    broken = len(outcome.records) - len(counted(outcome))
    if broken:
        lines.append(f"{broken} streams broke with the gateway that was killed")
    return lines


def _three(values: dict[str, float]) -> str:
    return "/".join(f"{values[name]:.2f}" for name in ("p50", "p99", "max"))
