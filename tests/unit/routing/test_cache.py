from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointsman_serving.routing.blocks import Blocks
from pointsman_serving.routing.cache import (
    ASSUMED_CAPACITY_BYTES,
    SMALLEST_CAPACITY_BYTES,
    CacheEstimate,
)


def chain(*path: int) -> Blocks:
    """Blocks of 64 bytes; a block's hash stands for the whole path to it."""
    return Blocks.of((hash(path[: i + 1]), 64 * (i + 1)) for i in range(len(path)))


def long_chain(name: int, blocks: int = 40) -> Blocks:
    return chain(*[name] * blocks)


def compute(cache: CacheEstimate, blocks: Blocks) -> None:
    cache.confirm(blocks, cache.begin(blocks))


def test_prefix_is_held_in_flight_and_then_computed() -> None:
    cache = CacheEstimate()
    belief = cache.begin(chain(1, 2, 3))
    assert cache.cached_bytes(chain(1, 2, 3, 4)) == 192
    assert len(cache) == 0
    cache.confirm(chain(1, 2, 3), belief)
    assert cache.cached_bytes(chain(1, 2, 9)) == 128
    assert cache.blocks_in_flight == 0
    assert len(cache) == 3


def test_nothing_is_held_when_the_first_block_differs() -> None:
    cache = CacheEstimate()
    compute(cache, chain(1, 2, 3))
    assert cache.cached_bytes(chain(9, 2, 3)) == 0
    assert cache.cached_bytes(chain()) == 0


def test_abandoned_blocks_are_held_when_another_request_has_sent_them_too() -> None:
    cache = CacheEstimate()
    first, second = cache.begin(chain(1, 2, 3)), cache.begin(chain(1, 2))
    cache.abandon(chain(1, 2, 3), first)
    assert cache.cached_bytes(chain(1, 2, 3)) == 128
    cache.abandon(chain(1, 2), second)
    assert cache.cached_bytes(chain(1, 2, 3)) == 0


@pytest.mark.pain_4
def test_longest_unused_chain_goes_first_when_blocks_are_many() -> None:
    cache = CacheEstimate(max_blocks=6)
    compute(cache, chain(1, 1, 1))
    compute(cache, chain(2, 2, 2))
    compute(cache, chain(1, 1, 1))
    compute(cache, chain(3, 3))
    assert cache.cached_bytes(chain(1, 1, 1)) == 192
    assert cache.cached_bytes(chain(2, 2, 2)) == 64
    assert cache.cached_bytes(chain(3, 3)) == 128


@given(
    st.lists(st.lists(st.integers(0, 2), max_size=6), max_size=30),
    st.integers(1, 8),
    st.randoms(use_true_random=False),
)
@pytest.mark.pain_4
def test_estimate_stays_within_its_bound_and_closed_under_prefixes(
    paths: list[list[int]], bound: int, chance: object
) -> None:
    cache = CacheEstimate(max_blocks=bound)
    open_requests = []
    for path in paths:
        blocks = chain(*path)
        open_requests.append((blocks, cache.begin(blocks)))
        if chance.random() < 0.7:  # type: ignore[attr-defined]
            index = chance.randrange(len(open_requests))  # type: ignore[attr-defined]
            done, belief = open_requests.pop(index)
            (cache.confirm if chance.random() < 0.7 else cache.abandon)(done, belief)  # type: ignore[attr-defined]
        assert len(cache) <= bound
        for other in paths:
            blocks = chain(*other)
            held = cache.cached_bytes(blocks)
            for length in range(len(other) + 1):
                assert cache.cached_bytes(blocks[:length]) == min(64 * length, held)
    for blocks, belief in open_requests:
        cache.abandon(blocks, belief)
    assert cache.blocks_in_flight == 0


def test_belief_of_a_cleared_cache_changes_nothing() -> None:
    cache = CacheEstimate()
    old = cache.begin(chain(1, 2))
    cache.clear()
    new = cache.begin(chain(1, 2))
    cache.confirm(chain(1, 2), old)
    cache.abandon(chain(1, 2), old)
    assert cache.cached_bytes(chain(1, 2)) == 128
    cache.abandon(chain(1, 2), new)
    assert cache.cached_bytes(chain(1, 2)) == 0


def test_capacity_shrinks_when_a_prefix_was_evicted_earlier_than_assumed() -> None:
    cache = CacheEstimate()
    compute(cache, long_chain(0))
    for name in range(1, 12):
        compute(cache, long_chain(name))
    belief = cache.begin(long_chain(0))
    assert belief.age_bytes == 11 * 40 * 64
    cache.confirm(long_chain(0), belief)
    cache.learn(belief, 640.0, 0)
    assert SMALLEST_CAPACITY_BYTES < cache.capacity_bytes < ASSUMED_CAPACITY_BYTES / 5
    assert cache.confidence == 1.0


def test_capacity_evicts_old_chains_when_it_is_small() -> None:
    cache = CacheEstimate()
    cache.capacity_bytes = 10_000
    for name in range(10):
        compute(cache, long_chain(name))
    assert cache.cached_bytes(long_chain(9)) == 2_560
    assert cache.cached_bytes(long_chain(0)) == 0
    assert len(cache) * 64 <= 10_000 + 2_560


def test_capacity_grows_when_more_was_cached_than_believed() -> None:
    cache = CacheEstimate()
    cache.learn(cache.begin(chain(1, 2)), 0.0, 600)
    assert cache.capacity_bytes > ASSUMED_CAPACITY_BYTES


def test_nothing_is_believed_when_fresh_prefixes_are_gone_three_times() -> None:
    cache = CacheEstimate()
    for name in range(3):
        compute(cache, long_chain(name))
    for name in range(3):
        assert cache.cached_bytes(long_chain(2)) > 0
        belief = cache.begin(long_chain(name))
        cache.confirm(long_chain(name), belief)
        cache.learn(belief, 640.0, 0)
    assert cache.cached_bytes(long_chain(2)) == 0


def test_cache_is_still_believed_when_a_miss_is_followed_by_a_hit() -> None:
    cache = CacheEstimate()
    compute(cache, long_chain(0))
    for _ in range(6):
        for actual in (0, 640):
            belief = cache.begin(long_chain(0))
            cache.confirm(long_chain(0), belief)
            cache.learn(belief, 640.0, actual)
    assert cache.cached_bytes(long_chain(0)) > 0
    assert 0.3 < cache.confidence < 0.8


@pytest.mark.pain_8
def test_confidence_returns_when_predictions_come_true_again() -> None:
    cache = CacheEstimate()
    for actual in [0] * 2 + [640] * 60:
        compute(cache, long_chain(0))
        belief = cache.begin(long_chain(0))
        cache.confirm(long_chain(0), belief)
        cache.learn(belief, 640.0, actual)
    assert cache.confidence > 0.9
