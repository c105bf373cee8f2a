from __future__ import annotations

import pytest

from pointsman_serving.routing.drain_rate import DrainRate


def drained(*times: float, started: float = 0.0) -> DrainRate:
    rate = DrainRate()
    rate.start(started)
    for time in times:
        rate.depart(time)
    return rate


def test_rate_is_that_of_the_departures_when_they_are_even() -> None:
    rate = drained(*(float(second) for second in range(0, 600, 2)))
    assert rate.seconds_each(600.0) == pytest.approx(2.0, rel=0.1)


def test_rate_is_the_same_when_departures_come_in_bursts() -> None:
    rate = drained(*(20.0 * burst for burst in range(1, 30) for _ in range(10)))
    assert rate.seconds_each(580.0) == pytest.approx(2.0, rel=0.3)


def test_rate_leaves_out_the_time_when_nobody_waits() -> None:
    rate = drained(1.0, 2.0, 3.0)
    rate.stop(3.0)
    rate.start(50.0)
    assert rate.seconds_each(50.0) == pytest.approx(0.75, rel=0.1)
    assert rate.seen == 3


def test_rate_is_forgotten_when_nobody_has_waited_for_a_minute() -> None:
    rate = drained(1.0, 2.0, 3.0)
    rate.stop(3.0)
    rate.start(64.0)
    assert (rate.seen, rate.seconds_each(64.0)) == (0, 0.0)


def test_rate_slows_when_nobody_departs() -> None:
    rate = drained(1.0, 2.0, 3.0)
    assert rate.seconds_each(3.0) < 1.0
    assert rate.seconds_each(63.0) > 15.0
