"""What one replica's prefix cache is believed to hold: bounded, corrected, never authoritative.

Blocks are computed (their prompt's first token was seen) or in flight (sent, being computed). A
chain is always entered from its deepest block to its first, so that a block is only ever held
together with all before it and the longest held prefix is found by bisection.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from pointsman_serving.routing.blocks import Blocks
    from pointsman_serving.routing.kv.held import HeldBlocks
    from pointsman_serving.routing.kv.token_chains import KnownChain

ASSUMED_CAPACITY_BYTES: Final = 2_000_000
"""Half a million tokens of text; misses teach less, hits beyond belief teach more."""
SMALLEST_CAPACITY_BYTES: Final = 16_384
LARGEST_CAPACITY_BYTES: Final = 64_000_000
MAX_BLOCKS_PER_REPLICA: Final = 16_384

_JUDGED_TOKENS: Final = 32
"""Smaller predictions are within an engine's block size and say nothing."""
_CONFIDENCE_STRENGTH: Final = 2.0
_CONFIDENCE_MEMORY: Final = 16.0
_KEPT: Final = 0.5
"""A prefix of which less than this share is found was not there."""
_SURPRISES_UNTIL_CLEARED: Final = 3
_SLACK: Final = 1_024


FirstBlocks = dict[int, int]
"""How often each first block is held: once for every replica that has computed it, and once for
every one that is being sent it."""


class Belief(NamedTuple):
    """What was believed of one prompt when it was sent."""

    cached_bytes: int
    """Of the longest held prefix, in flight included."""
    computed_bytes: int
    """Of the part that was computed before."""
    age_bytes: int
    """New bytes that the replica has cached since that part was last used."""
    epoch: int
    """Changes when the belief is cleared."""


