"""What an engine tells of its prefix cache: blocks of tokens that came, went, or went all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

EngineHash = int | bytes
"""An engine's own name of a block; means nothing to other engines."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlocksStored:
    """Consecutive full blocks of one prompt or answer are cached from now on."""

    hashes: Sequence[EngineHash]
    """One for each block."""
    parent: EngineHash | None
    """The block before the first one; None: they are the beginning."""
    token_ids: Sequence[int]
    """``block_tokens`` for each block."""
    block_tokens: int
    extra_keys: Sequence[list[object] | None] = ()
    """For each block what distinguishes it besides its tokens (the cache salt, an adapter's
    name, a picture's digest), or None; empty: nothing does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlocksRemoved:
    """Blocks are cached no more."""

    hashes: Sequence[EngineHash]


@dataclass(frozen=True, slots=True, kw_only=True)
class AllCleared:
    """Nothing is cached any more."""


KvEvent = BlocksStored | BlocksRemoved | AllCleared
