from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointsman_serving.quality.measure import difference_rmse, measure, regret

NAN = float("nan")


def test_errors_are_those_worked_by_hand() -> None:
    scores = np.array([[1.0, 0.0], [0.0, 1.0]])
    predicted = np.array([[0.8, 0.4], [0.6, 0.2]])
    found = measure(predicted, scores, np.array([0.5, 0.4]))
    # Differences: wanted 1 and -1, predicted .4 and .4.
    assert found["difference_mae"] == pytest.approx(1.0)
    assert found["difference_rmse"] == pytest.approx(((0.36 + 1.96) / 2) ** 0.5)
    assert found["level_mae"] == pytest.approx((0.2 + 0.4 + 0.6 + 0.8) / 4)
    assert found["regret"] == pytest.approx(0.5)
    assert found["regret_prior"] == pytest.approx(0.5)


def test_a_model_is_neither_chosen_nor_best_when_it_was_not_scored() -> None:
    scores = np.array([[NAN, 0.5, 0.25], [NAN, NAN, NAN]])
    predicted = np.array([[0.9, 0.1, 0.2], [0.1, 0.2, 0.3]])
    assert regret(predicted, scores) == 0.25


def test_levels_do_not_count_when_every_model_is_off_alike() -> None:
    scores = np.array([[0.5, 0.7, 0.2]])
    assert difference_rmse(scores + 0.3, scores) == pytest.approx(0.0, abs=1e-8)


def test_calibration_error_is_the_gap_when_predictions_are_too_high() -> None:
    scores = np.tile([[0.0], [1.0]], (50, 1))
    found = measure(np.full((100, 1), 0.7), scores, np.array([0.5]))
    assert found["calibration_error"] == pytest.approx(0.2)


@given(st.lists(st.lists(st.floats(0, 1), min_size=3, max_size=3), min_size=1, max_size=8))
def test_difference_rmse_is_that_over_all_pairs(rows: list[list[float]]) -> None:
    errors = np.array(rows)
    pairs = [(e[i] - e[j]) ** 2 for e in errors for i in range(3) for j in range(i)]
    expected = float(np.mean(pairs)) ** 0.5
    assert difference_rmse(errors, np.zeros_like(errors)) == pytest.approx(expected, abs=1e-6)
    assert measure(errors, np.zeros_like(errors), errors[0])["difference_rmse"] == pytest.approx(
        expected, abs=1e-6
    )
