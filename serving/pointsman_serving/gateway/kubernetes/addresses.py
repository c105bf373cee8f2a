"""From the endpoints in a pool's slices to the replicas that may get new requests. Pure."""

from __future__ import annotations

from pointsman_api.endpoint_slices import PoolEndpoints, ReplicaEndpoint
from pointsman_api.route_table import BackendType, PoolEntry
from pointsman_serving.engines.serve_listing import ServeTarget
from pointsman_serving.gateway.discovery import serve_address
from pointsman_serving.routing.types import ReplicaAddress, ReplicaKey


def ready_addresses(pool: PoolEntry, found: PoolEndpoints | None) -> tuple[ReplicaAddress, ...]:
    """The replicas that may get new requests.

    One that ends or is not ready is left out: what is under way there goes on.
    """
    if found is None:
        return ()
    return tuple(
        _address(pool, endpoint, found.prefix)
        for endpoint in found.endpoints
        if endpoint.ready and not endpoint.terminating
    )


def _address(pool: PoolEntry, endpoint: ReplicaEndpoint, prefix: str) -> ReplicaAddress:
    if pool.backend is BackendType.RAY_SERVE:
        target = ServeTarget(replica=endpoint.replica, host=endpoint.host, port=endpoint.port)
        return serve_address(pool, target, prefix=prefix)
    return ReplicaAddress(
        key=ReplicaKey(pool.name, endpoint.replica),
        host=endpoint.host,
        port=endpoint.port,
        base_path=f"{prefix}/v1",
        # There is no Ray that would answer for a busy engine: its own health has to do.
        health_path=f"{prefix}/health",
        model_name=pool.served_model_name,
        sequence_slots=pool.sequence_slots,
    )
