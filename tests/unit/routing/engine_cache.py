"""An engine's prefix cache as vLLM keeps it, with its events; block names are its own."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pointsman_serving.routing.kv.events import AllCleared, BlocksRemoved, BlocksStored

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pointsman_serving.routing.kv.events import KvEvent

Block = tuple[str, tuple[int, ...]]
"""The salt, and all tokens up to the block's end."""


@dataclass(kw_only=True)
class EngineCache:
    """Blocks in the order in which they would be evicted; the deepest of a prompt first."""

    capacity: int = 1_000
    block_tokens: int = 4
    seed: str = "seed"
    blocks: OrderedDict[Block, None] = field(default_factory=OrderedDict)
    events: list[KvEvent] = field(default_factory=list)

    def name(self, block: Block) -> bytes:
        return hashlib.sha256(f"{self.seed}{block}".encode()).digest()

    def of(self, tokens: Sequence[int], salt: str = "") -> list[Block]:
        size = self.block_tokens
        return [(salt, tuple(tokens[:end])) for end in range(size, len(tokens) + 1, size)]

    def cached_tokens(self, tokens: Sequence[int], salt: str = "") -> int:
        count = 0
        for block in self.of(tokens, salt):
            if block not in self.blocks:
                break
            count += 1
        return count * self.block_tokens

    def compute(self, tokens: Sequence[int], salt: str = "") -> None:
        """Compute a prompt: what is missing is stored, what is over capacity is removed."""
        blocks = self.of(tokens, salt)[: self.capacity]
        new = [block for block in blocks if block not in self.blocks]
        for block in reversed(blocks):
            self.blocks[block] = None
            self.blocks.move_to_end(block)
        while len(self.blocks) > self.capacity:
            self.remove(next(iter(self.blocks)))
        if new:
            self.events.append(self.stored(new, tokens))

    def stored(self, new: Sequence[Block], tokens: Sequence[int]) -> BlocksStored:
        salt, upto = new[0]
        start = len(upto) - self.block_tokens
        parent = (salt, tuple(tokens[:start]))
        return BlocksStored(
            hashes=[self.name(block) for block in new],
            parent=self.name(parent) if start else None,
            token_ids=list(tokens[start : start + len(new) * self.block_tokens]),
            block_tokens=self.block_tokens,
            extra_keys=[[salt] if salt and not start else None] + [None] * (len(new) - 1),
        )

    def remove(self, block: Block) -> None:
        del self.blocks[block]
        self.events.append(BlocksRemoved(hashes=[self.name(block)]))

    def clear(self) -> None:
        self.blocks.clear()
        self.events.append(AllCleared())

    def take(self) -> list[KvEvent]:
        """The events since this was called last."""
        events, self.events = self.events, []
        return events
