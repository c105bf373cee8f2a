from __future__ import annotations

import random

import pytest

from pointsman_serving.routing.latency import (
    PRIOR_STEP_SECONDS,
    Factor,
    PoolLatency,
    ReplicaLatency,
)


def test_factor_is_one_when_noise_explains_the_difference() -> None:
    chance = random.Random(1)
    factor = Factor()
    for _ in range(100):
        factor.learn(1.15 * chance.uniform(0.7, 1.3), 1.0, now=0.0)
    assert factor.at(0.0) == 1.0
    assert factor.learned == pytest.approx(1.1, abs=0.15)


def test_factor_is_above_one_when_a_replica_is_three_times_slower() -> None:
    factor = Factor()
    for _ in range(20):
        factor.learn(3.0, 1.0, now=0.0)
    assert 1.5 < factor.at(0.0) < 3.0


def test_factor_is_below_one_when_a_replica_is_three_times_faster() -> None:
    factor = Factor()
    for _ in range(20):
        factor.learn(1.0, 3.0, now=0.0)
    assert 0.33 < factor.at(0.0) < 0.7


def test_factor_returns_to_one_when_nothing_was_seen_for_long() -> None:
    factor = Factor()
    for _ in range(20):
        factor.learn(3.0, 1.0, now=0.0)
    assert factor.at(60.0) < factor.at(0.0)
    assert factor.at(600.0) == 1.0


def test_one_cold_start_does_not_make_a_replica_slow() -> None:
    factor = Factor()
    factor.learn(30.0, 0.1, now=0.0)
    assert factor.at(0.0) == 1.0


def test_pool_is_taken_for_the_fleet_when_it_is_unknown_and_the_fleet_is_faster() -> None:
    fleet = PoolLatency()
    known, unknown = PoolLatency(fleet), PoolLatency(fleet)
    for _ in range(100):
        known.learn_decode(1.0, 0.004)
    assert unknown.decode_at(1.0) == known.decode_at(1.0) == pytest.approx(0.004, rel=0.1)


def test_pool_is_taken_for_the_prior_when_it_is_unknown_and_the_fleet_is_slow() -> None:
    fleet = PoolLatency()
    known, unknown = PoolLatency(fleet), PoolLatency(fleet)
    for _ in range(100):
        known.learn_decode(1.0, 0.4)
    assert unknown.decode[0] == PRIOR_STEP_SECONDS


def test_pool_is_trusted_when_enough_was_seen_lately() -> None:
    pool = PoolLatency(PoolLatency())
    assert not pool.trusted(0.0)
    for number in range(8):
        assert not pool.trusted(float(number))
        pool.learn_prefill(100.0, 0.1, now=float(number))
    assert pool.trusted(8.0)
    assert not pool.trusted(60.0)


def test_times_that_are_not_positive_are_ignored() -> None:
    pool = PoolLatency(PoolLatency())
    replica = ReplicaLatency(pool)
    replica.learn_prefill(100.0, 0.0, now=0.0)
    replica.learn_decode(1.0, -1.0, now=0.0)
    assert replica.prefill_factor.learned == replica.decode_factor.learned == 1.0
