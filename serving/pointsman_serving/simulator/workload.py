"""A workload by its description, so that every process can make the same one for itself."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from pointsman_serving.simulator.workloads.arrivals import at_rate
from pointsman_serving.simulator.workloads.azure import load_azure
from pointsman_serving.simulator.workloads.enlarge import enlarge, halves
from pointsman_serving.simulator.workloads.labels import labelled
from pointsman_serving.simulator.workloads.mooncake import load_mooncake
from pointsman_serving.simulator.workloads.sessions import (
    MULTI_TURN,
    TOOL_AGENT,
    generate_sessions,
)

if TYPE_CHECKING:
    from pointsman_serving.simulator.request import SimRequest


class WorkloadKind(StrEnum):
    """Where requests come from."""

    MOONCAKE = "mooncake"
    AZURE = "azure"
    TOOL_AGENT = "tool-agent"
    MULTI_TURN = "multi-turn"


class Part(StrEnum):
    """Which part of a workload is used: rules are tuned on one half and judged on the other."""

    WHOLE = "whole"
    FIRST_HALF = "first-half"
    SECOND_HALF = "second-half"


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """A recorded trace or a generator.

    Raises:
        ValueError: a trace without a path, or a size that is none.
    """

    kind: WorkloadKind
    path: str = ""
    """Of the trace."""
    requests: int = 0
    """How many: of a trace, the first ones; 0: all, or the generator's usual 8,000."""
    copies: int = 1
    """How often each session is there; see ``enlarge``."""
    part: Part = Part.WHOLE

    def __post_init__(self) -> None:
        """Refuse what is no workload."""
        recorded = self.kind in (WorkloadKind.MOONCAKE, WorkloadKind.AZURE)
        if recorded and not self.path:
            raise ValueError(f"a {self.kind.value} workload is read from a trace: give its path")
        if self.requests < 0 or self.copies < 1:
            raise ValueError(
                f"requests is {self.requests} and copies is {self.copies}: "
                "give 0 or more requests (0: all) and 1 copy or more"
            )

    def make(self, seed: int = 0) -> tuple[SimRequest, ...]:
        """Its requests in order of arrival, at the rate of the trace, with labels.

        Raises:
            TraceError: the trace cannot be read.
        """
        return _make(self, seed)

    def at_rate(self, rate: float, seed: int = 0) -> list[SimRequest]:
        """The same at so many requests a second."""
        return at_rate(self.make(seed), rate)


_USUAL_REQUESTS = 8_000


@lru_cache(maxsize=4)
def _make(workload: Workload, seed: int) -> tuple[SimRequest, ...]:
    limit = workload.requests or None
    if workload.kind is WorkloadKind.MOONCAKE:
        found = load_mooncake(Path(workload.path), limit=limit, spread_seed=seed)
    elif workload.kind is WorkloadKind.AZURE:
        found = load_azure(Path(workload.path), limit=limit)
    else:
        mix = TOOL_AGENT if workload.kind is WorkloadKind.TOOL_AGENT else MULTI_TURN
        found = generate_sessions(mix, count=limit or _USUAL_REQUESTS, seed=seed)
    if workload.part is not Part.WHOLE:
        found = halves(found)[workload.part is Part.SECOND_HALF]
    if workload.copies > 1:
        found = enlarge(found, workload.copies, seed=seed)
    return tuple(labelled(found))
