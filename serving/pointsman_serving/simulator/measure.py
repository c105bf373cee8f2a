"""Figures of a run: attainment, latencies, hits, balance, quality and dollars."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pointsman_serving.simulator.ideal import ideal_cached_tokens

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from pointsman_serving.simulator.record import Outcome, Record, Sample
    from pointsman_serving.simulator.request import SimRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What a run came to. Seconds of requests that were never answered count as infinite."""

    requests: int
    """Those that count: not the warm-up."""
    attainment: float
    """Share whose first token came within the objective."""
    rejected: float
    """Share that was rejected."""
    unfinished: float
    """Share that was neither rejected nor answered to the end."""
    ttft_seconds: tuple[float, float, float]
    """P50, P90 and P99."""
    long_ttft_p99_seconds: float
    """P99 of the time to first token of the longest 5% of the prompts."""
    wait_p99_seconds: float
    """P99 of what requests waited in the gateway."""
    tpot_seconds: tuple[float, float, float]
    """P50, P90 and P99 of the time per output token behind the first one."""
    e2e_mean_seconds: float
    """Over the answered ones."""
    e2e_p95_seconds: float
    hit_rate: float
    """Prompt tokens found in the cache, of all prompt tokens of the answered ones."""
    hit_share_of_ideal: float
    """The same of what a cache that forgets nothing would find; NaN where that is nothing."""
    load_cv: float
    """Standard deviation of the requests on the instances over their mean, averaged over time."""
    quality: float
    """Mean score of the answered ones; NaN where they have none."""
    dollars_per_thousand: float
    """Price of a thousand answered requests; NaN where nothing has a price."""
    preemptions: int
    migrations: int


def measure(
    outcome: Outcome,
    *,
    ttft_slo_seconds: float,
    warm_up: int = 0,
    ideal: Mapping[SimRequest, int] | None = None,
) -> Figures:
    """Reckon up a run.

    Args:
        warm_up: so many requests, the first ones, do not count.
        ideal: see ``ideal_cached_tokens``; None: it is worked out here.

    Raises:
        ValueError: no request is left after the warm-up.
    """
    records = outcome.records[warm_up:]
    if not records:
        raise ValueError(
            f"the workload has {len(outcome.records)} requests and the first {warm_up} are left "
            "out as warm-up: give a longer workload or a shorter warm-up"
        )
    count = len(records)
    ttft = [each.ttft_seconds for each in records]
    answered = [each for each in records if each.finished_at is not None]
    seen = [each for each in records if each.first_token_at is not None]
    prompt_tokens = sum(each.request.prompt_tokens for each in seen)
    cached_tokens = sum(each.cached_tokens for each in seen)
    if ideal is None:
        ideal = ideal_cached_tokens(each.request for each in outcome.records)
    ideal_tokens = sum(ideal[each.request] for each in seen)
    e2e = [each.e2e_seconds for each in answered]
    rejected = sum(each.rejected_at is not None for each in records)
    return Figures(
        requests=count,
        attainment=attainment(records, ttft_slo_seconds),
        rejected=rejected / count,
        unfinished=(count - len(answered) - rejected) / count,
        ttft_seconds=_percentiles(ttft, 0.5, 0.9, 0.99),
        long_ttft_p99_seconds=percentile(_of_longest(records), 0.99),
        wait_p99_seconds=percentile([each.wait_seconds for each in records], 0.99),
        tpot_seconds=_percentiles(
            [_tpot(each) for each in answered if each.output_tokens > 1], 0.5, 0.9, 0.99
        ),
        e2e_mean_seconds=statistics.fmean(e2e) if e2e else math.inf,
        e2e_p95_seconds=percentile(e2e, 0.95),
        hit_rate=cached_tokens / prompt_tokens if prompt_tokens else 0.0,
        hit_share_of_ideal=cached_tokens / ideal_tokens if ideal_tokens else math.nan,
        load_cv=load_cv(outcome.samples),
        quality=_quality(outcome, answered),
        dollars_per_thousand=_dollars(outcome, answered),
        preemptions=outcome.preemptions,
        migrations=outcome.migrations,
    )


