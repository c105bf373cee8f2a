"""Decisions worked out by hand: the peers' rules for prefixes."""

from __future__ import annotations

from typing import Any

import pytest

from pointsman_serving.simulator.arm import (
    Arm,
    Dispatch,
    Failed,
    Finished,
    FirstToken,
    InstanceRemoved,
)
from pointsman_serving.simulator.arms.aibrix import AibrixPrefixCache
from pointsman_serving.simulator.arms.dynamo import Dynamo
from pointsman_serving.simulator.arms.kubeai import KubeAiPrefixHash
from pointsman_serving.simulator.arms.llm_d import LlmD
from pointsman_serving.simulator.arms.preble import Preble
from pointsman_serving.simulator.arms.ray_prefix import RayPrefixAffinity
from pointsman_serving.simulator.arms.sglang import CacheAware, LibraryCacheAware
from tests.unit.simulator.arms.test_basic import chosen, fleet
from tests.unit.simulator.views import request

FOUR: dict[str, Any] = {"prompt_tokens": 2_048, "blocks": (1, 2, 3, 4)}


def load(arm: Arm, counts: list[int]) -> None:
    """Send so many requests of nothing shared to each instance, one at a time alive."""
    for index, count in enumerate(counts):
        alone = fleet(*({"alive": each == index} for each in range(len(counts))))
        for number in range(count):
            assert index == chosen(arm, alone, 10_000 * index + number + 1_000)


# SGLang, command line: .3, 64, 1.5.


def test_sglang_follows_the_prefix_when_it_is_long_and_the_load_balanced() -> None:
    # 1,024 of 2,048 tokens is .5 > .3; 60 − 0 is not more than 64.
    arm = CacheAware()
    load(arm, [60, 0])
    assert 0 == chosen(arm, fleet({"cached": {1, 2}}, {}), **FOUR)


def test_sglang_takes_the_least_load_when_the_prefix_is_short() -> None:
    # 512 of 2,048 tokens is .25: not more than .3.
    arm = CacheAware()
    load(arm, [60, 0])
    assert 1 == chosen(arm, fleet({"cached": {1}}, {}), **FOUR)


def test_sglang_takes_the_least_load_when_it_is_imbalanced() -> None:
    # 66 − 1 = 65 > 64 and 66 > 1.5 · 1.
    arm = CacheAware()
    load(arm, [66, 1])
    assert 1 == chosen(arm, fleet({"cached": {1, 2, 3}}, {}), **FOUR)


def test_sglang_takes_off_what_is_finished_when_it_counts() -> None:
    # 66 − 1 = 65 > 64; two less are not.
    arm = CacheAware()
    load(arm, [66, 1])
    two = fleet({"cached": {1, 2, 3}}, {})
    for number in (1_000, 1_001):
        arm.event(Finished(request(number), 0, 5), two, 0.0)
    assert 0 == chosen(arm, two, **FOUR)


def test_sglang_stays_with_the_prefix_when_the_imbalance_is_relatively_small() -> None:
    # 210 − 145 = 65 > 64, but 210 is less than 1.5 · 145 = 217.5.
    arm = CacheAware()
    load(arm, [210, 145])
    assert 0 == chosen(arm, fleet({"cached": {1, 2, 3}}, {}), **FOUR)


def test_sglang_library_is_stricter_when_nothing_is_set() -> None:
    # .5 is not more than .5; and 34 − 1 = 33 > 32, 34 > 1.1 · 1.
    assert 0 == chosen(LibraryCacheAware(), fleet({}, {"cached": {1, 2}}), **FOUR)
    arm = LibraryCacheAware()
    load(arm, [34, 1])
    assert 1 == chosen(arm, fleet({"cached": {1, 2, 3}}, {}), **FOUR)


