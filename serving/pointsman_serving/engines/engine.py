"""What every engine offers to the replica that holds it, and how one is started."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from pointsman_api.modelpool import EngineType

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from pointsman_serving.engines.options import ReplicaOptions


class EngineFailedError(RuntimeError):
    """The engine serves nothing any more; only a new replica helps."""


class Engine(Protocol):
    """A loaded model with its OpenAI-compatible application."""

    @property
    def app(self) -> ASGIApp:
        """Serves ``/v1/…``, ``/health`` and ``/metrics``, with paths as if mounted at the root."""

    async def check_health(self) -> None:
        """Return while the engine serves.

        Raises:
            EngineFailedError: it never will again.
        """

    async def close(self) -> None:
        """End the engine and its processes. Nothing may be running on it."""


async def start_engine(options: ReplicaOptions) -> Engine:
    """Load the engine that the options name; each is imported only when it is the one.

    Raises:
        ValueError: an argument of the engine is wrong.
    """
    if options.engine == EngineType.VLLM:
        from pointsman_serving.engines.vllm import start_vllm

        return await start_vllm(options)
    if options.engine == EngineType.TRANSFORMERS:
        from pointsman_serving.engines.transformers_replica import start_transformers

        return await start_transformers(options)
    from pointsman_serving.engines.simulated_replica import start_simulated

    return await start_simulated(options)
