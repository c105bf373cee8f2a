"""The Simulated engine as a replica holds it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pointsman_serving.engines.engine import EngineFailedError
from pointsman_serving.engines.simulated import parse_simulated_args, simulated_app_of

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.types import ASGIApp

    from pointsman_serving.engines.options import ReplicaOptions


class SimulatedReplica:
    """An :class:`~pointsman_serving.engines.engine.Engine` without weights."""

    def __init__(self, app: Starlette) -> None:
        self._app = app

    @property
    def app(self) -> ASGIApp:
        """vLLM's API over a timing model."""
        return self._app

    async def check_health(self) -> None:
        """Raises EngineFailedError once the timing loop has failed."""
        if not self._app.state.engine.alive:
            raise EngineFailedError("the Simulated engine's loop has failed: see the replica's log")

    async def close(self) -> None:
        """Nothing outlives the requests."""


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
