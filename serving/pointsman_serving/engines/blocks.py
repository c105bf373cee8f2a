"""The key-value cache of a simulated engine: reference-counted blocks, oldest idle ones evicted.

Source: vLLM's v1 block pool (blocks keyed by a hash of their whole prefix; freed blocks stay
cached until their place is needed).
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(slots=True, kw_only=True)
class BlockLease:
    """The blocks that one sequence holds."""

    cached: list[int] = field(default_factory=list)
    """Hashes of the blocks that others may share, in the order of the sequence."""
    private: int = 0
    """Blocks that no hash names: part-filled ones, and copies of blocks cached meanwhile."""

    @property
    def blocks(self) -> int:
        """How many blocks are held."""
        return len(self.cached) + self.private


class BlockPool:
    """Hands out blocks; remembers what the idle ones hold until they are needed."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._empty = capacity
        self._references: dict[int, int] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()

    @property
    def capacity(self) -> int:
        """Blocks in all."""
        return self._capacity

    @property
    def free(self) -> int:
        """Blocks that nobody holds; some of them still cache a prefix."""
        return self._empty + len(self._idle)

    @property
    def used(self) -> int:
        """Blocks that sequences hold."""
        return self._capacity - self.free

    @property
    def cached(self) -> int:
        """Blocks that a new request could share."""
        return len(self._references) + len(self._idle)

    def match(self, hashes: Sequence[int]) -> int:
        """How many of these blocks, from the first on, are cached."""
        for index, block in enumerate(hashes):
            if block not in self._references and block not in self._idle:
                return index
        return len(hashes)

    def can_acquire(self, matched: Sequence[int], fresh: int) -> bool:
        """Whether the matched blocks can be shared and this many fresh ones be taken beside."""
        return fresh + sum(block in self._idle for block in matched) <= self.free

    def acquire(self, matched: Sequence[int], fresh: int) -> BlockLease:
        """Share the matched blocks and take fresh ones; ask :meth:`can_acquire` first."""
        for block in matched:
            if block in self._idle:
                del self._idle[block]
                self._references[block] = 1
            else:
                self._references[block] += 1
        lease = BlockLease(cached=list(matched))
        self.extend(lease, fresh)
        return lease

    def extend(self, lease: BlockLease, fresh: int) -> None:
        """Take fresh blocks, evicting idle ones where no empty ones are left.

        Raises:
            RuntimeError: fewer blocks are free; the caller did not look at ``free``.
        """
        if fresh > self.free:
            raise RuntimeError(
                f"{fresh} cache blocks were asked for and {self.free} are free: "
                "compare with `free` before extending"
            )
        evicted = max(0, fresh - self._empty)
        for _ in range(evicted):
            self._idle.popitem(last=False)
        self._empty -= fresh - evicted
        lease.private += fresh

    def publish(self, lease: BlockLease, block: int) -> None:
        """Let others share the lease's next full block; a copy of a cached one stays private."""
        if block in self._references or block in self._idle:
            return
        lease.private -= 1
        lease.cached.append(block)
        self._references[block] = 1

    def release(self, lease: BlockLease) -> None:
        """Give all blocks back; the end of the sequence is evicted before its beginning."""
        self._empty += lease.private
        for block in reversed(lease.cached):
            self._references[block] -= 1
            if not self._references[block]:
                del self._references[block]
                self._idle[block] = None
        lease.private = 0
        lease.cached = []
