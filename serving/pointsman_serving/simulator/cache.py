"""The prefix cache of a simulated engine: ``engines.blocks`` without its lease objects, for speed.

Blocks are counted by reference; those that nobody holds stay cached until their place is needed,
the longest unused first.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


class BlockCache:
    """Blocks of one engine. Counts are blocks.

    Args:
        capacity: blocks in all.
        changes: gets every block that becomes cached, and the complement (``~block``) of every
            block that no longer is; None: nobody follows.
    """

    __slots__ = ("changes", "empty", "idle", "references")

    def __init__(self, capacity: int, *, changes: list[int] | None = None) -> None:
        self.empty = capacity
        """Those that hold nothing."""
        self.references: dict[int, int] = {}
        """How many sequences hold each cached block; 0: it is idle."""
        self.idle: OrderedDict[int, None] = OrderedDict()
        self.changes = changes

    @property
    def free(self) -> int:
        """Those that no sequence holds."""
        return self.empty + len(self.idle)

    def match(self, blocks: Sequence[int], most: int) -> int:
        """How many of the first ``most`` blocks are cached, from the first on."""
        references = self.references
        count = 0
        for block in blocks:
            if count >= most or block not in references:
                break
            count += 1
        return count

    def share(self, blocks: Sequence[int], fresh: int) -> bool:
        """Hold cached blocks and take fresh ones beside them; False where these are too many."""
        references = self.references
        idle = self.idle
        revived = sum(not references[block] for block in blocks)
        if fresh + revived > self.empty + len(idle):
            return False
        for block in blocks:
            if not references[block]:
                del idle[block]
            references[block] += 1
        self.take(fresh)
        return True

    def take(self, fresh: int) -> None:
        """Take blocks for private use; the caller has looked at ``free``."""
        evicted = fresh - self.empty
        if evicted <= 0:
            self.empty -= fresh
            return
        idle = self.idle
        references = self.references
        changes = self.changes
        for _ in range(evicted):
            block = idle.popitem(last=False)[0]
            del references[block]
            if changes is not None:
                changes.append(~block)
        self.empty = 0

    def publish(self, block: int) -> bool:
        """Turn a private block into a shared one; False where another copy is cached already."""
        if block in self.references:
            return False
        self.references[block] = 1
        if self.changes is not None:
            self.changes.append(block)
        return True

    def release(self, shared: Sequence[int], private: int) -> None:
        """Give blocks back; the end of a sequence is evicted before its beginning."""
        self.empty += private
        references = self.references
        idle = self.idle
        for block in reversed(shared):
            count = references[block] - 1
            references[block] = count
            if not count:
                idle[block] = None
