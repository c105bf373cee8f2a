"""What a simulated engine says of itself: vLLM's metric names, and the ORCA load header.

Names, labels, buckets and the header's form are those of vLLM 0.32. vLLM itself sends the header
with whole answers only; here streams have it too, since a router needs it most there.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

if TYPE_CHECKING:
    from pointsman_serving.engines.timing import EngineModel

LOAD_FORMAT_HEADER = "endpoint-load-metrics-format"
LOAD_HEADER = "endpoint-load-metrics"

_LATENCY_BUCKETS = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0),
    *(120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)
_FIRST_TOKEN_BUCKETS = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5),
    *(10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
_BETWEEN_TOKENS_BUCKETS = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5),
    *(10.0, 20.0, 40.0, 80.0),
)


class EngineMetrics:
    """The metrics of one engine, in a registry of their own.

    Gauges are read from the model when they are asked for; counters of the prefix cache follow
    it with :meth:`stepped`. Durations are seconds of the clock, whatever the engine's speed.
    """

    def __init__(self, model: EngineModel, *, model_name: str) -> None:
        self._model = model
        self._queries_seen = 0
        self._hits_seen = 0
        self._preemptions_seen = 0
        self.registry = CollectorRegistry()
        registry = self.registry
        labels = {"model_name": model_name, "engine": "0"}
        names = tuple(labels)

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"vllm:{name}", text, names, registry=registry).labels(**labels)

        def counter(name: str, text: str) -> Counter:
            return Counter(f"vllm:{name}", text, names, registry=registry).labels(**labels)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            found = Histogram(f"vllm:{name}", text, names, registry=registry, buckets=buckets)
            return found.labels(**labels)

        gauge("num_requests_running", "Requests in model execution batches.").set_function(
            lambda: model.running_count
        )
        gauge("num_requests_waiting", "Requests waiting to be processed.").set_function(
            lambda: model.waiting_count
        )
        gauge("kv_cache_usage_perc", "KV-cache usage. 1 means 100 percent usage.").set_function(
            lambda: model.kv_usage
        )
        self._queries = counter("prefix_cache_queries", "Prefix cache queries, in tokens.")
        self._hits = counter("prefix_cache_hits", "Prefix cache hits, in tokens.")
        self._preemptions = counter("num_preemptions", "Preemptions of requests.")
        self.prompt_tokens = counter("prompt_tokens", "Prefill tokens processed.")
        self.generation_tokens = counter("generation_tokens", "Generation tokens processed.")
        self._success = Counter(
            "vllm:request_success",
            "Count of successfully processed requests.",
            (*names, "finished_reason"),
            registry=registry,
        )
        self._labels = labels
        for reason in ("stop", "length", "abort"):
            self._success.labels(**labels, finished_reason=reason)
        self.time_to_first_token = histogram(
            "time_to_first_token_seconds", "Time to first token in seconds.", _FIRST_TOKEN_BUCKETS
        )
        self.inter_token_latency = histogram(
            "inter_token_latency_seconds",
            "Inter-token latency in seconds.",
            _BETWEEN_TOKENS_BUCKETS,
        )
        self.e2e_latency = histogram(
            "e2e_request_latency_seconds", "End to end latency in seconds.", _LATENCY_BUCKETS
        )
        self.queue_time = histogram(
            "request_queue_time_seconds", "Time spent in the WAITING phase.", _LATENCY_BUCKETS
        )
        lora = ("max_lora", "waiting_lora_adapters", "running_lora_adapters")
        Gauge("vllm:lora_requests_info", "LoRA requests.", lora, registry=registry).labels(
            "0", "", ""
        ).set_to_current_time()
        cache = {
            "block_size": str(model.profile.block_tokens),
            "num_gpu_blocks": str(model.profile.kv_capacity_tokens // model.profile.block_tokens),
            "enable_prefix_caching": str(model.profile.prefix_caching),
            "engine": "0",
        }
        Gauge("vllm:cache_config_info", "Cache config.", tuple(cache), registry=registry).labels(
            **cache
        ).set(1)

    def stepped(self) -> None:
        """Take over the model's own counters after an iteration."""
        model = self._model
        self._queries.inc(model.prefix_queries_tokens - self._queries_seen)
        self._hits.inc(model.prefix_hits_tokens - self._hits_seen)
        self._preemptions.inc(model.preemptions - self._preemptions_seen)
        self._queries_seen = model.prefix_queries_tokens
        self._hits_seen = model.prefix_hits_tokens
        self._preemptions_seen = model.preemptions

    def ended(self, reason: str) -> None:
        """Count a request that ended with ``stop``, ``length`` or ``abort``."""
        self._success.labels(**self._labels, finished_reason=reason).inc()

    def exposition(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self.registry)

    def load_header(self, wanted: str) -> dict[str, str]:
        """The ORCA header in the form that a request wants (JSON or TEXT); else none."""
        load = {
            "kv_cache_usage_perc": float(self._model.kv_usage),
            "num_requests_waiting": float(self._model.waiting_count),
        }
        match wanted.lower():
            case "json":
                return {LOAD_HEADER: f"JSON {json.dumps({'named_metrics': load})}"}
            case "text":
                texts = (f"named_metrics.{name}={value}" for name, value in load.items())
                return {LOAD_HEADER: f"TEXT {', '.join(texts)}"}
            case _:
                return {}
