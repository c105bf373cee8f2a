"""Names of token blocks: chained hashes over token ids, the same for every replica of a model.

Engines name their blocks by hashes of their own, some seeded anew at each start. These are over
the same things (the tokens of a block, all before it, and what else keeps blocks apart), so that
a prompt whose tokens are known can be looked up in any replica's cache.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Final

from xxhash import xxh3_64_intdigest

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT: Final = 0
"""What the first block of a prompt is chained to."""

_TOKEN_BYTES: Final = array("I").itemsize


def chained(parent: int, tokens: bytes, extra: list[object] | None = None) -> int:
    """The name of one block.

    Args:
        parent: the name of the block before it, or ``ROOT``.
        tokens: the ids of its tokens, as the bytes of an ``array("I")``.
        extra: what distinguishes it besides its tokens; None: nothing.
    """
    if extra is not None:
        parent = xxh3_64_intdigest(repr(extra).encode("utf-8", "surrogatepass"), parent)
    return xxh3_64_intdigest(tokens, parent)


def token_blocks(token_ids: Sequence[int], *, block_tokens: int, salt: str = "") -> array[int]:
    """The names of a prompt's full blocks, in order.

    Args:
        salt: the cache salt that the engine was given with the prompt.

    Raises:
        OverflowError: an id is negative or too large for 32 bits.
        TypeError: an id is no integer.
    """
    data = array("I", token_ids).tobytes()
    size = block_tokens * _TOKEN_BYTES
    names = array("Q")
    parent = ROOT
    extra: list[object] | None = [salt] if salt else None
    for start in range(0, len(data) - size + 1, size):
        parent = chained(parent, data[start : start + size], extra)
        names.append(parent)
        extra = None
    return names
