"""What a Transformers replica says of itself: vLLM's metric names, expert calls, the ORCA header.

The names are those that dashboards and routers already read from vLLM.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily

from pointsman_serving.engines.load_header import (
    REQUEST_HEADER,
    RESPONSE_HEADER,
    load_header_value,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pointsman_kernels.calls import ExpertCalls
    from pointsman_serving.engines.transformers_engine import BatchingEngine

LOAD_FORMAT_HEADER = REQUEST_HEADER.decode()
LOAD_HEADER = RESPONSE_HEADER.decode()

_MAX_EXPERT_SERIES = 1024
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)


class EngineMetrics:
    """The metrics of one engine, in a registry of their own. Gauges are read when asked for."""

    def __init__(
        self, engine: BatchingEngine, *, model_name: str, calls: ExpertCalls | None
    ) -> None:
        self._engine = engine
        self.registry = CollectorRegistry()
        registry = self.registry
        labels = {"model_name": model_name, "engine": "0"}
        names = tuple(labels)

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"vllm:{name}", text, names, registry=registry).labels(**labels)

        def counter(name: str, text: str) -> Counter:
            return Counter(f"vllm:{name}", text, names, registry=registry).labels(**labels)

        def histogram(name: str, text: str) -> Histogram:
            found = Histogram(f"vllm:{name}", text, names, registry=registry, buckets=_SECONDS)
            return found.labels(**labels)

        gauge("num_requests_running", "Requests in the batch.").set_function(lambda: engine.running)
        gauge("num_requests_waiting", "Requests that wait for the batch.").set_function(
            lambda: engine.waiting
        )
        gauge("kv_cache_usage_perc", "KV-cache usage of running requests, 0 to 1.").set_function(
            lambda: engine.kv_usage
        )
        self.prompt_tokens = counter("prompt_tokens", "Prompt tokens of requests that began.")
        self.generation_tokens = counter("generation_tokens", "Tokens generated.")
        self.prefix_queries = counter("prefix_cache_queries", "Prompt tokens looked up.")
        self.prefix_hits = counter("prefix_cache_hits", "Prompt tokens found in the cache.")
        self.time_to_first_token = histogram(
            "time_to_first_token_seconds", "From the request's arrival to its first token."
        )
        self.inter_token_latency = histogram(
            "inter_token_latency_seconds", "From one token to the next."
        )
        self.e2e_latency = histogram(
            "e2e_request_latency_seconds", "From the request's arrival to its end."
        )
        self._labels = labels
        self._success = Counter(
            "vllm:request_success",
            "Requests by how they ended.",
            (*names, "finished_reason"),
            registry=registry,
        )
        for reason in ("stop", "length", "abort"):
            self._success.labels(**labels, finished_reason=reason)
        if calls is not None:
            registry.register(_ExpertCallsCollector(calls, model_name))

    def ended(self, reason: str) -> None:
        """Count a request that ended with ``stop``, ``length`` or ``abort``."""
        self._success.labels(**self._labels, finished_reason=reason).inc()

    def exposition(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self.registry)

    def load_header(self, wanted: str) -> dict[str, str]:
        """The ORCA header in the form that a request wants (JSON or TEXT); else none."""
        load = {
            "kv_cache_usage_perc": float(self._engine.kv_usage),
            "num_requests_waiting": float(self._engine.waiting),
            "num_requests_running": float(self._engine.running),
        }
        form = wanted.strip().lower()
        if form not in ("json", "text"):
            return {}
        return {LOAD_HEADER: load_header_value(load, text=form == "text").decode()}


class _ExpertCallsCollector:
    """Publishes expert calls by layer and expert; added up over layers where those are many."""

    def __init__(self, calls: ExpertCalls, model_name: str) -> None:
        self._calls = calls
        self._model_name = model_name

    def describe(self) -> Iterable[CounterMetricFamily]:
        return [self._family()]

    def collect(self) -> Iterable[CounterMetricFamily]:
        family = self._family()
        counts = self._calls.snapshot()
        layers = [(str(layer), row) for layer, row in enumerate(counts)]
        if self._calls.layers * self._calls.num_experts > _MAX_EXPERT_SERIES:
            layers = [("all", [sum(column) for column in zip(*counts, strict=True)])]
        for layer, row in layers:
            for expert, count in enumerate(row):
                family.add_metric((self._model_name, layer, str(expert)), count)
        return [family]

    def _family(self) -> CounterMetricFamily:
        return CounterMetricFamily(
            "pointsman_moe_expert_calls",
            "Tokens sent to each expert, by MoE layer.",
            labels=("model_name", "layer", "expert"),
        )
