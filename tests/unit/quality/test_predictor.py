from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointsman_serving.quality.predictor import QualityPredictor, Weights
from pointsman_serving.quality.windows import LENGTH_BANDS, window_rows
from tests.unit.quality.prompts import SKILLS, fitted, prompt

BITS = 10


def weights(*, rests: bool = False) -> Weights:
    """Two tasks, three to one by their lengths' logits; two models."""
    columns = 4 if rests else 2
    lengths = np.zeros((LENGTH_BANDS, columns), np.float32)
    lengths[:, 0] = np.log(3.0)
    return Weights(
        models=("big", "small"),
        tasks=("easy", "hard"),
        table_bits=BITS,
        table=np.zeros((1 << BITS, columns), np.int8),
        units=np.full(columns, 0.01, np.float32),
        lengths=lengths,
        means=np.array([[0.8, 0.6], [0.4, 0.2]], np.float32),
        priors=np.array([0.6, 0.4], np.float32),
        trained_at="2026-11-01",
        prompts=1,
        scores=2,
    )


def test_quality_is_the_mean_over_tasks_when_the_text_says_nothing() -> None:
    found = QualityPredictor(weights()).predict("anything")
    assert {"big": pytest.approx(0.7), "small": pytest.approx(0.5)} == found


def test_a_window_moves_the_tasks_when_its_row_has_weight() -> None:
    learned = weights()
    rows = window_rows("ab", BITS)
    for row in set(rows.tolist()):
        learned.table[row, 1] = 100
    logit = len(rows) ** 0.5
    share = 3.0 / (3.0 + np.exp(logit))
    found = QualityPredictor(learned).task_shares("ab")
    assert {"easy": pytest.approx(share), "hard": pytest.approx(1 - share)} == found


def test_the_rest_is_added_when_there_are_linear_terms() -> None:
    learned = weights(rests=True)
    for row in set(window_rows("ab", BITS).tolist()):
        learned.table[row, 3] = -2
    length = len(window_rows("ab", BITS))
    found = QualityPredictor(learned).predict("ab")
    assert {
        "big": pytest.approx(0.7),
        "small": pytest.approx(0.5 - 0.02 * length**0.5),
    } == found


def test_qualities_stay_in_range_when_the_rest_is_large() -> None:
    learned = weights(rests=True)
    learned.table[:, 2], learned.table[:, 3] = 127, -127
    assert {"big": 1.0, "small": 0.0} == QualityPredictor(learned).predict("a longer text")


@pytest.mark.parametrize(("task", "expected"), [("hard", 0.4), ("unheard-of", 0.7), ("", 0.7)])
def test_the_request_is_believed_when_it_states_a_known_task(task: str, expected: float) -> None:
    predictor = QualityPredictor(weights())
    assert predictor.quality("x", "big", task) == pytest.approx(expected)


def test_the_text_is_read_when_the_task_is_the_word_for_none() -> None:
    predictor = QualityPredictor(dataclasses.replace(weights(), tasks=("Default", "hard")))
    assert predictor.quality("x", "big", "Default") == pytest.approx(0.7)
    assert predictor.shares_of("x", "Default").tolist() == pytest.approx([0.75, 0.25])


def test_the_rest_is_added_when_the_task_is_stated() -> None:
    learned = weights(rests=True)
    learned.table[:, 2] = 1
    text = "some text"
    moved = 0.01 * len(window_rows(text, BITS)) ** 0.5
    found = QualityPredictor(learned).quality(text, "big", "hard")
    assert found == pytest.approx(0.4 + moved)


def test_a_model_has_no_quality_when_it_was_never_scored() -> None:
    assert QualityPredictor(weights()).quality("x", "unheard-of") is None


def test_predictions_are_the_callers_own_when_it_changes_them() -> None:
    predictor = QualityPredictor(weights())
    predictor.predict("x", "hard")["big"] = 0.0
    assert predictor.quality("x", "big", "hard") == pytest.approx(0.4)


def test_another_predictor_is_made_when_offsets_come() -> None:
    predictor = QualityPredictor(weights())
    offsets = np.array([[0.1, 0.0], [0.9, -0.9]], np.float32)
    moved = predictor.adjusted(offsets)
    assert [0.9, 1.0, 0.0] == pytest.approx(
        [
            moved.quality("x", "big", "easy"),
            moved.quality("x", "big", "hard"),
            moved.quality("x", "small", "hard"),
        ]
    )
    assert predictor.quality("x", "big", "hard") == pytest.approx(0.4)
    assert moved.adjusted(0 * offsets).predict("x") == predictor.predict("x")


@pytest.mark.parametrize("task", SKILLS)
def test_the_best_model_is_found_when_the_prompt_is_new(task: str) -> None:
    predictor = QualityPredictor(fitted())
    found = predictor.predict(prompt(task, 5_000))
    assert max(SKILLS[task], key=SKILLS[task].__getitem__) == max(found, key=found.__getitem__)
    assert predictor.task_shares(prompt(task, 5_000))[task] > 0.7


@given(st.text(max_size=3_000))
def test_qualities_are_from_0_to_1_when_the_text_is_anything(text: str) -> None:
    predictor = QualityPredictor(fitted())
    found = predictor.predict(text)
    assert set(predictor.models) == set(found)
    assert all(0.0 <= quality <= 1.0 for quality in found.values())
    assert found == predictor.predict(text)
    assert sum(predictor.task_shares(text).values()) == pytest.approx(1.0, abs=1e-5)
