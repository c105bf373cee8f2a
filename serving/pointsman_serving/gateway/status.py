"""What ``GET /status`` says: one gateway's view of its replicas, for the operator.

It names the replicas' addresses, so it is for inside: whoever lets strangers reach the gateway
directly turns it off (``GatewaySettings.status``) or hides the path.
"""

from __future__ import annotations

from pointsman_serving.gateway.readings import Readings
from pointsman_serving.routing.snapshot import PoolSnapshot, ReplicaSnapshot


def status_of(
    readings: Readings,
    *,
    name: str,
    version: str,
    ready: bool,
    draining: bool,
    uptime_seconds: float,
) -> dict[str, object]:
    """The document, as plain JSON values; names are in camelCase as in all of the API.

    - ``configHash``: of the route table in force; the operator compares it with its own.
    - ``pools.NAME.queued``: requests that wait and could go to the pool; one that could go to
      two pools counts in both. ``queues.POLICY.RULE`` counts each once.
    - ``pools.NAME.replicas.NAME``: also those that have left the list, and pools that have left
      the table, as long as requests are open there: a drain waits for these. ``state`` is
      ``Draining`` for them, else the breaker's: ``Closed`` gets requests, ``Open`` none,
      ``Due`` and ``HalfOpen`` are being tried. ``openStreams`` are all requests that were sent
      there and have not ended, streamed or not; ``waitingFirstToken`` those of them that have
      no token yet; ``mostOpen`` how many it may hold now.
    """
    queues: dict[str, dict[str, int]] = {}
    for (policy, rule), count in readings.queue_depth.items():
        queues.setdefault(policy, {})[rule] = count
    return {
        "name": name,
        "version": version,
        "configHash": readings.config_hash,
        "ready": ready,
        "draining": draining,
        "uptimeSeconds": round(uptime_seconds, 3),
        "pools": {
            pool.name: _pool(pool, readings.queued.get(pool.name, 0))
            for pool in readings.scheduler.pools
        },
        "queues": queues,
    }


def _pool(pool: PoolSnapshot, queued: int) -> dict[str, object]:
    return {
        "queued": queued,
        "replicas": {replica.key.replica: _replica(replica) for replica in pool.replicas},
    }


def _replica(replica: ReplicaSnapshot) -> dict[str, object]:
    address = replica.address
    host = f"[{address.host}]" if ":" in address.host else address.host
    return {
        "address": f"{host}:{address.port}",
        "state": "Draining" if replica.draining else replica.breaker.value,
        "openStreams": replica.in_flight,
        "waitingFirstToken": replica.in_flight - replica.decoding,
        "mostOpen": replica.most_in_flight,
    }
