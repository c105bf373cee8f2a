"""Making a trace larger or smaller without changing what its requests are like."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pointsman_serving.simulator.request import SimRequest


def session_key(request: SimRequest) -> object:
    """What the requests of one session have in common.

    The stated conversation; else the block behind the first one, which the whole trace may share;
    else the request is a session of its own.
    """
    if request.conversation:
        return request.conversation
    if len(request.blocks) > 1:
        return request.blocks[1]
    return request.request_id


def enlarge(
    requests: Sequence[SimRequest], copies: int, *, seed: int = 0, spread_seconds: float = 60.0
) -> list[SimRequest]:
    """The requests and copies of all their sessions, at so many times the rate.

    The ids of a copy's blocks are renamed, so that it shares nothing with the original but the
    first block that most requests have: the system prompt of the whole service. Each copied
    session comes later by a time of its own, so that copies do not arrive together.

    Args:
        copies: how many of each request there will be; 1: the requests as they are.
        spread_seconds: by how much copied sessions are late at most.

    Raises:
        ValueError: fewer than one copy.
    """
    if copies < 1:
        raise ValueError(f"copies is {copies}: give 1 or more")
    kept = _shared_first_block(requests)
    span = 1 + max((max(each.blocks) for each in requests if each.blocks), default=0)
    source = random.Random(seed)
    found = list(requests)
    for copy in range(1, copies):
        late: dict[object, float] = {}
        for request in requests:
            key = session_key(request)
            if key not in late:
                late[key] = source.uniform(0.0, spread_seconds)
            found.append(
                replace(
                    request,
                    request_id=f"{request.request_id}/{copy}",
                    arrival_seconds=request.arrival_seconds + late[key],
                    conversation=request.conversation and f"{request.conversation}/{copy}",
                    blocks=tuple(
                        block if block == kept else block + copy * span for block in request.blocks
                    ),
                )
            )
    found.sort(key=lambda each: each.arrival_seconds)
    return found


def halves(requests: Sequence[SimRequest]) -> tuple[list[SimRequest], list[SimRequest]]:
    """The first and the second half, by arrival; each begins at 0 seconds."""
    ordered = sorted(requests, key=lambda each: each.arrival_seconds)
    middle = len(ordered) // 2
    return _from_zero(ordered[:middle]), _from_zero(ordered[middle:])


def _from_zero(requests: list[SimRequest]) -> list[SimRequest]:
    if not requests:
        return []
    first = requests[0].arrival_seconds
    return [replace(each, arrival_seconds=each.arrival_seconds - first) for each in requests]


def _shared_first_block(requests: Sequence[SimRequest]) -> int | None:
    """The block that more than half of the prompts begin with, if there is one."""
    counts = Counter(each.blocks[0] for each in requests if each.blocks)
    if not counts:
        return None
    block, count = counts.most_common(1)[0]
    return block if 2 * count > len(requests) else None
