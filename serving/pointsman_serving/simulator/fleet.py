"""What a fleet is made of, and what happens to it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from pointsman_serving.engines.timing import EngineProfile
from pointsman_serving.simulator.request import BLOCK_TOKENS


def trace_profile(profile: EngineProfile | None = None) -> EngineProfile:
    """A profile whose cache works in the blocks that traces are written in.

    Without an argument: a 14B model on one H100, the constants that the published figures of this
    project were made with.
    """
    return replace(profile or EngineProfile(), block_tokens=BLOCK_TOKENS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Instances that are alike.

    Raises:
        ValueError: no instance, no slot, or a cache whose blocks are not those of requests.
    """

    count: int
    pool: str = "pool"
    """The name of their model."""
    profile: EngineProfile = field(default_factory=trace_profile)
    slots: int = 0
    """Sequences that one serves at its nominal speed; 0: as many as the profile runs at once."""
    input_dollars: float = 0.0
    """Price of a prompt token."""
    output_dollars: float = 0.0
    """Price of an answer token."""
    size_billions: float = 0.0
    """Parameters of the model, where rules order models by it; 0: not stated."""

    def __post_init__(self) -> None:
        """Refuse what is no group."""
        if self.count < 1:
            raise ValueError(f"count of group {self.pool!r} is {self.count}: give 1 or more")
        if self.slots < 0:
            raise ValueError(f"slots of group {self.pool!r} is {self.slots}: give 0 or more")
        if self.profile.block_tokens != BLOCK_TOKENS:
            raise ValueError(
                f"block_tokens of group {self.pool!r} is {self.profile.block_tokens} and requests "
                f"have blocks of {BLOCK_TOKENS} tokens: make the profile with trace_profile()"
            )


def pooled(group: Group) -> Group:
    """The bound that no router can pass: all instances of a group as one machine, as fast.

    Its times are a share of theirs, its cache and its batch as large as all of theirs; it computes
    one prompt after the other with all its speed, and every prompt finds the whole cache.
    """
    profile = group.profile
    machine = replace(
        profile,
        iteration_seconds=profile.iteration_seconds / group.count,
        prefill_token_seconds=profile.prefill_token_seconds / group.count,
        attention_pair_seconds=profile.attention_pair_seconds / group.count,
        decode_sequence_seconds=profile.decode_sequence_seconds / group.count,
        decode_context_token_seconds=profile.decode_context_token_seconds / group.count,
        kv_capacity_tokens=profile.kv_capacity_tokens * group.count,
        max_sequences=profile.max_sequences * group.count,
        max_batched_tokens=max(profile.max_batched_tokens, profile.max_sequences * group.count),
    )
    return replace(group, count=1, profile=machine, slots=group.slots * group.count)


@dataclass(frozen=True, slots=True, kw_only=True)
class Added:
    """One more instance, like those of a group; its number is the next free one."""

    at_seconds: float
    group: int = 0
    """The position of the group in the fleet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Removed:
    """An instance gets nothing new and ends what it has."""

    at_seconds: float
    instance: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Crashed:
    """An instance loses its requests and its cache."""

    at_seconds: float
    instance: int
    back_after_seconds: float | None = None
    """When it serves again; None: never."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Slowed:
    """An instance's iterations take so many times longer than before it was ever slowed."""

    at_seconds: float
    instance: int
    slowness: float
    """1 ends it."""

    def __post_init__(self) -> None:
        """Refuse what would stop time or turn it back."""
        if not 0 < self.slowness < float("inf"):
            raise ValueError(f"slowness is {self.slowness}: give a factor above 0, such as 2")


FleetEvent = Added | Removed | Crashed | Slowed
