"""The block pool of the simulated key-value cache."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pointsman_serving.engines.blocks import BlockLease, BlockPool

CAPACITY = 6


def test_extend_says_what_is_free_when_too_much_is_asked_for() -> None:
    pool = BlockPool(2)
    with pytest.raises(RuntimeError, match="3 cache blocks were asked for and 2 are free"):
        pool.acquire([], 3)


def test_publish_keeps_a_copy_private_when_the_block_is_cached_already() -> None:
    pool = BlockPool(4)
    first, second = pool.acquire([], 1), pool.acquire([], 1)
    pool.publish(first, 7)
    pool.publish(second, 7)
    assert ([7], 0, [], 1) == (first.cached, first.private, second.cached, second.private)


def test_release_keeps_the_beginning_longest_when_a_sequence_ends() -> None:
    pool = BlockPool(3)
    lease = pool.acquire([], 3)
    for block in (1, 2, 3):
        pool.publish(lease, block)
    pool.release(lease)
    pool.acquire([], 1)
    assert 2 == pool.match([1, 2, 3])


class PoolMachine(RuleBasedStateMachine):
    """Any order of sharing, extending, publishing and releasing keeps the books right."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(CAPACITY)
        self.leases: list[BlockLease] = []

    @rule(wanted=st.lists(st.integers(1, 8), unique=True, max_size=3), fresh=st.integers(0, 3))
    def acquire(self, wanted: list[int], fresh: int) -> None:
        matched = wanted[: self.pool.match(wanted)]
        if self.pool.can_acquire(matched, fresh):
            self.leases.append(self.pool.acquire(matched, fresh))

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), block=st.integers(1, 8))
    def publish(self, data: st.DataObject, block: int) -> None:
        lease = data.draw(st.sampled_from(self.leases))
        if lease.private:
            self.pool.publish(lease, block)
            assert 1 == self.pool.match([block])

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        lease = data.draw(st.sampled_from(self.leases))
        self.leases = [other for other in self.leases if other is not lease]
        self.pool.release(lease)

    @invariant()
    def blocks_add_up(self) -> None:
        held = {block for lease in self.leases for block in lease.cached}
        assert len(held) + sum(lease.private for lease in self.leases) == self.pool.used
        assert 0 <= self.pool.free <= CAPACITY
        assert self.pool.cached <= CAPACITY

    def teardown(self) -> None:
        for lease in self.leases:
            self.pool.release(lease)
        assert 0 == self.pool.used


TestPoolMachine = PoolMachine.TestCase
TestPoolMachine.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
