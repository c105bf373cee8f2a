from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointsman_serving.simulator.measure import goodput, load_cv, measure, percentile
from pointsman_serving.simulator.record import Outcome, Record, Sample
from pointsman_serving.simulator.request import SimRequest


def record(number: int, *, ttft: float | None = 1.0, prompt: int = 1000, **facts: object) -> Record:
    """A request at ``number`` seconds; its answer of 11 tokens takes a second more."""
    found = Record(
        SimRequest(
            request_id=f"r{number}",
            arrival_seconds=float(number),
            prompt_tokens=prompt,
            output_tokens=11,
            blocks=(1,),
            quality_by_pool={"small": 0.25, "large": 0.75},
        ),
        gateway=0,
    )
    found.instance = 0
    if ttft is not None:
        found.dispatched_at = float(number)
        found.first_token_at = number + ttft
        found.finished_at = number + ttft + 1.0
        found.output_tokens = 11
    for name, value in facts.items():
        setattr(found, name, value)
    return found


def test_figures_are_of_the_requests_behind_the_warm_up() -> None:
    records = [
        record(0, ttft=50.0),
        record(1, ttft=1.0, cached_tokens=512),
        record(2, ttft=4.0),
        record(3, ttft=5.0),
        record(4, ttft=None, rejected_at=4.0),
    ]

    figures = measure(Outcome(records=records, pools=["large"]), ttft_slo_seconds=5.0, warm_up=1)

    assert (4, 0.5, 0.25, 0.0) == (
        figures.requests,
        figures.attainment,
        figures.rejected,
        figures.unfinished,
    )
    assert (4.0, math.inf, math.inf) == figures.ttft_seconds
    assert figures.tpot_seconds == pytest.approx((0.1, 0.1, 0.1))
    assert figures.e2e_mean_seconds == pytest.approx(13 / 3)
    # Three prompts were computed; from the second request on all could have had the block.
    assert figures.hit_rate == pytest.approx(512 / 3000)
    assert figures.hit_share_of_ideal == pytest.approx(1 / 3)
    assert 0.75 == figures.quality


def test_dollars_are_those_of_the_instance_that_answered() -> None:
    outcome = Outcome(
        records=[record(0, instance=1)], pools=["large", "small"], prices=[(9.0, 9.0), (1e-6, 1e-4)]
    )

    figures = measure(outcome, ttft_slo_seconds=5.0)

    assert figures.dollars_per_thousand == pytest.approx(1000 * (1000 * 1e-6 + 11 * 1e-4))
    assert 0.25 == figures.quality


def test_longest_prompts_have_a_row_of_their_own() -> None:
    records = [record(number, ttft=1.0) for number in range(39)]
    records += [record(90, ttft=9.0, prompt=9000), record(91, ttft=7.0, prompt=8000)]

    figures = measure(Outcome(records=records, pools=["large"]), ttft_slo_seconds=5.0)

    assert 9.0 == figures.long_ttft_p99_seconds
    assert 1.0 == figures.ttft_seconds[1]


def test_workload_is_refused_when_all_of_it_is_warm_up() -> None:
    with pytest.raises(ValueError, match="has 1 requests and the first 500 are left out"):
        measure(Outcome(records=[record(0)]), ttft_slo_seconds=5.0, warm_up=500)


@given(st.lists(st.floats(0, 100), min_size=1), st.floats(0.01, 1))
def test_percentile_is_the_least_value_that_the_share_does_not_exceed(
    values: list[float], share: float
) -> None:
    found = percentile(values, share)

    assert found in values
    assert sum(value <= found for value in values) >= share * len(values) - 1e-9
    assert sum(value < found for value in values) < share * len(values)


def test_load_is_uneven_when_one_instance_has_all() -> None:
    even = Sample(0.0, (2, 2), (0, 0))
    uneven = Sample(1.0, (4, 0), (0, 0))
    idle = Sample(2.0, (0, 0), (0, 0))

    assert (0.0, 1.0, 0.5) == (load_cv([even]), load_cv([uneven]), load_cv([even, uneven, idle]))
    assert math.isnan(load_cv([idle]))


@given(limit=st.floats(0.02, 500), low=st.floats(0.5, 20))
def test_goodput_is_the_highest_rate_that_suffices(limit: float, low: float) -> None:
    tried = []

    def attained(rate: float) -> float:
        tried.append(rate)
        return 0.95 if rate <= limit else 0.0

    found = goodput(attained, low=low, high=low * 1.25, tolerance=0.02)

    assert limit / 1.0201 <= found.rate <= limit
    assert len(tried) == len(set(tried)) <= 24


def test_goodput_is_nothing_when_no_rate_is_low_enough() -> None:
    found = goodput(lambda rate: 0.0, low=1.0, high=2.0)

    assert 0.0 == found.rate
    assert 12 == len(found.tried)
