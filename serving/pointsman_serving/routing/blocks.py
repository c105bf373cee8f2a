"""A prompt's chained hashes as two rows of integers: nothing is made for each block.

A prompt of 48 kB has 112 blocks. As objects they would cost more than their hashes, and the
garbage collector would look at each of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, overload


class PrefixBlock(NamedTuple):
    """One block of a prompt's chained hash."""

    hash: int
    """64 bits, over this block and everything before it."""
    end_bytes: int
    """Bytes of the canonical prompt up to this block's end."""


class Blocks(Sequence[PrefixBlock]):
    """Immutable; equal to another where all hashes and ends are.

    Args:
        hashes: of each block, from the first.
        ends: of at least as many blocks; shared by all prompts that are cut alike.
    """

    __slots__ = ("ends", "hashes")

    def __init__(self, hashes: tuple[int, ...], ends: tuple[int, ...]) -> None:
        self.hashes = hashes
        self.ends = ends

    @classmethod
    def of(cls, pairs: Iterable[tuple[int, int]]) -> Blocks:
        """From pairs of hash and end."""
        if isinstance(pairs, Blocks):
            return pairs
        rows = tuple(pairs)
        return cls(tuple(row[0] for row in rows), tuple(row[1] for row in rows))

    def __len__(self) -> int:
        return len(self.hashes)

    @overload
    def __getitem__(self, index: int) -> PrefixBlock: ...
    @overload
    def __getitem__(self, index: slice) -> Blocks: ...
    def __getitem__(self, index: int | slice) -> PrefixBlock | Blocks:
        count = len(self.hashes)
        if isinstance(index, slice):
            return Blocks(self.hashes[index], self.ends[:count][index])
        # From behind too: there may be more ends than blocks.
        return PrefixBlock(self.hashes[index], self.ends[index + count if index < 0 else index])

    def __iter__(self) -> Iterator[PrefixBlock]:
        return map(PrefixBlock, self.hashes, self.ends)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Blocks) and (
            self.hashes == other.hashes
            and self.ends[: len(self.hashes)] == other.ends[: len(other.hashes)]
        )

    def __hash__(self) -> int:
        return hash(self.hashes)

    def __repr__(self) -> str:
        return f"Blocks({list(self)})"
