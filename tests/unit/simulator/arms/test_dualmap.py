"""DualMap's decisions, worked out by hand, and its parts."""

from __future__ import annotations

from typing import Any

import pytest

from pointsman_serving.simulator.arm import Dispatch, FirstToken, Migrate
from pointsman_serving.simulator.arms.dualmap import DualMap
from pointsman_serving.simulator.arms.hash_ring import HashRing
from pointsman_serving.simulator.arms.hotness import HotnessTree
from tests.unit.simulator.arms.test_basic import chosen, fleet
from tests.unit.simulator.views import FixedFleet, request

FOUR: dict[str, Any] = {"prompt_tokens": 2_048, "blocks": (1, 2, 3, 4)}


def seconds_of(tokens: int) -> dict[str, Any]:
    """So much to prefill, at 50 µs a token."""
    return {"pending_prefill_tokens": tokens, "pending_prefill_seconds": tokens * 50e-6}


def two() -> FixedFleet:
    """With two instances both are candidates of every prefix."""
    return fleet({}, {})


def put(instance: object, values: dict[str, Any]) -> None:
    for name, value in values.items():
        setattr(instance, name, value)


def test_dualmap_takes_fewer_pending_tokens_when_hits_are_equal() -> None:
    near = two()
    put(near.instances[0], seconds_of(500))
    put(near.instances[1], seconds_of(400))
    assert 1 == chosen(DualMap(), near, **FOUR)


def test_dualmap_takes_the_larger_hit_when_its_queue_meets_the_slo() -> None:
    # 80,000 tokens: 4 s + 10 iterations of 12 ms = 4.12 s ≤ 5 s.
    near = two()
    put(near.instances[0], {"cached": {1}} | seconds_of(80_000))
    assert 0 == chosen(DualMap(), near, **FOUR)


def test_dualmap_takes_the_smaller_ttft_when_the_larger_hit_is_overloaded() -> None:
    # 100,000 tokens: 5 s + 13 · 12 ms > 5 s; the other one is idle.
    near = two()
    put(near.instances[0], {"cached": {1}} | seconds_of(100_000))
    assert 1 == chosen(DualMap(rebalance=False), near, **FOUR)
    # And stays if the other one's queue is longer: 110,000 tokens.
    put(near.instances[1], seconds_of(110_000))
    assert 0 == chosen(DualMap(rebalance=False), near, **FOUR)


def test_dualmap_gives_up_affinity_sooner_when_its_share_of_the_slo_is_smaller() -> None:
    # 60,000 tokens: 3.1 s: within 5 s and not within 2.5 s.
    near = two()
    put(near.instances[0], {"cached": {1}} | seconds_of(60_000))
    assert 0 == chosen(DualMap(), near, **FOUR)
    assert 1 == chosen(DualMap(affinity_share=0.5), near, **FOUR)


def test_dualmap_uses_two_candidates_when_there_are_many_instances() -> None:
    eight = fleet(*({} for _ in range(8)))
    arm = DualMap()
    seen = set()
    for number in range(40):
        index = chosen(arm, eight, number, **FOUR)
        seen.add(index)
        eight.instances[index].pending_prefill_tokens += 100
    assert 2 == len(seen)


def test_dualmap_migrates_the_largest_gain_first_when_both_candidates_are_overloaded() -> None:
    # One candidate computes 86,000 tokens (4.3 s) and three requests of 8,000 wait (.48 s each
    # with attention): 5.74 s + 14 iterations; the other has 6 s + 15. The new one goes to the
    # first, where it would end at 5.85 + .17 s; on the idle third instance at .12 s, the largest
    # gain; then r3 (5.91 − .49 s), and r2, which leaves 4.78 + .14 s: within 5 s, so r1 stays.
    arm = DualMap(seed=0)
    three = fleet({}, {}, {})
    pair = arm._candidates(request(99, **FOUR), three, 0.0)
    hot, other = (three.instances[index] for index in pair)
    (idle,) = (each for each in three.instances if each.index not in pair)
    waiting = [request(number, prompt_tokens=8_000, blocks=(1, 2)) for number in (1, 2, 3)]
    for each in waiting:
        arm._pairs[each.request_id] = pair
    own = 8_000 * 50e-6 + 2.5e-9 * 8_000 * 4_000.5
    put(
        hot,
        {
            "pending_prefill_tokens": 110_000,
            "pending_prefill_seconds": 4.3 + 3 * own,
            "waiting": 3,
            "queue": waiting,
        },
    )
    put(other, seconds_of(120_000))
    asked = request(9, **FOUR)
    actions = list(arm.arrive(asked, three, 1.0))
    moved = [action for action in actions if isinstance(action, Migrate)]
    assert [Dispatch(asked, idle.index)] == [each for each in actions if isinstance(each, Dispatch)]
    assert ["r3", "r2"] == [each.request_id for each in moved]
    assert {idle.index} == {each.to_instance for each in moved}


