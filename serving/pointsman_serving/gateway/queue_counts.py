"""What is counted of the queue: who was turned away and why, and how long the others waited."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric

from pointsman_serving.gateway.histogram import DURATION_SECONDS, Histogram


class Shed(StrEnum):
    """Why a request was refused though its model is served."""

    FULL = "full"
    """As many waited as may."""
    PUSHED_OUT = "pushed_out"
    """It waited, and lost its place to one of a higher priority or of a tenant with fewer."""
    TOO_LATE = "too_late"
    """The queue would not have come to it in time."""
    EXPIRED = "expired"
    """It waited for as long as it may."""
    COLD_START = "cold_start"
    """It was held for as long as it may, and no replica came."""


class QueueCounts:
    """The counts of one gateway's queue."""

    def __init__(self) -> None:
        self._shed = dict.fromkeys(Shed, 0)
        self._waits: dict[int, Histogram] = {}

    def shed(self, reason: Shed) -> None:
        """Count one that was refused."""
        self._shed[reason] += 1

    def waited(self, priority: int, seconds: float) -> None:
        """Count one that was let go. There are as many series as priorities in the route table."""
        histogram = self._waits.get(priority)
        if histogram is None:
            histogram = self._waits[priority] = Histogram(DURATION_SECONDS)
        histogram.observe(seconds)

    def families(self) -> Iterable[Metric]:
        """The counts as Prometheus families."""
        shed = CounterMetricFamily(
            "pointsman_gateway_queue_shed",
            "Requests that the queue refused or gave up, by reason.",
            labels=["reason"],
        )
        for reason, count in self._shed.items():
            shed.add_metric([reason.value], count)
        yield shed
        waits = HistogramMetricFamily(
            "pointsman_gateway_queue_wait_seconds",
            "How long those waited in the queue that were let go, by priority.",
            labels=["priority"],
        )
        for priority, histogram in sorted(self._waits.items()):
            waits.add_metric([str(priority)], histogram.buckets(), histogram.total)
        yield waits
