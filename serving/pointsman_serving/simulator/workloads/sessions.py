"""Generated traffic with shared prefixes: agents with tools, and conversations that grow.

A session begins with one of the shared prefixes (a system prompt, tool definitions) and text of
its own; each further turn has the whole prompt before it, the answer and something new. Block ids
follow from that: two prompts share exactly the blocks that lie in their common part.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from pointsman_serving.simulator.request import BLOCK_TOKENS, SimRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixFamily:
    """Prefixes of one length that sessions begin with."""

    share: float
    """Of the sessions; the shares of all families are taken relative to their sum."""
    blocks: int
    """Length of each prefix."""
    count: int = 1
    """How many there are."""
    zipf: float = 0.0
    """Exponent of their popularity: the n-th is taken in proportion to n ** -zipf."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionMix:
    """What sessions are like. Token counts are means of log-normal distributions.

    Raises:
        ValueError: no family, or a number that makes no session.
    """

    families: tuple[PrefixFamily, ...]
    first_tokens: float
    """The session's own text in its first prompt."""
    added_tokens: float
    """What each further prompt has beyond the one before and its answer."""
    output_tokens: float
    turns: float
    """Mean number of turns, geometrically distributed; 1 or more."""
    sigma: float = 0.8
    """Standard deviation of the logarithm of lengths."""
    pause_seconds: float = 20.0
    """Mean time between the turns of a session, exponentially distributed."""
    most_prompt_tokens: int = 120_000
    """A session ends before it would exceed this."""
    interaction: str = "chat"
    """The label of its requests: chat or agent."""
    task: str = ""
    rate_of_reference: float = field(default=1.0)
    """Requests a second at which the pauses are as stated."""

    def __post_init__(self) -> None:
        """Refuse what makes no session."""
        if not self.families:
            raise ValueError("families is empty: give one PrefixFamily at least")
        for name in ("first_tokens", "added_tokens", "output_tokens", "pause_seconds"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}: give a number above 0")
        if self.turns < 1:
            raise ValueError(f"turns is {self.turns}: a session has 1 turn at least")


TOOL_AGENT: Final = SessionMix(
    families=(
        PrefixFamily(share=14.9, blocks=6),
        PrefixFamily(share=37.8, blocks=13),
        PrefixFamily(share=47.3, blocks=2, count=300, zipf=0.8),
    ),
    first_tokens=4_500,
    added_tokens=1_400,
    output_tokens=182,
    turns=1.47,
    interaction="agent",
    pause_seconds=8.0,
)
"""Like Mooncake's tool-and-agent trace: 8,596 prompt tokens on average, 59% of blocks shared."""

MULTI_TURN: Final = SessionMix(
    families=(
        PrefixFamily(share=60, blocks=2, count=8, zipf=1.0),
        PrefixFamily(share=25, blocks=5, count=4, zipf=1.0),
        PrefixFamily(share=15, blocks=1, count=200, zipf=0.6),
    ),
    first_tokens=900,
    added_tokens=700,
    output_tokens=260,
    turns=5.0,
    pause_seconds=30.0,
)
"""Conversations of a chat service that grow from turn to turn behind a few system prompts."""


class _Session:
    """One session on its way."""

    __slots__ = ("blocks", "name", "prompt_tokens", "turns_left")

    def __init__(self, name: str, blocks: list[int], prompt_tokens: int, turns_left: int) -> None:
        self.name = name
        self.blocks = blocks
        self.prompt_tokens = prompt_tokens
        self.turns_left = turns_left


def generate_sessions(
    mix: SessionMix, *, count: int, rate: float = 1.0, seed: int = 0
) -> list[SimRequest]:
    """So many requests of such sessions, in order of arrival.

    Sessions begin as a Poisson stream. The pauses shrink as the rate grows, as they do when the
    rate of a recorded trace is raised.

    Args:
        rate: requests a second, about.

    Raises:
        ValueError: the count or the rate is not positive.
    """
    if count < 1 or not 0 < rate < math.inf:
        raise ValueError(f"count is {count} and rate is {rate}: both must be above 0")
    source = random.Random(seed)
    ids = itertools.count()
    pick_prefix = _prefixes(mix, ids, source)
    pause = mix.pause_seconds * mix.rate_of_reference / rate
    # Until sessions have grown, too few requests would come: begin before the beginning.
    ready: list[tuple[float, int, _Session]] = []
    warm_seconds = 6 * pause * mix.turns
    begins = -warm_seconds
    order = itertools.count()
    found: list[tuple[float, SimRequest]] = []
    next_begin = begins
    while len(found) < count:
        while not ready or next_begin <= ready[0][0]:
            heapq.heappush(
                ready, (next_begin, next(order), _begin(mix, pick_prefix(), source, next(order)))
            )
            next_begin += source.expovariate(rate / mix.turns)
        at, _, session = heapq.heappop(ready)
        request = _turn(mix, session, ids, source, at, len(found))
        if at >= 0.0:
            found.append((at, request))
        if session.turns_left > 0 and session.prompt_tokens < mix.most_prompt_tokens:
            heapq.heappush(ready, (at + source.expovariate(1.0 / pause), next(order), session))
    return [request for _, request in found]


def _begin(mix: SessionMix, prefix: list[int], source: random.Random, number: int) -> _Session:
    own = _length(mix.first_tokens, mix.sigma, source)
    turns = 1
    while source.random() >= 1.0 / mix.turns:
        turns += 1
    return _Session(f"s{number}", list(prefix), len(prefix) * BLOCK_TOKENS + own, turns)


def _turn(
    mix: SessionMix,
    session: _Session,
    ids: itertools.count[int],
    source: random.Random,
    at: float,
    number: int,
) -> SimRequest:
    prompt_tokens = session.prompt_tokens
    while len(session.blocks) < prompt_tokens // BLOCK_TOKENS:
        session.blocks.append(next(ids))
    output_tokens = _length(mix.output_tokens, mix.sigma, source)
    session.turns_left -= 1
    session.prompt_tokens += output_tokens + _length(mix.added_tokens, mix.sigma, source)
    return SimRequest(
        request_id=f"g{number}",
        arrival_seconds=max(at, 0.0),
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        blocks=tuple(session.blocks),
        conversation=session.name,
        task=mix.task,
        labels={"interaction": mix.interaction},
    )


def _length(mean: float, sigma: float, source: random.Random) -> int:
    return max(1, round(source.lognormvariate(math.log(mean) - sigma * sigma / 2, sigma)))


def _prefixes(
    mix: SessionMix, ids: itertools.count[int], source: random.Random
) -> Callable[[], list[int]]:
    """Something that draws one of the shared prefixes."""
    prefixes: list[list[int]] = []
    weights: list[float] = []
    for family in mix.families:
        popularity = [(rank + 1) ** -family.zipf for rank in range(family.count)]
        total = sum(popularity)
        for each in popularity:
            prefixes.append([next(ids) for _ in range(family.blocks)])
            weights.append(family.share * each / total)
    cumulative = list(itertools.accumulate(weights))
    return lambda: source.choices(prefixes, cum_weights=cumulative)[0]