def test_dualmap_migrates_to_the_other_candidate_when_that_has_room() -> None:
    # Not to the next instance: the other candidate of what waits may have its prefix.
    arm = DualMap()
    four = fleet({}, {}, {}, {})
    pair = arm._candidates(request(99, **FOUR), four, 0.0)
    hot, other = (four.instances[index] for index in pair)
    rest = [index for index in range(4) if index not in pair]
    following = next((index for index in range(4) if index > hot.index), 0)
    target = next(index for index in rest if index != following)
    waiting = request(1, prompt_tokens=8_000)
    arm._pairs[waiting.request_id] = (hot.index, target)
    put(hot, {"queue": [waiting], "waiting": 1} | seconds_of(110_000))
    put(other, seconds_of(120_000))
    actions = list(arm.arrive(request(9, **FOUR), four, 1.0))
    assert [Migrate("r1", target)] == [each for each in actions if isinstance(each, Migrate)]


def test_dualmap_migrates_nothing_when_nobody_meets_the_slo() -> None:
    near = two()
    for each in near.instances:
        put(each, {"queue": [request(7, **FOUR)], "waiting": 1} | seconds_of(120_000))
    asked = request(9, **FOUR)
    assert [Dispatch(asked, 0)] == list(DualMap().arrive(asked, near, 0.0))


def test_dualmap_forgets_candidates_when_the_prefill_is_done() -> None:
    arm = DualMap()
    asked = request(1, **FOUR)
    arm.arrive(asked, two(), 0.0)
    arm.event(FirstToken(asked, 0, 0), two(), 0.0)
    assert {} == arm._pairs


# n = 4: split above a share of 1/2, joined below 1/4.


def test_hotness_tree_lengthens_the_key_when_a_prefix_is_hot() -> None:
    tree = HotnessTree(minimum_requests=4)
    hot = (1, 2, 3, 4)
    # Three of three are too few to judge by; the fourth makes it 4 of 4 > 1/2.
    assert [2, 2, 2, 3] == [tree.key_blocks(hot, 4, 0.0) for _ in range(4)]
    # Block 3's own share counts from then on: 1 of 4, then 2 of 5, 3 of 6 = 1/2, 4 of 7.
    assert [3, 3, 4] == [tree.key_blocks(hot, 4, 0.0) for _ in range(3)]


def test_hotness_tree_shortens_the_key_when_a_prefix_cools() -> None:
    tree = HotnessTree(minimum_requests=4, window_seconds=10.0)
    hot = (1, 2, 3)
    for _ in range(4):
        tree.key_blocks(hot, 4, 0.0)
    assert 3 == tree.key_blocks(hot, 4, 1.0)
    for number in range(16):
        tree.key_blocks((100 + number, 200 + number), 4, 2.0)
    # 6 of 22 are not below a quarter; once the first four have left, 3 of 19 are.
    assert 3 == tree.key_blocks(hot, 4, 3.0)
    assert 2 == tree.key_blocks(hot, 4, 10.5)


def test_hotness_tree_takes_what_there_is_when_a_prompt_is_short() -> None:
    tree = HotnessTree()
    assert 1 == tree.key_blocks((5,), 4, 0.0)
    assert 0 == tree.key_blocks((), 4, 0.0)


def test_hash_ring_walks_each_member_once_when_asked_for_all() -> None:
    ring = HashRing(points=16)
    ring.set_members([3, 5, 8])
    walk = list(ring.walk("a key"))
    assert [3, 5, 8] == sorted(walk)
    assert walk[0] == ring.owner("a key")


def test_hash_ring_moves_a_share_when_a_member_is_added() -> None:
    few, more = HashRing(points=160), HashRing(points=160)
    few.set_members(range(7))
    more.set_members(range(8))
    keys = [str(key) for key in range(2_000)]
    moved = [key for key in keys if few.owner(key) != more.owner(key)]
    assert {7} == {more.owner(key) for key in moved}
    assert 250 == pytest.approx(len(moved), rel=0.4)
