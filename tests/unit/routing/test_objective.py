from __future__ import annotations

import math

import pytest

from pointsman_api.route_table import FusedObjective, Pricing
from pointsman_serving.routing.objective import PREFILL_TOLL, PoolTerms, Scored
from pointsman_serving.routing.pool import FleetModels, PoolState
from tests.unit.routing.fleet import addresses, chat, pool_entry, text

PRICES = Pricing(input_dollars=1e-6, cached_input_dollars=1e-7, output_dollars=4e-6)


def score(
    *,
    quality_per_second: float = 0.01,
    quality_per_dollar: float = 0.0,
    size: int = 4_000,
    in_flight: int = 0,
    answers: bool = True,
    ttft_slo: float = math.inf,
    tpot_slo: float = math.inf,
) -> Scored:
    pool = PoolState(pool_entry(pricing=PRICES), fleet=FleetModels(), seed=0)
    pool.set_replicas(addresses("dense", "a"), now=0.0)
    replica = pool.states[0]
    replica.load.in_flight = in_flight
    return PoolTerms(
        pool=pool,
        request=chat(text("x", size), max_output_tokens=101),
        quality=0.7,
        objective=FusedObjective(
            quality_per_second=quality_per_second, quality_per_dollar=quality_per_dollar
        ),
        ring=("a",),
        fresh=True,
        least_assigned_tokens=0.0,
        answers=answers,
        ttft_slo_seconds=ttft_slo,
        tpot_slo_seconds=tpot_slo,
        now=0.0,
    ).score(replica)


def test_time_is_prefill_and_decode_when_the_replica_is_idle() -> None:
    scored = score()
    assert scored.ttft_seconds == pytest.approx(0.03 + 1_001 * 1e-4, rel=0.01)
    assert scored.latency_seconds == pytest.approx(scored.ttft_seconds + 100 * 0.01505)


def test_utility_counts_seconds_and_what_they_cost_others() -> None:
    scored = score(quality_per_second=0.01)
    social = scored.latency_seconds + PREFILL_TOLL * 1_001 * 1e-4
    assert scored.utility == pytest.approx(0.7 - 0.01 * social, abs=1e-5)


def test_utility_counts_dollars() -> None:
    scored = score(quality_per_second=0.0, quality_per_dollar=10.0)
    assert scored.dollars == pytest.approx(1_001 * 1e-6 + 101 * 4e-6, rel=0.01)
    assert scored.utility == pytest.approx(0.7 - 10 * scored.dollars, abs=1e-6)


def test_others_delay_counts_when_the_batch_is_large() -> None:
    alone, crowded = score(), score(in_flight=7)
    own = crowded.latency_seconds - alone.latency_seconds
    assert own == pytest.approx(100 * 7 * 5e-5)
    assert alone.utility - crowded.utility == pytest.approx(0.01 * (own + 101 * 7 * 5e-5))


def test_first_token_waits_for_a_slot_when_none_is_free() -> None:
    assert score(in_flight=8).ttft_seconds > score(in_flight=7).ttft_seconds + 0.1


def test_nothing_is_generated_when_the_endpoint_does_not_answer_in_tokens() -> None:
    scored = score(answers=False)
    assert scored.latency_seconds == scored.ttft_seconds
    assert scored.dollars == pytest.approx(1_001 * 1e-6, rel=0.01)


@pytest.mark.parametrize(
    ("ttft_slo", "tpot_slo", "meets"),
    [(0.2, math.inf, True), (0.1, math.inf, False), (0.2, 0.02, True), (0.2, 0.01, False)],
)
def test_objective_is_met_when_both_times_are_within_it(
    ttft_slo: float, tpot_slo: float, meets: bool
) -> None:
    assert score(ttft_slo=ttft_slo, tpot_slo=tpot_slo).meets_slo is meets
