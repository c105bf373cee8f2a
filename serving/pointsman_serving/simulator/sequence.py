"""A request in a fast engine, and what an engine tells of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from pointsman_serving.engines.timing import EventKind
    from pointsman_serving.simulator.request import SimRequest


class EngineEvent(NamedTuple):
    """A first token or an end."""

    kind: EventKind
    sequence: FastSequence


class FastSequence:
    """A request in an engine."""

    __slots__ = (
        "blocks",
        "cached_tokens",
        "computed",
        "finish_step",
        "generated",
        "generated_at_step",
        "known",
        "number",
        "output_tokens",
        "pending_seconds",
        "pending_tokens",
        "published",
        "request",
        "shared",
    )

    def __init__(self, request: SimRequest, output_tokens: int, block_tokens: int) -> None:
        self.request = request
        self.output_tokens = output_tokens
        self.blocks = request.blocks[: request.prompt_tokens // block_tokens]
        """Full ones: those that can be shared."""
        self.cached_tokens = 0
        """Found in the cache when it was admitted first."""
        self.known = request.prompt_tokens
        """Tokens that existed when it was last queued, admitted or began to decode."""
        self.computed = 0
        """Of a sequence in prefill: tokens in the cache."""
        self.generated = 0
        self.generated_at_step = 0
        """The engine's step count when ``generated`` and ``known`` were true."""
        self.published = 0
        self.shared: list[int] = []
        self.number = 0
        """Order of admission."""
        self.finish_step = 0
        """Of a sequence that decodes: the step with its last token; else 0."""
        self.pending_tokens = 0
        self.pending_seconds = 0.0
