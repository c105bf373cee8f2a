"""What is counted of replicas that failed, and of what was done about it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from prometheus_client.core import CounterMetricFamily, Metric


class TroubleCounts:
    """The counts of one gateway; whoever does something counts it."""

    def __init__(self) -> None:
        self.retries: Counter[str] = Counter()
        """Attempts that were followed by another, by why they failed."""
        self.retries_refused = 0
        self.continuations: Counter[str] = Counter()
        """Streams that went on elsewhere, by why they broke."""
        self.broken_replies = 0
        self.hedges: Counter[str] = Counter()
        """By result: ``sent`` to a second replica, which ``won``; ``no_room``, ``no_budget``."""
        self.lost_replicas: Counter[str] = Counter()
        """By pool."""
        self.health_probes: Counter[str] = Counter()
        """By result."""

    def families(self) -> Iterable[Metric]:
        """The counts as Prometheus families."""
        for name, text, label, counts in (
            (
                "retries",
                "Attempts that failed and were followed by another.",
                "reason",
                self.retries,
            ),
            (
                "continuations",
                "Streams that broke and were continued on another replica.",
                "reason",
                self.continuations,
            ),
            (
                "hedges",
                "First tokens that threatened to be late, and what a second replica did about it.",
                "result",
                self.hedges,
            ),
            (
                "lost_replicas",
                "Replicas whose open requests were given up: silent, and no answer about health.",
                "pool",
                self.lost_replicas,
            ),
            ("health_probes", "Questions after a replica's health.", "result", self.health_probes),
        ):
            family = CounterMetricFamily(f"pointsman_gateway_{name}", text, labels=[label])
            for value, count in counts.items():
                family.add_metric([value], count)
            yield family
        yield CounterMetricFamily(
            "pointsman_gateway_retries_refused",
            "Attempts that the retry budget did not allow.",
            value=self.retries_refused,
        )
        yield CounterMetricFamily(
            "pointsman_gateway_broken_replies",
            "Replies that broke after they had begun and could not be continued.",
            value=self.broken_replies,
        )
