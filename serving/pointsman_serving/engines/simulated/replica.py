"""The Simulated engine as a replica holds it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pointsman_serving.engines.app_engine import AppEngine
from pointsman_serving.engines.simulated.app import simulated_app_of
from pointsman_serving.engines.simulated.options import parse_simulated_args

if TYPE_CHECKING:
    from pointsman_serving.engines.options import ReplicaOptions


class SimulatedReplica(AppEngine):
    """An :class:`~pointsman_serving.engines.engine.Engine` without weights."""

    failure = "the Simulated engine's loop has failed: see the replica's log"


async def start_simulated(options: ReplicaOptions) -> SimulatedReplica:
    """Build the engine; immediate.

    Raises:
        ValueError: an unknown flag or a wrong value; the message lists the known ones.
    """
    return SimulatedReplica(simulated_app_of(parse_simulated_args(simulated_arguments(options))))


def simulated_arguments(options: ReplicaOptions) -> list[str]:
    """The engine's command line: what the pool's fields say, then its own arguments."""
    derived = [
        f"--served-model-name={options.served_model_name}",
        f"--max-num-seqs={options.max_sequences}",
    ]
    if options.context_tokens is not None:
        derived.append(f"--max-model-len={options.context_tokens}")
    return [*derived, *options.arguments]
