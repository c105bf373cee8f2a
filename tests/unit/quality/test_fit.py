from __future__ import annotations

import json

import numpy as np
import pytest

from pointsman_serving.quality.fit import FitError, fit
from pointsman_serving.quality.measure import difference_rmse
from pointsman_serving.quality.predictor import MOST_TASKS, QualityPredictor
from pointsman_serving.quality.scores import read_scores
from tests.unit.quality.prompts import (
    SKILLS,
    TRAINED_AT,
    fitted,
    prompt,
    score_lines,
    score_table,
)


def test_the_error_falls_when_tasks_differ() -> None:
    metrics = fitted().metrics
    assert metrics["difference_rmse"] < 0.9 * metrics["prior_difference_rmse"]
    assert metrics["regret"] < metrics["regret_prior"]


def test_reported_error_is_that_on_new_prompts_when_measured_again() -> None:
    predictor = QualityPredictor(fitted())
    wanted = [SKILLS[task] for task in SKILLS for _ in range(50)]
    prompts = [prompt(task, 7_000 + n) for task in SKILLS for n in range(50)]
    draw = np.random.default_rng(1)
    skills = np.array([[skill[model] for model in predictor.models] for skill in wanted])
    scores = (draw.random(skills.shape) < skills).astype(float)
    found = np.array([list(predictor.predict(text).values()) for text in prompts])
    reported = fitted().metrics["difference_rmse"]
    assert difference_rmse(found, scores) == pytest.approx(reported, rel=0.15)


def test_weights_are_the_same_when_seed_and_scores_are() -> None:
    again = fit(score_table(), trained_at=TRAINED_AT, table_bits=12)
    assert np.array_equal(fitted().table, again.table)
    assert np.array_equal(fitted().means, again.means)
    other = fit(score_table(), trained_at=TRAINED_AT, table_bits=12, seed=1)
    assert not np.array_equal(other.table, again.table)


def test_linear_terms_are_kept_only_when_tasks_do_not_explain_the_scores() -> None:
    assert len(fitted().tasks) == fitted().table.shape[1]
    alone = fitted(labelled=False)
    assert 1 + len(alone.models) == alone.table.shape[1]
    assert alone.metrics["difference_rmse"] < 0.97 * alone.metrics["prior_difference_rmse"]
    predictor = QualityPredictor(alone)
    code, prose = (
        predictor.predict(prompt("code", 9_000)),
        predictor.predict(prompt("prose", 9_000)),
    )
    assert code["coder"] - code["writer"] > 0.1 > -0.1 > prose["coder"] - prose["writer"]


def test_means_stay_near_the_models_own_when_few_scores_speak() -> None:
    lines = score_lines()
    extra = {"task": "rare", "prompt": "one of a kind", "scores": {"small": 1.0}}
    weights = fit(
        read_scores([*lines, json.dumps(extra).encode()], "f"),
        trained_at=TRAINED_AT,
        table_bits=12,
    )
    row = weights.means[weights.tasks.index("rare")]
    assert weights.priors == pytest.approx(row, abs=0.08)
    assert row[weights.models.index("small")] > weights.priors[weights.models.index("small")]


def test_a_model_is_predicted_when_few_prompts_scored_it() -> None:
    rows = [json.loads(line) for line in score_lines()]
    for number, row in enumerate(rows):
        if number % 10:
            del row["scores"]["writer"]
    table = read_scores([json.dumps(row).encode() for row in rows], "f")
    weights = fit(table, trained_at=TRAINED_AT, table_bits=12)
    found = QualityPredictor(weights).predict(prompt("prose", 5_000))
    assert found["writer"] > found["coder"]
    assert weights.scores == int(np.isfinite(table.scores).sum())


def test_the_level_is_learned_when_there_is_one_model() -> None:
    rows = [json.loads(line) for line in score_lines()]
    for row in rows:
        row["scores"] = {"coder": row["scores"]["coder"]}
    table = read_scores([json.dumps(row).encode() for row in rows], "f")
    predictor = QualityPredictor(fit(table, trained_at=TRAINED_AT, table_bits=12))
    code = predictor.quality(prompt("code", 5_000), "coder")
    prose = predictor.quality(prompt("prose", 5_000), "coder")
    assert code is not None
    assert prose is not None
    assert code > prose + 0.3


def test_progress_ends_complete() -> None:
    told: dict[str, tuple[int, int]] = {}
    fit(
        score_table(20),
        trained_at=TRAINED_AT,
        table_bits=10,
        progress=lambda name, done, total: told.update({name: (done, total)}),
    )
    assert {"tasks", "models", "weights"} == set(told)
    assert all(done == total for done, total in told.values())


def test_the_number_is_told_when_prompts_are_too_few() -> None:
    table = read_scores(score_lines(16), "f")
    with pytest.raises(FitError, match=r"48 prompts are too few.*at least 50"):
        fit(table, trained_at=TRAINED_AT)


def test_the_limit_is_told_when_tasks_are_too_many() -> None:
    lines = [
        json.dumps({"task": f"t{n}", "prompt": f"p{n}", "scores": {"a": 1}}).encode()
        for n in range(MOST_TASKS + 1)
    ]
    with pytest.raises(FitError, match=f"65 tasks; a predictor takes at most {MOST_TASKS}"):
        fit(read_scores(lines, "f"), trained_at=TRAINED_AT)


@pytest.mark.parametrize("bits", [0, 9, 19])
def test_the_range_is_told_when_the_table_is_out_of_it(bits: int) -> None:
    with pytest.raises(FitError, match="allowed are 10 to 18 bits"):
        fit(score_table(20), trained_at=TRAINED_AT, table_bits=bits)