def attainment(records: Sequence[Record], ttft_slo_seconds: float) -> float:
    """The share whose first token came within the objective; rejected ones did not."""
    return sum(each.ttft_seconds < ttft_slo_seconds for each in records) / len(records)


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that so large a share does not exceed; NaN of nothing."""
    if not values:
        return math.nan
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def load_cv(samples: Sequence[Sample]) -> float:
    """How unevenly the requests lie on the instances; NaN where nothing was sampled."""
    found = []
    for sample in samples:
        mean = statistics.fmean(sample.requests)
        if mean > 0.0:
            found.append(statistics.pstdev(sample.requests, mean) / mean)
    return statistics.fmean(found) if found else math.nan


@dataclass(frozen=True, slots=True, kw_only=True)
class Goodput:
    """The highest rate at which enough requests meet their objective."""

    rate: float
    """Requests a second; 0: none was low enough."""
    tried: tuple[tuple[float, float], ...]
    """Rates and what share met the objective there, in order of the rates."""


def goodput(
    attained: Callable[[float], float],
    *,
    low: float,
    high: float,
    share: float = 0.9,
    tolerance: float = 0.02,
) -> Goodput:
    """Search by bisection: from low to high, beyond them where both or neither suffice.

    Args:
        attained: the share that meets its objective at a rate. A run that was given up may say
            any number below ``share``.
        tolerance: relative width of the interval in which the answer lies, at the end.

    Raises:
        ValueError: low and high are no interval of positive rates.
    """
    if not 0 < low < high < math.inf:
        raise ValueError(f"low is {low} and high is {high}: give 0 < low < high")
    tried: dict[float, float] = {}

    def suffices(rate: float) -> bool:
        if rate not in tried:
            tried[rate] = attained(rate)
        return tried[rate] >= share

    for _ in range(_MOST_DOUBLINGS):
        if suffices(low):
            break
        low, high = low / 2, low
    else:
        return Goodput(rate=0.0, tried=tuple(sorted(tried.items())))
    for _ in range(_MOST_DOUBLINGS):
        if not suffices(high):
            break
        low, high = high, high * 2
    while high - low > tolerance * low:
        middle = (low + high) / 2
        if suffices(middle):
            low = middle
        else:
            high = middle
    return Goodput(rate=low, tried=tuple(sorted(tried.items())))


_MOST_DOUBLINGS = 12


def _percentiles(values: list[float], *shares: float) -> tuple[float, float, float]:
    first, second, third = (percentile(values, share) for share in shares)
    return first, second, third


def _of_longest(records: Sequence[Record]) -> list[float]:
    longest = sorted(records, key=lambda each: each.request.prompt_tokens)
    return [each.ttft_seconds for each in longest[-max(1, len(longest) // 20) :]]


def _tpot(record: Record) -> float:
    if record.finished_at is None or record.first_token_at is None:
        return math.inf
    return (record.finished_at - record.first_token_at) / (record.output_tokens - 1)


def _quality(outcome: Outcome, answered: Sequence[Record]) -> float:
    scores = []
    for record in answered:
        score = record.request.quality_by_pool.get(outcome.pools[record.instance])
        if score is not None:
            scores.append(score)
    return statistics.fmean(scores) if scores else math.nan


def _dollars(outcome: Outcome, answered: Sequence[Record]) -> float:
    if not answered or not any(any(prices) for prices in outcome.prices):
        return math.nan
    dollars = 0.0
    for record in answered:
        input_dollars, output_dollars = outcome.prices[record.instance]
        dollars += record.request.prompt_tokens * input_dollars
        dollars += record.output_tokens * output_dollars
    return 1000.0 * dollars / len(answered)
