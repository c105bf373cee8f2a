"""How a replica's engine is started."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pointsman_api.modelpool import EngineType

if TYPE_CHECKING:
    from pointsman_serving.engines.engine import Engine
    from pointsman_serving.engines.group import GroupPlace
    from pointsman_serving.engines.options import ReplicaOptions


async def start_engine(options: ReplicaOptions, place: GroupPlace | None = None) -> Engine:
    """Load the engine that the options name; each is imported only when it is the one.

    Args:
        place: of this process, where the replica spreads over several hosts. A Simulated engine
            computes nothing that they could share.

    Raises:
        ValueError: an argument of the engine is wrong.
    """
    if options.engine == EngineType.VLLM:
        from pointsman_serving.engines.vllm import start_vllm

        return await start_vllm(options, place)
    if options.engine == EngineType.TRANSFORMERS:
        from pointsman_serving.engines.transformers.replica import start_transformers

        return await start_transformers(options)
    from pointsman_serving.engines.simulated.replica import start_simulated

    return await start_simulated(options)
