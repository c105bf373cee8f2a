"""What a Transformers replica says of itself: vLLM's metric names, expert calls, the ORCA header.

The names are those that dashboards and routers already read from vLLM.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily

from pointsman_serving.engines.vllm_metrics import LatencyBuckets, VllmMetrics

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pointsman_kernels.calls import ExpertCalls
    from pointsman_serving.engines.transformers.engine import BatchingEngine

_MAX_EXPERT_SERIES = 1024
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_TEXTS = {
    "num_requests_running": "Requests in the batch.",
    "num_requests_waiting": "Requests that wait for the batch.",
    "kv_cache_usage_perc": "KV-cache usage of running requests, 0 to 1.",
    "prefix_cache_queries": "Prompt tokens looked up.",
    "prefix_cache_hits": "Prompt tokens found in the cache.",
    "prompt_tokens": "Prompt tokens of requests that began.",
    "generation_tokens": "Tokens generated.",
    "request_success": "Requests by how they ended.",
    "time_to_first_token_seconds": "From the request's arrival to its first token.",
    "inter_token_latency_seconds": "From one token to the next.",
    "e2e_request_latency_seconds": "From the request's arrival to its end.",
}


class EngineMetrics(VllmMetrics):
    """The metrics of one engine. Gauges are read when asked for."""

    def __init__(
        self, engine: BatchingEngine, *, model_name: str, calls: ExpertCalls | None
    ) -> None:
        super().__init__(
            model_name=model_name,
            running=lambda: engine.running,
            waiting=lambda: engine.waiting,
            kv_usage=lambda: engine.kv_usage,
            buckets=LatencyBuckets(first_token=_SECONDS, between_tokens=_SECONDS, request=_SECONDS),
            texts=_TEXTS,
        )
        self._engine = engine
        if calls is not None:
            self.registry.register(_ExpertCallsCollector(calls, model_name))

    def load(self) -> dict[str, float]:
        """What the ORCA header tells; the running requests too."""
        return {**super().load(), "num_requests_running": float(self._engine.running)}


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
