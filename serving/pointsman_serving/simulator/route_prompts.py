"""Simulated requests in the scheduler's words: what a gateway would make of their bodies.

A trace has one id for each 512 tokens; a gateway hashes bytes, in blocks that grow with depth. So
each of the gateway's blocks gets a hash made of where it ends and of the trace's block in which
that is: prompts that share a block of the trace share the gateway's blocks inside it.
"""

from __future__ import annotations

from bisect import bisect_right
from itertools import repeat
from typing import TYPE_CHECKING, Final

from pointsman_serving.routing.prefix import BLOCK_ENDS, PRIOR_BYTES_PER_TOKEN
from pointsman_serving.routing.types import Api, PrefixBlock, Prompt, RouteRequest
from pointsman_serving.simulator.request import BLOCK_TOKENS

if TYPE_CHECKING:
    from pointsman_serving.simulator.request import SimRequest

_BLOCK_BYTES: Final = BLOCK_TOKENS * PRIOR_BYTES_PER_TOKEN
_MASK: Final = (1 << 64) - 1
# Odd numbers that spread small ones over 64 bits (of splitmix64).
_SPREAD: Final = 0x9E3779B97F4A7C15
_SPREAD_ENDS: Final = tuple(0xBF58476D1CE4E5B9 * end & _MASK for end in BLOCK_ENDS)
_TRACE_BLOCK: Final = tuple((end - 1) // _BLOCK_BYTES for end in BLOCK_ENDS)


def route_request(request: SimRequest, *, model: str, now: float, continues: bool) -> RouteRequest:
    """The request as a gateway would hand it to the scheduler.

    Args:
        model: the name that it asks for.
        continues: there is an answer among its messages.
    """
    return RouteRequest(
        request_id=request.request_id,
        model=model,
        api=Api.CHAT,
        prompt=_prompt(request, continues),
        tenant=request.tenant,
        fairness_id=request.tenant,
        task=request.task or "Default",
        arrived_at=now,
    )


def root_of(request: SimRequest) -> int:
    """What the turns of a conversation have in common: its name, or its first own block."""
    if request.conversation:
        return _hash_text(request.conversation)
    blocks = request.blocks
    if len(blocks) > 1:
        return blocks[1] * _SPREAD & _MASK
    return _hash_text(request.request_id)


def _prompt(request: SimRequest, continues: bool) -> Prompt:
    total_bytes = request.prompt_tokens * PRIOR_BYTES_PER_TOKEN
    whole = bisect_right(BLOCK_ENDS, total_bytes)
    spread = [(block + 1) * _SPREAD for block in request.blocks]
    missing = -(-request.prompt_tokens // BLOCK_TOKENS) - len(spread)
    if missing > 0:
        # Nobody else has what the trace does not name.
        spread += [_hash_text(request.request_id)] * missing
    hashes = [
        spread[position] + end & _MASK
        for position, end in zip(_TRACE_BLOCK[:whole], _SPREAD_ENDS, strict=False)
    ]
    # The same as PrefixBlock(hash, end) for each pair, at half the cost.
    pairs = zip(hashes, BLOCK_ENDS, strict=False)
    return Prompt(
        blocks=tuple(map(tuple.__new__, repeat(PrefixBlock), pairs)),
        total_bytes=total_bytes,
        estimated_tokens=request.prompt_tokens,
        root=root_of(request),
        continues=continues,
    )


def _hash_text(text: str) -> int:
    """The same in every process, unlike ``hash``."""
    found = 0xCBF29CE484222325
    for byte in text.encode():
        found = (found ^ byte) * 0x100000001B3 & _MASK
    return found
