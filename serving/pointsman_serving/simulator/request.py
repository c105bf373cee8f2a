"""One request of a workload, as a simulated gateway and simulated engines see it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

BLOCK_TOKENS: Final = 512
"""Tokens of one prefix block of a trace."""

_NOTHING: Final[Mapping[str, str]] = MappingProxyType({})
_NO_NUMBERS: Final[Mapping[str, float]] = MappingProxyType({})
_NO_TOKENS: Final[Mapping[str, int]] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SimRequest:
    """A request and what it turns out to need. Two are equal only if they are the same object.

    An arm must not read what a gateway could not know: ``output_tokens``, ``output_tokens_by_pool``
    and ``quality_by_pool`` are for oracles, and otherwise for the simulator alone.

    Raises:
        ValueError: an empty prompt or answer, a time or a score that is no number, or more blocks
            than the prompt fills.
    """

    request_id: str
    arrival_seconds: float
    """From the start of the workload."""
    prompt_tokens: int
    output_tokens: int
    """Tokens of the answer, on any pool that ``output_tokens_by_pool`` does not name."""
    blocks: tuple[int, ...] = ()
    """One id for each prefix block of ``BLOCK_TOKENS`` tokens, the last one perhaps part-filled;
    equal ids mean equal prompts up to that block's end. Empty: nothing is shared."""
    conversation: str = ""
    tenant: str = ""
    task: str = ""
    prompt: str = ""
    """The text, where a quality predictor is part of what is simulated."""
    labels: Mapping[str, str] = field(default_factory=lambda: _NOTHING)
    quality_by_pool: Mapping[str, float] = field(default_factory=lambda: _NO_NUMBERS)
    """The measured score (0 to 1) of each pool's answer."""
    output_tokens_by_pool: Mapping[str, int] = field(default_factory=lambda: _NO_TOKENS)

    def __post_init__(self) -> None:
        """Refuse what no client sends."""
        if not 0 <= self.arrival_seconds < float("inf"):
            raise ValueError(
                f"arrival_seconds of {self.request_id!r} is {self.arrival_seconds}: "
                "give seconds from the start, 0 or more"
            )
        for name, value in (
            ("prompt_tokens", self.prompt_tokens),
            ("output_tokens", self.output_tokens),
            *((f"output_tokens_by_pool[{k}]", v) for k, v in self.output_tokens_by_pool.items()),
        ):
            if value < 1:
                raise ValueError(
                    f"{name} of {self.request_id!r} is {value}: give a whole number from 1"
                )
        most = -(-self.prompt_tokens // BLOCK_TOKENS)
        if len(self.blocks) > most:
            raise ValueError(
                f"{self.request_id!r} has {len(self.blocks)} blocks and its prompt of "
                f"{self.prompt_tokens} tokens fills {most}: give one id per {BLOCK_TOKENS} tokens"
            )
        for pool, quality in self.quality_by_pool.items():
            if not 0 <= quality <= 1:
                raise ValueError(
                    f"quality_by_pool[{pool}] of {self.request_id!r} is {quality}: "
                    "give a score from 0 to 1"
                )

    def output_tokens_on(self, pool: str) -> int:
        """Tokens of the answer that a pool's model gives."""
        return self.output_tokens_by_pool.get(pool, self.output_tokens)

    @property
    def shareable_blocks(self) -> tuple[int, ...]:
        """The blocks that another request's cache can hold: full ones, and not the last token's.

        At least one token of a prompt is always computed: the first answer token comes from it.
        """
        return self.blocks[: (self.prompt_tokens - 1) // BLOCK_TOKENS]
