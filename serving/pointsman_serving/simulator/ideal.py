"""What a cache that forgets nothing and serves everybody would find."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pointsman_serving.simulator.request import BLOCK_TOKENS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pointsman_serving.simulator.request import SimRequest


def ideal_cached_tokens(requests: Iterable[SimRequest]) -> dict[SimRequest, int]:
    """Prompt tokens of each request that earlier ones had, in whole blocks."""
    seen: set[int] = set()
    found: dict[SimRequest, int] = {}
    for request in sorted(requests, key=lambda each: each.arrival_seconds):
        hits = 0
        for block in request.shareable_blocks:
            if block not in seen:
                break
            hits += 1
        found[request] = hits * BLOCK_TOKENS
        seen.update(request.blocks[: request.prompt_tokens // BLOCK_TOKENS])
    return found
