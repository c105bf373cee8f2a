"""Llumnix's dispatch rule: the most free memory for each request."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pointsman_serving.simulator.arm import FleetView, ImmediateArm, InstanceView

if TYPE_CHECKING:
    from pointsman_serving.simulator.request import SimRequest


class Llumnix(ImmediateArm):
    """max (free blocks − blocks that waiting requests need) / (running + waiting).

    An instance without requests is the best there is; one whose waiting requests need more than
    is free is busy and only taken where all are. The first of equals wins.

    Source: AlibabaPAI/llumnix, ``remaining_steps`` as dispatch load metric. Its migration of
    running requests is off unless it is asked for, and is left out.
    """

    name: ClassVar[str] = "llumnix"

    def __init__(self, *, seed: int = 0) -> None:
        pass

    def choose(self, request: SimRequest, view: FleetView, now: float) -> int:
        """Compare how many steps each could go on."""
        return max(view.alive, key=remaining_steps).index


def remaining_steps(instance: InstanceView) -> float:
    """Blocks that are left for each request of an instance."""
    requests = instance.running + instance.waiting
    if not requests:
        return float("inf")
    block_tokens = instance.profile.block_tokens
    free = (instance.profile.kv_capacity_tokens - instance.used_kv_tokens) // block_tokens
    if instance.waiting:
        free -= sum(-(-queued.prompt_tokens // block_tokens) for queued in instance.queued())
    return free / requests