def test_sglang_tree_keeps_who_came_first_when_two_got_the_prefix() -> None:
    # 1 got it first; then, with 1 gone, 0; when 1 is back it is still 0's.
    arm = CacheAware(own_tree=True)
    assert 1 == chosen(arm, fleet({"alive": False}, {}), 1, **FOUR)
    assert 1 == chosen(arm, fleet({}, {}), 2, **FOUR)
    arm.event(InstanceRemoved(1, crashed=True), fleet({}, {"alive": False}), 0.0)
    assert 0 == chosen(arm, fleet({}, {"alive": False}), 3, **FOUR)
    assert 0 == chosen(arm, fleet({}, {}), 4, **FOUR)


# Ray: no imbalance by default, a tenth of the prompt.


def test_ray_takes_the_shorter_queue_when_two_know_the_same() -> None:
    arm = RayPrefixAffinity()
    load(arm, [5, 3, 0])
    assert 1 == chosen(arm, fleet({"cached": {1}}, {"cached": {1}}, {}), **FOUR)


def test_ray_takes_the_emptiest_memory_when_little_is_known() -> None:
    # 512 of 8,192 tokens is less than a tenth; the queue does not matter.
    arm = RayPrefixAffinity()
    load(arm, [0, 9])
    two = fleet({"cached": {1}, "used_kv_tokens": 1_024}, {"used_kv_tokens": 512})
    assert 1 == chosen(arm, two, prompt_tokens=8_192, blocks=tuple(range(1, 17)))


def test_ray_takes_the_shorter_of_two_when_the_queues_differ_too_much() -> None:
    # 9 − 0 > 4, and of two instances both are drawn.
    arm = RayPrefixAffinity(imbalanced_threshold=4)
    load(arm, [9, 0])
    assert 1 == chosen(arm, fleet({"cached": {1, 2, 3}}, {}), **FOUR)


def test_ray_tree_sends_to_who_was_sent_least_when_nothing_is_known() -> None:
    # 0 got 2,048 tokens, 1 got 1,000.
    arm = RayPrefixAffinity(own_tree=True)
    both = fleet({}, {})
    assert 0 == chosen(arm, both, 1, **FOUR)
    assert 1 == chosen(arm, both, 2)
    assert 1 == chosen(arm, both, 3, prompt_tokens=1_024, blocks=(8, 9))
    assert 0 == chosen(arm, both, 4, **FOUR)


# AIBrix: 8 requests, one standard deviation of the sample.


def test_aibrix_takes_the_largest_share_when_its_load_is_usual() -> None:
    # Counts 4, 2, 0: mean 2, deviation 2, so that at most 4 may take more: 0 may.
    arm = AibrixPrefixCache()
    load(arm, [4, 2, 0])
    assert 0 == chosen(arm, fleet({"cached": {1, 2}}, {"cached": {1}}, {}), **FOUR)


def test_aibrix_takes_the_next_share_when_the_best_is_too_busy() -> None:
    # Counts 7, 2, 0: mean 3, deviation 3.61, at most 6.61: 0 may not, 1 may.
    arm = AibrixPrefixCache()
    load(arm, [7, 2, 0])
    assert 1 == chosen(arm, fleet({"cached": {1, 2}}, {"cached": {1}}, {}), **FOUR)


def test_aibrix_takes_the_least_requests_when_counts_are_far_apart() -> None:
    # 10 − 1 > 8: only the one with the fewest stays.
    arm = AibrixPrefixCache()
    load(arm, [10, 4, 1])
    assert 2 == chosen(arm, fleet({"cached": {1, 2}}, {"cached": {1, 2}}, {}), **FOUR)


def test_aibrix_takes_the_least_requests_when_nobody_knows_the_prompt() -> None:
    arm = AibrixPrefixCache()
    load(arm, [2, 1, 3])
    assert 1 == chosen(arm, fleet({}, {}, {}), **FOUR)


def test_aibrix_takes_the_fewest_pending_tokens_when_asked_to() -> None:
    arm = AibrixPrefixCache(fallback="pending")
    load(arm, [2, 1, 3])
    assert 2 == chosen(arm, fleet(pending(300), pending(200), pending(100)), **FOUR)
    load(arm, [8, 0, 0])
    assert 1 == chosen(arm, fleet({"cached": {1}}, {}, {"cached": {1}} | pending(1)), **FOUR)


