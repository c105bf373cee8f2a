"""What one replica's prefix cache holds, as the engine itself tells: exact while it is heard.

Everything is bounded. Where the engine says more than fits, or speaks of blocks whose beginning
was never heard of, the index stays true in what it has and is no longer ``complete``: what it
lacks may be cached all the same.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Final

from pointsman_serving.routing.kv.events import AllCleared, BlocksRemoved, BlocksStored
from pointsman_serving.routing.kv.token_blocks import ROOT, chained

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pointsman_serving.routing.kv.events import EngineHash, KvEvent

MAX_BLOCKS_PER_REPLICA: Final = 262_144
"""Four million tokens in blocks of sixteen."""

_WRONG_UNTIL_DISTRUSTED: Final = 8
_FEW_TOKENS: Final = 64


class HeldBlocks:
    """The blocks of one replica.

    Args:
        complete: every event since the engine's start is going to be told.
        max_blocks: bound; beyond it the blocks that were stored first are forgotten.
    """

    __slots__ = (
        "_counts",
        "_names",
        "_wrong",
        "block_tokens",
        "complete",
        "live",
        "max_blocks",
        "trusted",
    )

    def __init__(self, *, complete: bool, max_blocks: int = MAX_BLOCKS_PER_REPLICA) -> None:
        self.complete = complete
        """Whether what is not here is not cached."""
        self.live = False
        """Whether what was told so far is all here."""
        self.max_blocks = max_blocks
        self.block_tokens = 0
        """Tokens in a block; 0 until a block was told of."""
        self.trusted = True
        """False once the engine's counts have contradicted it again and again."""
        self._wrong = 0
        self._names: dict[EngineHash, int] = {}
        """The common name of each block by the engine's own."""
        self._counts: dict[int, int] = {}
        """How many copies the engine has of each; one that it computed twice is there twice."""

    def __len__(self) -> int:
        return len(self._counts)

    def __contains__(self, name: int) -> bool:
        return name in self._counts

    @property
    def usable(self) -> bool:
        """Whether it has anything to say."""
        return self.live and self.trusted and self.block_tokens > 0

    def apply(self, events: Iterable[KvEvent]) -> None:
        """Take events in the order in which the engine told them."""
        for event in events:
            if type(event) is BlocksStored:
                self._store(event)
            elif type(event) is BlocksRemoved:
                self._remove(event.hashes)
            elif type(event) is AllCleared:
                self._names.clear()
                self._counts.clear()
                self.complete = True

    def held_blocks(self, chain: Sequence[int]) -> int:
        """How many of a chain's first blocks are held.

        An engine gives up a block only after those behind it, so the end is found by bisection.
        """
        counts = self._counts
        if not chain or chain[0] not in counts:
            return 0
        low, high = 0, len(chain)
        while high - low > 1:
            middle = (low + high) // 2
            if chain[middle] in counts:
                low = middle
            else:
                high = middle
        return low + 1

    def judge(self, predicted_tokens: float, actual_tokens: int) -> None:
        """Compare what was said of a prompt with what the engine counted in the end.

        Evictions in between make it wrong now and then; something that is always wrong means
        that this engine's events do not say what they are taken for.
        """
        if abs(predicted_tokens - actual_tokens) <= max(
            _FEW_TOKENS, 0.5 * max(predicted_tokens, actual_tokens)
        ):
            self._wrong = 0
            return
        self._wrong += 1
        if self._wrong >= _WRONG_UNTIL_DISTRUSTED:
            self.trusted = False

    def _store(self, event: BlocksStored) -> None:
        size = event.block_tokens
        if not self.block_tokens:
            self.block_tokens = size
        names = self._names
        parent = ROOT if event.parent is None else names.get(event.parent)
        if (
            parent is None
            or size != self.block_tokens
            or len(event.token_ids) != size * len(event.hashes)
        ):
            # Behind a block that is not known, or not of the chain that prompts are looked up by.
            self.complete = False
            return
        data = array("I", event.token_ids).tobytes()
        step = len(data) // max(1, len(event.hashes))
        extras = event.extra_keys
        counts = self._counts
        for index, engine_hash in enumerate(event.hashes):
            extra = extras[index] if index < len(extras) else None
            parent = chained(parent, data[index * step : (index + 1) * step], extra)
            names[engine_hash] = parent
            counts[parent] = counts.get(parent, 0) + 1
        while len(names) > self.max_blocks:
            self.complete = False
            self._forget(next(iter(names)))

    def _remove(self, hashes: Iterable[EngineHash]) -> None:
        for engine_hash in hashes:
            name = self._names.get(engine_hash)
            if name is None:
                continue
            count = self._counts.get(name, 0)
            if count > 1:
                self._counts[name] = count - 1
            else:
                self._forget(engine_hash)

    def _forget(self, engine_hash: EngineHash) -> None:
        """Let go of a block, however many copies the engine has."""
        self._counts.pop(self._names.pop(engine_hash), None)
