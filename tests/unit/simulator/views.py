"""A fleet as a test states it: what an arm sees, without engines behind it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from pointsman_serving.engines.timing import EngineProfile
from pointsman_serving.simulator.request import BLOCK_TOKENS, SimRequest


@dataclass(slots=True, kw_only=True)
class FixedInstance:
    """An instance that is what the test says; satisfies ``arm.InstanceView``."""

    index: int
    pool: str = "pool"
    profile: EngineProfile = field(default_factory=lambda: EngineProfile(block_tokens=BLOCK_TOKENS))
    slots: int = 256
    input_dollars: float = 0.0
    output_dollars: float = 0.0
    alive: bool = True
    observed_at: float = 0.0
    running: int = 0
    waiting: int = 0
    pending_prefill_tokens: int = 0
    pending_prefill_seconds: float = 0.0
    pending_decode_tokens: int = 0
    context_tokens: int = 0
    used_kv_tokens: int = 0
    cached: set[int] = field(default_factory=set)
    """Ids of blocks."""
    queue: list[SimRequest] = field(default_factory=list)

    def cached_tokens(self, request: SimRequest) -> int:
        """As an engine with these blocks would say."""
        hits = 0
        for block in request.shareable_blocks:
            if block not in self.cached:
                break
            hits += BLOCK_TOKENS
        return hits

    def queued(self) -> Sequence[SimRequest]:
        """The queue."""
        return self.queue


@dataclass(slots=True)
class FixedFleet:
    """Instances in order of their index; satisfies ``arm.FleetView``."""

    instances: list[FixedInstance]

    @property
    def alive(self) -> list[FixedInstance]:
        """Those that live."""
        return [each for each in self.instances if each.alive]

    def cached_tokens(self, request: SimRequest) -> list[int]:
        """Of all instances."""
        return [each.cached_tokens(request) for each in self.instances]


def request(
    number: int = 0, *, prompt_tokens: int = 1000, blocks: Sequence[int] = (), **others: object
) -> SimRequest:
    """A request with an id of its own."""
    return SimRequest(
        request_id=f"r{number}",
        arrival_seconds=0.0,
        prompt_tokens=prompt_tokens,
        output_tokens=100,
        blocks=tuple(blocks),
        **others,  # type: ignore[arg-type]
    )