class CacheEstimate:
    """One replica's believed blocks.

    Args:
        max_blocks: bound of the computed blocks; those in flight are bounded by the requests
            in flight.
        firsts: where it is counted which first blocks are held; shared by the replicas of a
            pool, so that one look tells whether any of them holds a prompt at all.
    """

    __slots__ = (
        "_blocks",
        "_chained",
        "_chains",
        "_confidence_weight",
        "_in_flight",
        "_inserted_bytes",
        "_surprises",
        "actual_tokens",
        "capacity_bytes",
        "confidence",
        "epoch",
        "firsts",
        "held",
        "max_blocks",
        "predicted_tokens",
    )

    def __init__(
        self, *, max_blocks: int = MAX_BLOCKS_PER_REPLICA, firsts: FirstBlocks | None = None
    ) -> None:
        self.firsts: FirstBlocks = {} if firsts is None else firsts
        self.max_blocks = max_blocks
        self.capacity_bytes = ASSUMED_CAPACITY_BYTES
        self.confidence = 1.0
        """Actual over predicted cached tokens, lately; scales what is believed."""
        self.epoch = 0
        self.held: HeldBlocks | None = None
        """What the engine itself tells of its cache, while it is heard."""
        self.predicted_tokens = 0.0
        self.actual_tokens = 0.0
        """Sums over the answers whose engine counted cached tokens."""
        self._confidence_weight = 0.0
        self._surprises = 0
        self._inserted_bytes = 0
        # Integers alone, so that the garbage collector has nothing to walk over.
        self._blocks: dict[int, int] = {}
        """The computed ones, and when each was used last: what had been inserted by then."""
        self._chains: deque[tuple[int, tuple[int, ...]]] = deque()
        """The prompts by last use. Of a block that was used again since, the later one counts."""
        self._chained = 0
        """Blocks of all of these."""
        self._in_flight: Counter[int] = Counter()

    def __len__(self) -> int:
        return len(self._blocks)

    @property
    def blocks_in_flight(self) -> int:
        """Distinct blocks that were sent and not yet computed."""
        return len(self._in_flight)

    def cached_bytes(self, blocks: Blocks) -> int:
        """Bytes of the longest prefix held, blocks in flight included."""
        computed = self._blocks
        in_flight = self._in_flight
        hashes = blocks.hashes
        if not hashes or (hashes[0] not in computed and hashes[0] not in in_flight):
            return 0
        low, high = 0, len(hashes)
        while high - low > 1:
            middle = (low + high) // 2
            block = hashes[middle]
            if block in computed or block in in_flight:
                low = middle
            else:
                high = middle
        return blocks.ends[low]

    def holds(self, block: int) -> bool:
        """Whether a block is held, and so all before it, computed or in flight."""
        return block in self._blocks or block in self._in_flight

    def exact_tokens(
        self, blocks: Blocks, chain: KnownChain | None, tokens_per_byte: float
    ) -> float | None:
        """Tokens of a prompt that are cached, as the engine tells, or are being computed.

        Args:
            chain: the prompt's token blocks as far as they are known.
            tokens_per_byte: for what lies beyond these.

        Returns:
            None where the engine has not told, so that belief is all there is.
        """
        held = self.held
        if held is None or chain is None or not held.usable:
            return None
        if held.block_tokens != chain.block_tokens:
            return None
        known = len(chain.blocks) * held.block_tokens
        if not known:
            return None
        count = held.held_blocks(chain.blocks)
        if count == len(chain.blocks):
            # What follows was never seen in tokens.
            beyond = self.cached_bytes(blocks) - chain.end_bytes
            return known + max(0, beyond) * tokens_per_byte * self.confidence
        told = float(count * held.block_tokens)
        if not held.complete:
            share = min(1.0, self.cached_bytes(blocks) / chain.end_bytes)
            return None if share * known * self.confidence > told else told
        if self._in_flight:
            share = min(1.0, self._in_flight_bytes(blocks) / chain.end_bytes)
            return max(told, share * known)
        return told

    def _in_flight_bytes(self, blocks: Blocks) -> int:
        in_flight = self._in_flight
        return next((end for block, end in reversed(blocks) if block in in_flight), 0)

    def begin(self, blocks: Blocks) -> Belief:
        """Note that a prompt is being sent; returns what was believed of it before."""
        held = self.cached_bytes(blocks)
        hashes = blocks.hashes
        deepest = self._deepest_computed(hashes) if held else -1
        if hashes and hashes[0] not in self._in_flight:
            self._count_first(hashes[0], 1)
        self._in_flight.update(hashes)
        if deepest < 0:
            return Belief(held, 0, 0, self.epoch)
        age = self._inserted_bytes - self._blocks[hashes[deepest]]
        return Belief(held, blocks.ends[deepest], age, self.epoch)

    def confirm(self, blocks: Blocks, belief: Belief) -> None:
        """Note that a prompt's first token came: its blocks are computed."""
        hashes = blocks.hashes
        if belief.epoch != self.epoch or not hashes:
            return
        self._leave(hashes)
        computed = self._blocks
        ends = blocks.ends
        count = len(hashes)
        deepest = self._deepest_computed(hashes)
        known_bytes = 0
        if deepest >= 0:
            known_bytes = ends[deepest]
        else:
            self._count_first(hashes[0], 1)
        # At least one, so that no two prompts have the same stamp.
        self._inserted_bytes += max(1, ends[count - 1] - known_bytes)
        stamp = self._inserted_bytes
        computed.update(dict.fromkeys(hashes, stamp))
        self._chains.append((stamp, hashes))
        self._chained += count
        self._evict()

    def abandon(self, blocks: Blocks, belief: Belief) -> None:
        """Note that a prompt ended before its first token: nothing was computed."""
        if belief.epoch == self.epoch:
            self._leave(blocks.hashes)

    def learn(self, belief: Belief, predicted_tokens: float, actual_tokens: int) -> None:
        """Compare a prediction (before scaling by ``confidence``) with the engine's count.

        A prefix that was gone says how little the engine can hold; one that was there beyond
        belief, that it holds more. Prefixes that were just used and are gone again and again
        say that the engine was restarted: then nothing is believed any more.
        """
        self.predicted_tokens += predicted_tokens * self.confidence
        self.actual_tokens += actual_tokens
        if belief.epoch != self.epoch:
            return
        if predicted_tokens < _JUDGED_TOKENS:
            if actual_tokens >= 2 * _JUDGED_TOKENS:
                self.capacity_bytes = min(self.capacity_bytes * 11 // 10, LARGEST_CAPACITY_BYTES)
            return
        ratio = min(1.0, actual_tokens / predicted_tokens)
        if self._was_evicted(belief, ratio):
            return
        weight = min(1.0, predicted_tokens / 256.0)
        self._confidence_weight = min(self._confidence_weight + weight, _CONFIDENCE_MEMORY)
        share = weight / (self._confidence_weight + _CONFIDENCE_STRENGTH)
        self.confidence += (ratio - self.confidence) * share
        if ratio >= _KEPT:
            self._surprises = 0
        elif actual_tokens == 0 and belief.computed_bytes == belief.cached_bytes:
            self._surprises += 1
            if self._surprises >= _SURPRISES_UNTIL_CLEARED:
                self.clear()

    def clear(self) -> None:
        """Believe nothing any more: the replica lost its cache."""
        for block in (*self._blocks, *self._in_flight):
            if block in self.firsts:
                self._count_first(block, -1)
        self._blocks.clear()
        self._chains.clear()
        self._chained = 0
        self._in_flight.clear()
        self._surprises = 0
        self.epoch += 1

    def _was_evicted(self, belief: Belief, ratio: float) -> bool:
        """Whether a smaller capacity explains what is missing; if so, believe in it."""
        # Blocks that were in flight may be computed twice: that says nothing about capacity.
        if ratio >= _KEPT or belief.computed_bytes < belief.cached_bytes:
            return False
        if not SMALLEST_CAPACITY_BYTES < belief.age_bytes < self.capacity_bytes:
            return False
        self.capacity_bytes = int(math.sqrt(self.capacity_bytes * belief.age_bytes))
        self._evict()
        return True

    def _deepest_computed(self, hashes: tuple[int, ...]) -> int:
        """Index of the last block of the longest prefix that was computed; -1: none was."""
        computed = self._blocks
        if not hashes or hashes[0] not in computed:
            return -1
        low, high = 0, len(hashes)
        while high - low > 1:
            middle = (low + high) // 2
            if hashes[middle] in computed:
                low = middle
            else:
                high = middle
        return low

    def _leave(self, hashes: tuple[int, ...]) -> None:
        in_flight = self._in_flight
        for block in hashes:
            count = in_flight[block]
            if count > 1:
                in_flight[block] = count - 1
            else:
                in_flight.pop(block, None)
        if hashes and hashes[0] not in in_flight:
            self._count_first(hashes[0], -1)

    def _count_first(self, block: int, change: int) -> None:
        firsts = self.firsts
        count = firsts.get(block, 0) + change
        if count > 0:
            firsts[block] = count
        else:
            firsts.pop(block, None)

    def _evict(self) -> None:
        """Let go of the chains that were used last longest ago, each from its deepest block."""
        chains = self._chains
        computed = self._blocks
        oldest = self._inserted_bytes - self.capacity_bytes
        excess = len(computed) - self.max_blocks
        while chains and (excess > 0 or chains[0][0] < oldest):
            stamp, hashes = chains.popleft()
            left = len(hashes)
            while left and (excess > 0 or stamp < oldest):
                left -= 1
                block = hashes[left]
                if computed.get(block) == stamp:
                    del computed[block]
                    excess -= 1
                    if not left:
                        self._count_first(block, -1)
            self._chained -= len(hashes) - left
            if left:
                chains.appendleft((stamp, hashes[:left]))
        if self._chained > 2 * len(computed) + _SLACK:
            self._tidy()

    def _tidy(self) -> None:
        """Forget of every prompt the blocks that were used again since."""
        computed = self._blocks
        kept = (
            (stamp, tuple(block for block in hashes if computed.get(block) == stamp))
            for stamp, hashes in self._chains
        )
        self._chains = deque(chain for chain in kept if chain[1])
        self._chained = sum(len(hashes) for _, hashes in self._chains)
