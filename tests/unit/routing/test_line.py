from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointsman_serving.routing.line import Line


def line() -> Line:
    return Line(intercept=0.03, slope=1e-4, scale=256.0, reach=4096.0)


def test_line_is_its_prior_when_nothing_was_learned() -> None:
    assert line().at(1_000) == pytest.approx(0.13)


def test_line_comes_close_when_observations_lie_on_one() -> None:
    learned = line()
    for number in range(100):
        x = 37 * number % 4_000
        learned.learn(x, 0.5 + 2e-3 * x)
    assert learned.at(2_000) == pytest.approx(4.5, rel=0.05)
    assert learned.at(0) == pytest.approx(0.5, rel=0.2)


def test_line_goes_through_the_mean_when_all_observations_have_one_x() -> None:
    learned = line()
    for _ in range(100):
        learned.learn(300.0, 0.9)
    assert learned.at(300.0) == pytest.approx(0.9, rel=0.05)
    assert learned.slope > 0


def test_line_follows_when_the_truth_changes() -> None:
    learned = line()
    for factor in (1.0, 4.0):
        for number in range(200):
            x = 37 * number % 4_000
            learned.learn(x, factor * (0.03 + 1e-4 * x))
    assert learned.at(2_000) == pytest.approx(4 * 0.23, rel=0.1)


def test_one_outlier_moves_the_line_no_further_than_sixteen_times() -> None:
    learned = line()
    learned.learn(1_000.0, 1e9)
    assert learned.at(1_000.0) < 16 * 0.13


@given(st.lists(st.tuples(st.floats(0, 1e6), st.floats(1e-9, 1e6)), max_size=60))
def test_coefficients_stay_finite_and_not_negative(points: list[tuple[float, float]]) -> None:
    learned = line()
    for x, y in points:
        learned.learn(x, y)
        assert math.isfinite(learned.intercept)
        assert math.isfinite(learned.slope)
        assert learned.intercept >= 0.0
        assert learned.slope >= 0.0
