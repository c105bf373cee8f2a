"""The Simulated engine as a replica holds it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pointsman_api.modelpool import EngineType
from pointsman_serving.engines.app_engine import AppEngine
from pointsman_serving.engines.identity import ReplicaIdentity
from pointsman_serving.engines.options import ReplicaOptions
from pointsman_serving.engines.revision import token_revision
from pointsman_serving.engines.simulated.app import simulated_app_of
from pointsman_serving.engines.simulated.options import parse_simulated_args

if TYPE_CHECKING:
    from collections.abc import Sequence


class SimulatedReplica(AppEngine):
    """An :class:`~pointsman_serving.engines.engine.Engine` without weights."""

    failure = "the Simulated engine's loop has failed: see the replica's log"


async def start_simulated(options: ReplicaOptions) -> SimulatedReplica:
    """Build the engine; immediate.

    Raises:
        ValueError: an unknown flag or a wrong value; the message lists the known ones.
    """
    return SimulatedReplica(simulated_app_of(parse_simulated_args(simulated_arguments(options))))


def simulated_identity(model_name: str, arguments: Sequence[str]) -> ReplicaIdentity:
    """The identity of an engine that runs on its own and starts now."""
    options = ReplicaOptions(
        pool=model_name,
        engine=EngineType.SIMULATED,
        served_model_name=model_name,
        arguments=tuple(arguments),
    )
    return ReplicaIdentity.new(token_revision(options))


def simulated_arguments(options: ReplicaOptions) -> list[str]:
    """The engine's command line: what the pool's fields say, then its own arguments."""
    derived = [
        f"--served-model-name={options.served_model_name}",
        f"--max-num-seqs={options.max_sequences}",
    ]
    if options.context_tokens is not None:
        derived.append(f"--max-model-len={options.context_tokens}")
    return [*derived, *options.arguments]
