"""``cache_salt``: prefix pages that only requests with the same salt share.

Continuous batching finds a prefix by a chain of hashes, one for each full page, each covering the
one before it, and knows no salt. Here the salt goes into the hash of a request's first page, and
so into all that follow, as in vLLM.

The salt travels in the engine's own request id, since that is what every step of continuous
batching keeps: also for a request that was put back for lack of room, or whose client has left.
"""

from __future__ import annotations

import hashlib
import struct
from typing import Any, SupportsIndex

from transformers.generation.continuous_batching.cache_allocators import (
    FullAttentionCacheAllocator,
)

_MARK = "/salt:"
_SALT_BYTES = 16
"""A first page's hash covers so many bytes more, a later page's 8 (its parent's hash) more: the
three kinds of pages differ in length, so none can be mistaken for another."""


def salted_request_id(request_id: str, cache_salt: str) -> str:
    """The id under which the engine holds a request; ``cache_salt`` is empty for none."""
    # A salt comes from JSON, which can hold half of a surrogate pair.
    salt = cache_salt.encode("utf-8", "surrogatepass")
    digest = hashlib.blake2b(salt, digest_size=_SALT_BYTES).hexdigest() if salt else ""
    # Without a salt as well, so that what a caller's id ends in is never taken for one.
    return f"{request_id}{_MARK}{digest}"


def salted_tokens(token_ids: list[int], request_id: str) -> list[int]:
    """Token ids for hashing, seeded by the salt in an id of :func:`salted_request_id`."""
    _, mark, digest = request_id.rpartition(_MARK)
    if not mark or not digest:
        return token_ids
    return _SaltedTokens(token_ids, bytes.fromhex(digest))


class SaltedAllocator(FullAttentionCacheAllocator):
    """Transformers' own pages, each registered under a hash that covers its request's salt.

    The lookup, which is not told the request, gets its tokens from :func:`salted_tokens`.
    """

    def mark_complete_blocks(
        self, request_id: str, token_ids: list[int], new_new_blocks: int
    ) -> None:
        """Register the pages that the last iteration filled."""
        salted = salted_tokens(token_ids, request_id)
        super().mark_complete_blocks(request_id, salted, new_new_blocks)


class _SaltedTokens(list[int]):
    """Token ids; a slice from 0, which is how the first page is read, ends in the salt."""

    def __init__(self, token_ids: list[int], salt: bytes) -> None:
        super().__init__(token_ids)
        self._salt = list(struct.unpack(f"={len(salt) // 4}i", salt))

    def __getitem__(self, index: SupportsIndex | slice) -> Any:
        if isinstance(index, slice) and index.start == 0:
            return super().__getitem__(index) + self._salt
        return super().__getitem__(index)
