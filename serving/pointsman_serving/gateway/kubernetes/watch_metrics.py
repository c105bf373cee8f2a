"""What can be measured about the gateway's own view of the API server."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchReading:
    """One watched kind of objects."""

    silence_seconds: float
    """Since the server last said anything; it does so about once a minute."""
    refused: bool
    """It answers, but does not give the objects."""
    objects: int
    """How many are held."""
    lists: int
    """How often all were listed."""
    watches: int
    """How often a watch was begun; the server ends each after ten minutes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlReading:
    """The gateway's view of the API server."""

    table_age_seconds: float | None
    """Since the table in force was last known to be the newest; None: there is none yet."""
    tables_refused: int
    """Route tables that came and could not be taken."""
    replicas_kept: int
    """Replicas in use that no EndpointSlice names any more."""
    watches: Mapping[str, WatchReading]
    """By resource."""


_COUNTERS: tuple[tuple[str, str, Callable[[WatchReading], int]], ...] = (
    (
        "lists",
        "Times that all objects were listed: at the start, and after a gap.",
        lambda w: w.lists,
    ),
    ("starts", "Watches begun; each ends after ten minutes at the latest.", lambda w: w.watches),
)
_GAUGES: tuple[tuple[str, str, Callable[[WatchReading], float]], ...] = (
    ("silence_seconds", "Since the API server last said anything.", lambda w: w.silence_seconds),
    ("objects", "Objects that are held.", lambda w: w.objects),
    ("refused", "1 while the API server answers but refuses them.", lambda w: w.refused),
)


class WatchMetrics(Collector):
    """The families of what is read at a scrape."""

    def __init__(self, read: Callable[[], ControlReading]) -> None:
        self._read = read

    def collect(self) -> Iterable[Metric]:
        """The families, for the registry."""
        reading = self._read()
        if reading.table_age_seconds is not None:
            yield GaugeMetricFamily(
                "pointsman_gateway_route_table_age_seconds",
                "Since the route table in force was last known to be the newest.",
                value=reading.table_age_seconds,
            )
        yield CounterMetricFamily(
            "pointsman_gateway_route_tables_refused",
            "Route tables that came and could not be taken; the one before stays in force.",
            value=reading.tables_refused,
        )
        yield GaugeMetricFamily(
            "pointsman_gateway_replicas_kept",
            "Replicas that are used though no EndpointSlice names them any more.",
            value=reading.replicas_kept,
        )
        for name, text, value in _GAUGES:
            gauge = GaugeMetricFamily(f"pointsman_gateway_watch_{name}", text, labels=["resource"])
            for resource, watch in reading.watches.items():
                gauge.add_metric([resource], value(watch))
            yield gauge
        for name, text, count in _COUNTERS:
            counter = CounterMetricFamily(
                f"pointsman_gateway_watch_{name}", text, labels=["resource"]
            )
            for resource, watch in reading.watches.items():
                counter.add_metric([resource], count(watch))
            yield counter
