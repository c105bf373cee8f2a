"""Decisions worked out by hand: the rules that every load balancer has."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest

from pointsman_serving.simulator.arm import Arm, Dispatch, FleetView, Reject
from pointsman_serving.simulator.arms.basic import (
    LeastPendingPrefill,
    LeastRequests,
    RandomArm,
    RoundRobin,
)
from pointsman_serving.simulator.arms.llumnix import Llumnix, remaining_steps
from pointsman_serving.simulator.arms.lmetric import LMetric
from pointsman_serving.simulator.arms.min_ttft import MinTtft
from tests.unit.simulator.views import FixedFleet, FixedInstance, request


def chosen(arm: Arm, fleet: FleetView, number: int = 0, **others: Any) -> int:
    """Where the arm sends a request at once."""
    (action,) = arm.arrive(request(number, **others), fleet, 0.0)
    assert isinstance(action, Dispatch)
    return action.instance


def fleet(*instances: Mapping[str, Any]) -> FixedFleet:
    return FixedFleet([FixedInstance(index=index, **each) for index, each in enumerate(instances)])


@pytest.mark.parametrize(
    "arm", [RandomArm(), RoundRobin(), LeastRequests(), LeastPendingPrefill(), MinTtft()]
)
def test_arm_rejects_when_nothing_lives(arm: Arm) -> None:
    asked = request()
    assert [Reject(asked)] == list(arm.arrive(asked, fleet({"alive": False}), 0.0))


def test_random_uses_all_living_alike_when_asked_often() -> None:
    three = fleet({}, {"alive": False}, {})
    arm = RandomArm(seed=7)
    counts = Counter(chosen(arm, three, number) for number in range(400))
    assert {0, 2} == set(counts)
    assert 150 < counts[0] < 250


def test_random_repeats_itself_when_the_seed_is_the_same() -> None:
    four = fleet({}, {}, {}, {})
    first, second = (
        [chosen(arm, four) for _ in range(20)] for arm in (RandomArm(seed=3), RandomArm(seed=3))
    )
    assert first == second


def test_round_robin_goes_on_by_number_when_one_is_dead() -> None:
    # 0, then 1; 2 is dead, so 3; then from the start again.
    four = fleet({}, {}, {"alive": False}, {})
    arm = RoundRobin()
    assert [0, 1, 3, 0, 1] == [chosen(arm, four) for _ in range(5)]


def test_least_requests_counts_running_and_waiting_when_both_are_there() -> None:
    # 3 + 0, 1 + 1, 0 + 4: the second has 2.
    three = fleet({"running": 3}, {"running": 1, "waiting": 1}, {"waiting": 4})
    assert 1 == chosen(LeastRequests(), three)


def test_least_requests_uses_both_when_they_are_equal() -> None:
    two = fleet({"running": 1}, {"running": 1})
    arm = LeastRequests(seed=1)
    assert {0, 1} == {chosen(arm, two, number) for number in range(50)}


def test_least_pending_prefill_ignores_the_number_of_requests_when_tokens_differ() -> None:
    # One request of 9,000 tokens against five of 1,000.
    two = fleet(
        {"running": 1, "pending_prefill_tokens": 9_000},
        {"running": 5, "pending_prefill_tokens": 5_000},
    )
    assert 1 == chosen(LeastPendingPrefill(), two)


# Mooncake. 14B on H100: an iteration of 12 ms for each 8,192 tokens, 50 µs a token, and 2.5 ns for
# each pair of a token and one before it: 4,096 tokens take .012 + .2048 + .0210 = .2378 s, 2,048
# beside 2,048 cached .012 + .1024 + .0157 = .1301 s.


def test_min_ttft_takes_the_cache_when_the_queue_is_short() -> None:
    # 0: .05 s of queue and .1181 s of its own in one iteration (1,000 + 2,048 tokens): .1801 s.
    # 1: idle, .2378 s.
    two = fleet(
        {
            "pending_prefill_tokens": 1_000,
            "pending_prefill_seconds": 0.05,
            "cached": {1, 2, 3, 4},
        },
        {},
    )
    two.instances[0].cached = {1, 2, 3, 4}
    assert 0 == chosen(MinTtft(), two, prompt_tokens=4_097, blocks=(1, 2, 3, 4, 5)[:5])


def test_min_ttft_leaves_the_cache_when_the_queue_is_longer_than_the_prefill() -> None:
    # 0: .5 s of queue and 2,049 tokens of its own; 1: 4,097 tokens, .24 s.
    two = fleet(
        {
            "pending_prefill_tokens": 10_000,
            "pending_prefill_seconds": 0.5,
            "cached": {1, 2, 3, 4},
        },
        {},
    )
    assert 1 == chosen(MinTtft(), two, prompt_tokens=4_097, blocks=(1, 2, 3, 4, 5))


def test_min_ttft_counts_what_decodes_when_prefills_are_equal() -> None:
    # 200 sequences make each iteration of 0 longer by 6 ms.
    two = fleet({"running": 200}, {"running": 1})
    assert 1 == chosen(MinTtft(), two)


def test_lmetric_multiplies_when_cache_and_batch_disagree() -> None:
    # 0: (0 + 2,048 − 1,536) · 6 = 3,072; 1: (0 + 2,048) · 2 = 4,096.
    two = fleet({"running": 6, "cached": {1, 2, 3}}, {"running": 2})
    assert 0 == chosen(LMetric(), two, prompt_tokens=2_048, blocks=(1, 2, 3, 4))


def test_lmetric_counts_the_queue_when_it_is_long() -> None:
    # 0: (4,000 + 512) · 6 = 27,072; 1: 2,048 · 2 = 4,096.
    two = fleet(
        {"running": 5, "waiting": 1, "pending_prefill_tokens": 4_000, "cached": {1, 2, 3}},
        {"running": 2},
    )
    assert 1 == chosen(LMetric(), two, prompt_tokens=2_048, blocks=(1, 2, 3, 4))


def test_lmetric_counts_what_waits_when_batches_are_compared() -> None:
    # 1,000 · (1 + 5) against 1,000 · 3.
    assert 1 == chosen(LMetric(), fleet({"running": 1, "waiting": 5}, {"running": 3}))


def test_lmetric_takes_the_idle_one_when_the_other_has_all_cached() -> None:
    # 512 · 1 against 2,048 · 0; with itself in the batch 512 · 2 against 2,048 · 1.
    two = fleet({"running": 1, "cached": {1, 2, 3}}, {})
    asked: dict[str, Any] = {"prompt_tokens": 2_048, "blocks": (1, 2, 3, 4)}
    assert 1 == chosen(LMetric(), two, **asked)
    assert 0 == chosen(LMetric(count_itself=True), two, **asked)


def test_lmetric_takes_the_cached_one_when_all_are_idle() -> None:
    two = fleet({}, {"cached": {1}})
    assert 1 == chosen(LMetric(), two, prompt_tokens=1_024, blocks=(1, 2))


# Llumnix: 500,000 tokens are 976 blocks of 512.


def test_llumnix_takes_the_most_blocks_for_each_request_when_none_waits() -> None:
    # 0: (500,000 − 51,200) / 512 = 876 blocks / 10 = 87.6; 1: (500,000 − 256,000) / 512 = 476 / 4.
    two = fleet(
        {"running": 10, "used_kv_tokens": 51_200}, {"running": 4, "used_kv_tokens": 256_000}
    )
    assert [87.6, 119.0] == [remaining_steps(each) for each in two.instances]
    assert 1 == chosen(Llumnix(), two)


def test_llumnix_takes_off_what_waits_when_a_queue_is_there() -> None:
    # 976 − ⌈200,000 / 512⌉ = 585 blocks / 2 requests; the other one: 876 / 3 = 292.
    two = fleet(
        {"running": 1, "waiting": 1, "queue": [request(prompt_tokens=200_000)]},
        {"running": 3, "used_kv_tokens": 51_200},
    )
    assert [292.5, 292.0] == [remaining_steps(each) for each in two.instances]
    assert 0 == chosen(Llumnix(), two)


def test_llumnix_takes_the_idle_one_when_there_is_one() -> None:
    two = fleet({"running": 1}, {"used_kv_tokens": 0})
    assert 1 == chosen(Llumnix(), two)
