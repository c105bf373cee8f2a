"""How many pods one replica spreads over. Pure."""

from __future__ import annotations

from pointsman_api.modelpool import EngineType, RayServeBackend
from pointsman_operator.problem import RefusedSpecError

_FIELD = "spec.backend.rayServe.parallelism"


def hosts_of(backend: RayServeBackend, gpus: int) -> int:
    """Pods of one replica.

    Args:
        gpus: what the pool's template gives one pod; 0: it computes on its processors.

    Raises:
        RefusedSpecError: the replica does not fit into pods of this kind.
    """
    parallelism = backend.parallelism
    if backend.engine.type != EngineType.VLLM or gpus == 0:
        return parallelism.hosts or 1
    needed = parallelism.size
    if parallelism.hosts is None:
        return _least_hosts(needed, gpus, data=parallelism.data)
    each = -(-needed // parallelism.hosts)
    if each > gpus:
        raise RefusedSpecError(
            f"{_FIELD} needs {needed} GPUs for a replica, which is {each} for each of its "
            f"{parallelism.hosts} hosts, and the template gives one pod {gpus}: "
            f"give the container engine {each}, or take more hosts"
        )
    return parallelism.hosts


def _least_hosts(needed: int, gpus: int, *, data: int) -> int:
    if needed <= gpus:
        return 1
    if data > 1:
        raise RefusedSpecError(
            f"{_FIELD} needs {needed} GPUs for a replica, and the template gives its pod {gpus}: "
            f"with data {data} a replica is one pod, so give the container engine {needed}, or "
            "spread tensor x pipeline over several pods and leave data at 1"
        )
    if needed % gpus:
        fitting = max(size for size in range(1, gpus) if needed % size == 0)
        raise RefusedSpecError(
            f"{_FIELD} needs {needed} GPUs for a replica, which pods of {gpus} do not share "
            f"evenly: give the container engine a number that divides {needed}, such as {fitting}"
        )
    return needed // gpus
