from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointsman_serving.quality.feedback import Feedback, FeedbackLimits
from pointsman_serving.quality.predictor import QualityPredictor
from tests.unit.quality.prompts import fitted, prompt

DAY = 86_400.0


def tell(
    feedback: Feedback,
    score: float,
    *,
    times: int = 1,
    source: str = "tenant",
    now: float = 0.0,
    task: str = "prose",
    model: str = "writer",
) -> None:
    predictor = QualityPredictor(fitted())
    for number in range(times):
        counted = feedback.learn(
            predictor,
            text=prompt(task, 10_000 + number),
            model=model,
            score=score,
            source=source,
            now=now,
        )
        assert counted


def offset(feedback: Feedback, *, now: float = 0.0, task: str = "prose") -> float:
    weights = fitted()
    return float(feedback.offsets(now)[weights.tasks.index(task), weights.models.index("writer")])


def mean() -> float:
    weights = fitted()
    return float(weights.means[weights.tasks.index("prose"), weights.models.index("writer")])


def test_a_mean_falls_when_many_sources_saw_worse_answers() -> None:
    feedback = Feedback(fitted())
    for tenant in range(8):
        tell(feedback, 0.6, times=10, source=f"tenant-{tenant}")
    wanted = (0.6 - mean()) * 80 / (80 + 40)
    assert offset(feedback) == pytest.approx(wanted, rel=0.15)
    moved = QualityPredictor(fitted()).adjusted(feedback.offsets(0.0))
    text = prompt("prose", 3)
    before, after = (
        QualityPredictor(fitted()).quality(text, "writer"),
        moved.quality(text, "writer"),
    )
    assert before is not None
    assert after is not None
    assert after < before - 0.1


def test_other_tasks_and_models_stay_when_one_is_judged() -> None:
    feedback = Feedback(fitted())
    tell(feedback, 0.0, times=50)
    offsets = feedback.offsets(0.0)
    column = fitted().models.index("writer")
    assert not np.delete(offsets, column, axis=1).any()
    assert abs(offset(feedback, task="code")) < 0.1 * abs(offset(feedback))


def test_one_tenant_moves_a_fifth_of_its_error_when_it_sends_without_end() -> None:
    feedback = Feedback(fitted())
    tell(feedback, 0.0, times=2_000, source="liar")
    bound = 10 / (10 + 40)
    assert -bound * mean() == pytest.approx(offset(feedback), rel=0.1)


def test_the_honest_outweigh_one_liar_when_they_are_several() -> None:
    feedback = Feedback(fitted())
    tell(feedback, 0.0, times=1_000, source="liar")
    for tenant in range(6):
        tell(feedback, 1.0, times=10, source=f"tenant-{tenant}")
    wanted = (60 * (1 - mean()) - 10 * mean()) / 110
    assert offset(feedback) == pytest.approx(wanted, abs=0.03)


def test_no_mean_moves_further_than_allowed_when_everybody_agrees() -> None:
    feedback = Feedback(fitted())
    for tenant in range(100):
        tell(feedback, 0.0, times=5, source=str(tenant))
    assert offset(feedback) == pytest.approx(-0.25)


def test_the_trained_mean_returns_when_feedback_ends() -> None:
    feedback = Feedback(fitted())
    for tenant in range(8):
        tell(feedback, 0.7, times=10, source=str(tenant))
    first, later = offset(feedback), offset(feedback, now=DAY)
    # 80 scores against 40 become 40 against 40.
    assert later == pytest.approx(first * (40 / 80) / (80 / 120), rel=0.05)
    assert offset(feedback, now=30 * DAY) == pytest.approx(0.0, abs=1e-6)


def test_evidence_does_not_grow_when_the_clock_jumps_back() -> None:
    feedback = Feedback(fitted())
    tell(feedback, 0.0, now=10 * DAY)
    before = offset(feedback, now=10 * DAY)
    assert before == offset(feedback, now=0.0)
    tell(feedback, 0.0, now=0.0)
    assert abs(offset(feedback, now=0.0)) < 2.1 * abs(before)


def test_sources_are_bounded_when_names_are_made_up() -> None:
    feedback = Feedback(fitted(), FeedbackLimits(most_sources=3))
    tell(feedback, 0.0, times=10, source="old")
    for number in range(50):
        tell(feedback, 1.0, source=str(number))
    assert feedback.sources == 3
    assert offset(feedback) > 0


@pytest.mark.parametrize("score", [float("nan"), -0.1, 1.1, float("inf")])
def test_a_score_is_not_counted_when_it_is_not_from_0_to_1(score: float) -> None:
    feedback = Feedback(fitted())
    predictor = QualityPredictor(fitted())
    assert not feedback.learn(predictor, text="x", model="writer", score=score, source="s", now=0.0)
    assert feedback.sources == 0


@pytest.mark.parametrize(("model", "now"), [("unheard-of", 0.0), ("writer", float("nan"))])
def test_a_score_is_not_counted_when_model_or_clock_is_unknown(model: str, now: float) -> None:
    feedback = Feedback(fitted())
    predictor = QualityPredictor(fitted())
    assert not feedback.learn(predictor, text="x", model=model, score=1.0, source="s", now=now)
    assert not feedback.offsets(0.0).any()


def test_the_stated_task_alone_is_judged_when_the_request_names_it() -> None:
    feedback = Feedback(fitted())
    predictor = QualityPredictor(fitted())
    feedback.learn(
        predictor, text="?", model="writer", score=0.0, source="s", now=0.0, task="prose"
    )
    assert offset(feedback) == pytest.approx(-mean() / 41, rel=1e-3)
    assert offset(feedback, task="sums") == 0.0


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["a", "b", "c"]),
            st.floats(0, 1),
            st.floats(-1e9, 1e9),
            st.sampled_from(["coder", "writer", "small"]),
        ),
        max_size=30,
    )
)
def test_offsets_are_bounded_when_feedback_is_anything(
    told: list[tuple[str, float, float, str]],
) -> None:
    feedback = Feedback(fitted())
    predictor = QualityPredictor(fitted())
    for source, score, now, model in told:
        feedback.learn(predictor, text="x", model=model, score=score, source=source, now=now)
    offsets = feedback.offsets(0.0)
    assert np.isfinite(offsets).all()
    assert np.abs(offsets).max() <= 0.25