# llm-d: 2, 2, 3.


def test_llm_d_takes_the_prefix_when_it_outweighs_memory() -> None:
    # Queues equal: 2 each. 0: 2 + 2 · .5 + 3 · .75 = 5.25; 1: 2 + 2 · 1 + 0 = 4.
    two = fleet({"cached": {1, 2, 3}, "used_kv_tokens": 250_000}, {})
    assert 0 == chosen(LlmD(), two, **FOUR)


def test_llm_d_takes_the_empty_queue_when_it_outweighs_the_prefix() -> None:
    # 0: queue 0, memory 2 · .9, prefix 3 · .5 = 3.3; 1: 2 + 2 · .9 + 0 = 3.8.
    two = fleet(
        {"waiting": 1, "cached": {1, 2}, "used_kv_tokens": 50_000}, {"used_kv_tokens": 50_000}
    )
    assert 1 == chosen(LlmD(), two, **FOUR)


@pytest.mark.parametrize("emptier", [0, 1])
def test_llm_d_takes_the_emptier_memory_when_the_rest_is_equal(emptier: int) -> None:
    two = fleet({"used_kv_tokens": 300_000}, {"used_kv_tokens": 300_000})
    two.instances[emptier].used_kv_tokens = 200_000
    assert emptier == chosen(LlmD(), two, **FOUR)


def test_llm_d_scales_queues_when_three_differ() -> None:
    # Queues 4, 2, 0 score 0, .5, 1: 0: 0 + 2 + 3 · .75 = 4.25; 1: 1 + 2 + 3 · .5 = 4.5; 2: 4.
    three = fleet({"waiting": 4, "cached": {1, 2, 3}}, {"waiting": 2, "cached": {1, 2}}, {})
    assert 1 == chosen(LlmD(), three, **FOUR)


def test_llm_d_index_sees_4096_tokens_when_prompts_are_longer() -> None:
    # The first 256 · 16 tokens are 8 blocks: all of them are known, though 12 of 20 differ.
    arm = LlmD(own_tree=True)
    known = tuple(range(20))
    other = (*range(8), *range(100, 112))
    two = fleet({}, {"alive": False})
    assert 0 == chosen(arm, two, 1, prompt_tokens=10_240, blocks=known)
    two.instances[1].alive = True
    two.instances[0].used_kv_tokens = 490_000
    # 0: 2 + 2 · .02 + 3 · 1 = 5.04; 1: 2 + 2 + 0 = 4.
    assert 0 == chosen(arm, two, 2, prompt_tokens=10_240, blocks=other)


def test_llm_d_filter_leaves_out_the_saturated_when_asked_to() -> None:
    two = fleet({"waiting": 5, "cached": {1, 2, 3}}, {"waiting": 4, "used_kv_tokens": 390_000})
    assert 1 == chosen(LlmD(filter_saturated=True, queue_weight=0.0), two, **FOUR)
    assert 0 == chosen(LlmD(queue_weight=0.0), two, **FOUR)


# KubeAI.


def test_kubeai_keeps_a_prefix_on_its_endpoint_when_that_is_not_overloaded() -> None:
    three = fleet({}, {}, {})
    arm = KubeAiPrefixHash()
    first = chosen(arm, three, 1, **FOUR)
    # In flight 1 there; (1 + 1) / 3 · 1.25 = .83 < 1: the next one on the ring.
    second = chosen(arm, three, 2, **FOUR)
    assert first != second
    # Both done: nothing in flight, the first again.
    for number, index in ((1, first), (2, second)):
        arm.event(Finished(request(number, **FOUR), index, 5), three, 0.0)
    assert first == chosen(arm, three, 3, **FOUR)


