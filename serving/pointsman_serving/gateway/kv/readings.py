"""How well cached prefixes are known: the feeds of KV events, and predictions by their source."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from pointsman_serving.gateway.kv.feeds import FeedReading
from pointsman_serving.routing.kv.index import KvSnapshot

_STATES = ("connecting", "live", "broken")

_COUNTERS: tuple[tuple[str, str, Callable[[FeedReading], int]], ...] = (
    ("events", "KV cache events taken.", lambda reading: reading.events),
    ("event_gaps", "Times that KV cache events were missed.", lambda reading: reading.gaps),
    (
        "event_failures",
        "Times that a replica's KV cache events could be followed no further.",
        lambda reading: reading.failures,
    ),
)


def kv_families(pools: Sequence[KvSnapshot], feeds: Mapping[str, FeedReading]) -> Iterable[Metric]:
    """The readings as Prometheus families."""
    subscriptions = GaugeMetricFamily(
        "pointsman_gateway_kv_event_subscriptions",
        "Replicas whose KV cache events are followed, by how that goes.",
        labels=["pool", "state"],
    )
    for pool, reading in feeds.items():
        for state in _STATES:
            subscriptions.add_metric([pool, state], reading.states.get(state, 0))
    yield subscriptions
    for name, text, value in _COUNTERS:
        family = CounterMetricFamily(f"pointsman_gateway_kv_{name}", text, labels=["pool"])
        for pool, reading in feeds.items():
            family.add_metric([pool], value(reading))
        yield family
    yield from _predictions(pools)


def _predictions(pools: Sequence[KvSnapshot]) -> Iterable[Metric]:
    labels = ["pool", "source"]
    distrusted = GaugeMetricFamily(
        "pointsman_gateway_kv_event_distrusted",
        "Replicas that are estimated because their own counts contradict their KV cache events.",
        labels=["pool"],
    )
    predictions = CounterMetricFamily(
        "pointsman_gateway_cache_predictions",
        "Requests sent, by whether their cached tokens were told by the engine (exact) or "
        "believed (estimate).",
        labels=labels,
    )
    errors = CounterMetricFamily(
        "pointsman_gateway_cache_prediction_error_tokens",
        "Cached tokens that these predictions were off by, either way, where the engine counted.",
        labels=labels,
    )
    for pool in pools:
        distrusted.add_metric([pool.pool], pool.distrusted)
        predictions.add_metric([pool.pool, "exact"], pool.exact_predictions)
        predictions.add_metric([pool.pool, "estimate"], pool.estimated_predictions)
        errors.add_metric([pool.pool, "exact"], pool.exact_error_tokens)
        errors.add_metric([pool.pool, "estimate"], pool.estimated_error_tokens)
    yield distrusted
    yield predictions
    yield errors
