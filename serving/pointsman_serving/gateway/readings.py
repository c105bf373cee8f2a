"""What is measured when somebody scrapes, not counted as it happens."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    InfoMetricFamily,
    Metric,
)

from pointsman_serving.gateway.kv.feeds import FeedReading
from pointsman_serving.gateway.kv.readings import kv_families
from pointsman_serving.routing.breaker import BreakerState
from pointsman_serving.routing.kv.index import KvSnapshot
from pointsman_serving.routing.snapshot import PoolSnapshot, ReplicaSnapshot, SchedulerSnapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class Readings:
    """The state of one gateway."""

    in_flight: Mapping[str, int]
    """By pool; requests without a pool yet are under the empty name."""
    queue_depth: Mapping[tuple[str, str], int]
    """By (policy, rule)."""
    queued: Mapping[str, int] = field(default_factory=dict)
    """By pool: requests that wait and could go there."""
    replicas: Mapping[str, int]
    """By pool."""
    open_upstream_connections: int
    config_hash: str
    scheduler: SchedulerSnapshot
    kv: Sequence[KvSnapshot] = ()
    kv_feeds: Mapping[str, FeedReading] = field(default_factory=dict)
    """By pool."""


# Only replicas that are there now have series, so their churn adds none for good.
_REPLICA_GAUGES: tuple[tuple[str, str, Callable[[ReplicaSnapshot], float]], ...] = (
    (
        "in_flight",
        "Requests on the replica, by this gateway.",
        lambda replica: replica.in_flight,
    ),
    (
        "pending_prefill_tokens",
        "Prompt tokens sent to the replica and not yet computed, as estimated.",
        lambda replica: replica.pending_prefill_tokens,
    ),
    (
        "cache_confidence",
        "Cached tokens that the engine reported over those predicted, lately.",
        lambda replica: replica.cache_confidence,
    ),
    (
        "prefill_factor",
        "Learned time to first token against the pool's; 1 is the pool's own.",
        lambda replica: replica.prefill_factor,
    ),
    (
        "ejected",
        "1 while the replica gets no requests because it failed.",
        lambda replica: float(replica.breaker is not BreakerState.CLOSED),
    ),
)

_POOL_COUNTERS: tuple[tuple[str, str, Callable[[PoolSnapshot], int]], ...] = (
    (
        "replica_ejections",
        "Replicas taken out after failures.",
        lambda pool: pool.ejections,
    ),
    (
        "replica_restarts",
        "Engines that began anew under the name of a replica.",
        lambda pool: pool.restarts,
    ),
)


def reading_families(readings: Readings) -> Iterable[Metric]:
    """The readings as Prometheus families."""
    yield _gauge("in_flight", "Requests on replicas now.", readings.in_flight)
    depth = GaugeMetricFamily(
        "pointsman_gateway_queue_depth", "Requests that wait.", labels=["policy", "rule"]
    )
    for (policy, rule), count in readings.queue_depth.items():
        depth.add_metric([policy, rule], count)
    yield depth
    yield _gauge("replicas", "Replicas known to the gateway.", readings.replicas)
    yield GaugeMetricFamily(
        "pointsman_gateway_upstream_connections",
        "Open connections to replicas, idle ones included.",
        value=readings.open_upstream_connections,
    )
    yield InfoMetricFamily(
        "pointsman_gateway_config",
        "The route table that is in force.",
        value={"hash": readings.config_hash},
    )
    for name, text, count_of in _POOL_COUNTERS:
        counter = CounterMetricFamily(f"pointsman_gateway_{name}", text, labels=["pool"])
        for pool in readings.scheduler.pools:
            counter.add_metric([pool.name], count_of(pool))
        yield counter
    yield from kv_families(readings.kv, readings.kv_feeds)
    replicas = [replica for pool in readings.scheduler.pools for replica in pool.replicas]
    for name, text, value in _REPLICA_GAUGES:
        family = GaugeMetricFamily(
            f"pointsman_gateway_replica_{name}", text, labels=["pool", "replica"]
        )
        for replica in replicas:
            family.add_metric([replica.key.pool, replica.key.replica], value(replica))
        yield family


def _gauge(name: str, text: str, by_pool: Mapping[str, int]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(f"pointsman_gateway_{name}", text, labels=["pool"])
    for pool, count in by_pool.items():
        family.add_metric([pool], count)
    return family