def test_kubeai_passes_the_overloaded_when_the_mean_is_exceeded() -> None:
    # 4 and 2 in flight: at most (6 + 1) / 2 · 1.25 = 4.375: 4 may take one more; with 5 and 2:
    # (7 + 1) / 2 · 1.25 = 5, and 5 may; with 6 and 2: 5.6, and 6 may not.
    arm = KubeAiPrefixHash()
    two = fleet({}, {})
    home = chosen(arm, two, 1, **FOUR)
    away = 1 - home
    counts = [0, 0]
    counts[home], counts[away] = 3, 2
    load(arm, counts)
    assert [home, home, away] == [chosen(arm, two, number, **FOUR) for number in (2, 3, 4)]


def test_kubeai_moves_only_what_it_must_when_an_endpoint_is_added() -> None:
    moved = 0
    for block in range(300):
        asked: dict[str, Any] = {"prompt_tokens": 1_024, "blocks": (block, 1_000 + block)}
        before = chosen(KubeAiPrefixHash(), fleet({}, {}, {}), **asked)
        after = chosen(KubeAiPrefixHash(), fleet({}, {}, {}, {}), **asked)
        if before != after:
            assert 3 == after
            moved += 1
    assert 40 < moved < 110


# Dynamo, in tokens: prefill + prompt − cached, and the prompts of what is active.


def test_dynamo_takes_the_overlap_when_all_are_idle() -> None:
    # 0: 2,048 + 2,048; 1: 2,048 − 1,024 + 2,048.
    assert 1 == chosen(Dynamo(), fleet({}, {"cached": {1, 2}}), **FOUR)


def test_dynamo_leaves_the_overlap_when_prefill_waits_there() -> None:
    # 0 has 3,000 tokens without a first token: 3,000 + 2,048 − 1,024 + 3,000 + 2,048 = 9,072;
    # 1: 2,048 + 2,048.
    arm = Dynamo()
    alone = fleet({}, {"alive": False})
    assert 0 == chosen(arm, alone, 1, prompt_tokens=3_000)
    assert 1 == chosen(arm, fleet({"cached": {1, 2}}, {}), 2, **FOUR)


def test_dynamo_counts_only_decode_when_the_prefill_is_done() -> None:
    # After the first token 0 costs 2,048 − 1,536 + 1,000 + 2,048 = 3,560 against 4,096.
    arm = Dynamo()
    alone = fleet({}, {"alive": False})
    assert 0 == chosen(arm, alone, 1, prompt_tokens=1_000)
    arm.event(FirstToken(request(1, prompt_tokens=1_000), 0, 0), alone, 0.0)
    assert 0 == chosen(arm, fleet({"cached": {1, 2, 3}}, {}), 2, **FOUR)


def test_dynamo_counts_shared_blocks_once_when_both_are_active() -> None:
    # 0 decodes the same 2,048 tokens, 1 other 2,048: 0: 2,048 + 2,048; 1: 2,048 + 4,096.
    arm = Dynamo()
    for index, blocks in ((0, (1, 2, 3, 4)), (1, (5, 6, 7, 8))):
        alone = fleet({"alive": not index}, {"alive": bool(index)})
        assert index == chosen(arm, alone, index, prompt_tokens=2_048, blocks=blocks)
        arm.event(
            FirstToken(request(index, prompt_tokens=2_048, blocks=blocks), index, 0), alone, 0.0
        )
    assert 0 == chosen(arm, fleet({}, {}), 2, **FOUR)


def test_dynamo_holds_requests_when_every_worker_has_too_much_to_prefill() -> None:
    # 16 · 8,192 = 131,072 tokens; two of 70,000 are more.
    arm = Dynamo()
    one = fleet({})
    long = [request(number, prompt_tokens=70_000) for number in range(3)]
    assert [0, 0] == [chosen(arm, one, number, prompt_tokens=70_000) for number in range(2)]
    assert [] == list(arm.arrive(long[2], one, 0.0))
    assert [Dispatch(long[2], 0)] == list(arm.event(FirstToken(long[0], 0, 0), one, 1.0))


