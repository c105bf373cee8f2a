"""The operator's own metrics."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from pointsman_kube.errors import KubeError
from pointsman_kube.mirror import Mirror
from pointsman_operator.work_queue import WorkQueue

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0)


class OperatorMetrics:
    """Counts of one operator process, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._reconciles = Counter(
            "pointsman_operator_reconciles_total",
            "Reconciles that ended.",
            ("queue", "result"),
            registry=self.registry,
        )
        self._seconds = Histogram(
            "pointsman_operator_reconcile_seconds",
            "How long a reconcile took.",
            ("queue",),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._errors = Counter(
            "pointsman_operator_reconcile_errors_total",
            "Reconciles that failed, by the API's reason or the error's type.",
            ("queue", "reason"),
            registry=self.registry,
        )
        self._calls = Counter(
            "pointsman_operator_api_calls_total",
            "Calls to the API server; code 0 where no answer came.",
            ("verb", "resource", "code"),
            registry=self.registry,
        )
        self._call_seconds = Histogram(
            "pointsman_operator_api_call_seconds",
            "How long a call to the API server took; of a watch, its start.",
            ("verb",),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._polls = Counter(
            "pointsman_operator_polls_total",
            "Questions to Ray heads and gateways.",
            ("target", "result"),
            registry=self.registry,
        )
        self.writes = Counter(
            "pointsman_operator_writes_total",
            "Objects written.",
            ("resource",),
            registry=self.registry,
        )

    def watch(
        self,
        queues: Callable[[], Iterable[WorkQueue[Any]]],
        mirrors: Callable[[], Iterable[Mirror]],
        leads: Callable[[], bool],
    ) -> None:
        """Read these at every scrape."""
        self.registry.register(_Gauges(queues, mirrors, leads))

    def reconciled(self, queue: str, seconds: float, error: Exception | None) -> None:
        """A reconcile ended."""
        self._reconciles.labels(queue, "ok" if error is None else "error").inc()
        self._seconds.labels(queue).observe(seconds)
        if error is not None:
            self._errors.labels(queue, reason_of(error)).inc()

    def called(self, verb: str, resource: str, status: int, seconds: float) -> None:
        """The API server was called."""
        self._calls.labels(verb, resource, str(status)).inc()
        self._call_seconds.labels(verb).observe(seconds)

    def polled(self, target: str, ok: bool) -> None:
        """A Ray head or a gateway was asked."""
        self._polls.labels(target, "ok" if ok else "error").inc()

    def on_done(self, queue: str) -> Callable[[Hashable, float, Exception | None], None]:
        """What a queue calls after each reconcile."""
        return lambda _, seconds, error: self.reconciled(queue, seconds, error)

    def text(self) -> bytes:
        """All of them in Prometheus' text format."""
        return generate_latest(self.registry)


def reason_of(error: Exception) -> str:
    """A word for an error, of a bounded vocabulary."""
    if isinstance(error, KubeError):
        return error.reason or type(error).__name__
    return type(error).__name__


class _Gauges(Collector):
    def __init__(
        self,
        queues: Callable[[], Iterable[WorkQueue[Any]]],
        mirrors: Callable[[], Iterable[Mirror]],
        leads: Callable[[], bool],
    ) -> None:
        self._queues, self._mirrors, self._leads = queues, mirrors, leads

    def collect(self) -> Iterator[Metric]:
        depth = GaugeMetricFamily(
            "pointsman_operator_queue_depth", "Keys that wait.", labels=("queue",)
        )
        wait = GaugeMetricFamily(
            "pointsman_operator_queue_longest_wait_seconds",
            "How long the first key has waited.",
            labels=("queue",),
        )
        retrying = GaugeMetricFamily(
            "pointsman_operator_queue_retrying",
            "Keys whose last reconcile failed.",
            labels=("queue",),
        )
        for queue in self._queues():
            depth.add_metric((queue.name,), len(queue))
            wait.add_metric((queue.name,), queue.longest_wait_seconds)
            retrying.add_metric((queue.name,), queue.retrying)
        age = GaugeMetricFamily(
            "pointsman_operator_mirror_age_seconds",
            "Since the API server last said anything about the kind.",
            labels=("resource",),
        )
        objects = GaugeMetricFamily(
            "pointsman_operator_mirror_objects", "Objects held.", labels=("resource",)
        )
        refused = GaugeMetricFamily(
            "pointsman_operator_mirror_refused",
            "Watches that the API server refuses though it answers; the log says what to do.",
            labels=("resource",),
        )
        for resource, (oldest, count, refusals) in _by_resource(self._mirrors()).items():
            age.add_metric((resource,), oldest)
            objects.add_metric((resource,), count)
            refused.add_metric((resource,), refusals)
        leader = GaugeMetricFamily("pointsman_operator_leader", "1 on the operator that acts.")
        leader.add_metric((), float(self._leads()))
        yield from (depth, wait, retrying, age, objects, refused, leader)


def _by_resource(mirrors: Iterable[Mirror]) -> dict[str, tuple[float, int, int]]:
    """The oldest age, all objects and all refusals of each resource: some have several mirrors."""
    found: dict[str, tuple[float, int, int]] = {}
    for mirror in mirrors:
        age, count, refused = found.get(mirror.kind.resource, (0.0, 0, 0))
        found[mirror.kind.resource] = (
            max(age, mirror.age_seconds),
            count + len(mirror),
            refused + bool(mirror.refused),
        )
    return found
