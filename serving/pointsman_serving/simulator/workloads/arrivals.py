"""When requests come: streams of arrival times, and requests put on them."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random
    from collections.abc import Iterable, Iterator, Sequence

    from pointsman_serving.simulator.request import SimRequest


def poisson(rate: float, source: random.Random) -> Iterator[float]:
    """Independent arrivals, so many a second on average.

    Raises:
        ValueError: the rate is not positive.
    """
    yield from gamma(rate, 1.0, source)


def gamma(rate: float, shape: float, source: random.Random) -> Iterator[float]:
    """Arrivals with gamma-distributed gaps: the smaller the shape, the more they come in bursts.

    Args:
        shape: the gaps' squared coefficient of variation is its inverse; 1 is Poisson, and 0.3
            the bursts of RouteBalance's tests.

    Raises:
        ValueError: the rate or the shape is not positive.
    """
    _positive("rate", rate)
    _positive("shape", shape)
    now = 0.0
    while True:
        now += source.gammavariate(shape, 1.0 / (rate * shape))
        yield now


def square_wave(
    high_rate: float, low_rate: float, period_seconds: float, source: random.Random
) -> Iterator[float]:
    """Poisson arrivals whose rate is high in the first half of each period and low in the second.

    Raises:
        ValueError: a rate or the period is not positive.
    """
    _positive("high_rate", high_rate)
    _positive("low_rate", low_rate)
    _positive("period_seconds", period_seconds)
    half = period_seconds / 2
    now = 0.0
    for phase in itertools.count():
        rate = low_rate if phase % 2 else high_rate
        end = (phase + 1) * half
        # Nothing is remembered of a gap that the change of the rate cuts.
        while (now := now + source.expovariate(rate)) < end:
            yield now
        now = end


def arriving(requests: Sequence[SimRequest], times: Iterable[float]) -> list[SimRequest]:
    """The requests in their order at these times.

    Raises:
        ValueError: there are fewer times than requests.
    """
    moved = [
        replace(request, arrival_seconds=at) for request, at in zip(requests, times, strict=False)
    ]
    if len(moved) < len(requests):
        raise ValueError(f"{len(requests)} requests got {len(moved)} arrival times")
    return moved


def mean_rate(requests: Sequence[SimRequest]) -> float:
    """Requests a second, from the first arrival to the last.

    Raises:
        ValueError: there are fewer than two, or all come at once.
    """
    times = [each.arrival_seconds for each in requests]
    seconds = max(times) - min(times) if times else 0.0
    if seconds <= 0.0:
        raise ValueError(
            f"{len(times)} requests within {seconds:g} s have no rate: give two at different times"
        )
    return len(times) / seconds


def at_rate(requests: Sequence[SimRequest], rate: float) -> list[SimRequest]:
    """The same requests with all gaps stretched alike, so that they come at a mean rate.

    Raises:
        ValueError: the rate is not positive, or the requests have none now.
    """
    _positive("rate", rate)
    stretch = mean_rate(requests) / rate
    first = min(each.arrival_seconds for each in requests)
    return [
        replace(each, arrival_seconds=(each.arrival_seconds - first) * stretch) for each in requests
    ]


def _positive(name: str, value: float) -> None:
    if not 0 < value < float("inf"):
        raise ValueError(f"{name} is {value}: give a number above 0")