def test_dynamo_counts_nothing_when_all_has_ended() -> None:
    arm = Dynamo()
    one = fleet({})
    asked = request(1, **FOUR)
    arm.arrive(asked, one, 0.0)
    arm.event(Failed(asked, 0), one, 0.0)
    arm.arrive(asked, one, 0.0)
    arm.event(FirstToken(asked, 0, 0), one, 0.0)
    arm.event(Finished(asked, 0, 3), one, 0.0)
    assert {0: 0} == arm._prefill_tokens == arm._decode_tokens
    assert {0: {}} == arm._active


# Preble.


def pending(tokens: int) -> dict[str, Any]:
    return {"pending_prefill_tokens": tokens, "pending_prefill_seconds": tokens * 50e-6}


def test_preble_exploits_when_more_is_known_than_not() -> None:
    # 1,536 known, 512 not. 0: .02 + .0279 = .048 s; 1: .01 + .1076 = .118 s.
    two = fleet({"cached": {1, 2, 3}} | pending(400), pending(200))
    assert 0 == chosen(Preble(), two, **FOUR)


def test_preble_explores_when_half_is_not_more() -> None:
    # 1,024 known, 1,024 not: the cheapest of all. 0: .1 + .0551 s; 1: .1076 s.
    two = fleet({"cached": {1, 2}} | pending(2_000), {})
    assert 1 == chosen(Preble(), two, **FOUR)


def test_preble_takes_the_cheapest_holder_when_several_hold_the_same() -> None:
    three = fleet({"cached": {1, 2, 3}} | pending(900), {"cached": {1, 2, 3}} | pending(300), {})
    assert 1 == chosen(Preble(), three, **FOUR)


def test_preble_redirects_to_the_idlest_when_the_holder_is_the_busiest_by_half() -> None:
    # 0: .15 + .0279 = .178 s ≥ 1.5 · .1076 s.
    two = fleet({"cached": {1, 2, 3}} | pending(3_000), {})
    assert 1 == chosen(Preble(), two, **FOUR)
    assert 0 == chosen(Preble(high_load_threshold=2.0), two, **FOUR)


def test_preble_remembers_what_it_sent_when_it_looks_at_the_window() -> None:
    # Work of 180 s counts; then it is forgotten, and the first of equals wins.
    arm = Preble(load="window")
    two = fleet({}, {})
    # The first is the longer one: 0 would still have more to do if it were not forgotten.
    asked = [request(number, prompt_tokens=2_000 - 500 * number) for number in range(3)]
    assert [Dispatch(asked[0], 0)] == list(arm.arrive(asked[0], two, 0.0))
    assert [Dispatch(asked[1], 1)] == list(arm.arrive(asked[1], two, 100.0))
    assert [Dispatch(asked[2], 0)] == list(arm.arrive(asked[2], two, 181.0))


def test_preble_spares_what_is_used_when_memory_is_full() -> None:
    # 0 holds 976 blocks that the window used, 1 none; the rest is equal.
    arm = Preble()
    long: dict[str, Any] = {"prompt_tokens": 499_712, "blocks": tuple(range(1_000, 1_976))}
    assert 0 == chosen(arm, fleet({}, {"alive": False}), 1, **long)
    assert 1 == chosen(arm, fleet({}, {}), 2)
    assert 0 == chosen(Preble(eviction=False), fleet({}, {}), 2)


@pytest.mark.parametrize(
    "arm",
    [
        CacheAware(own_tree=True),
        RayPrefixAffinity(own_tree=True),
        AibrixPrefixCache(own_tree=True),
        LlmD(own_tree=True),
        KubeAiPrefixHash(),
        Dynamo(),
        Preble(),
    ],
)
def test_prefix_arm_forgets_an_instance_when_it_is_gone(arm: Arm) -> None:
    alone = fleet({"alive": False}, {})
    asked = request(1, **FOUR)
    (action,) = arm.arrive(asked, fleet({}, {"alive": False}), 0.0)
    assert Dispatch(asked, 0) == action
    arm.event(InstanceRemoved(0, crashed=True), alone, 1.0)
    arm.event(Failed(asked, 0), alone, 1.0)
    assert [Dispatch(asked, 1)] == list(arm.arrive(asked, alone, 1.0))
