"""What a simulated engine says of itself: vLLM's metric names, and the ORCA load header.

Names, labels, buckets and the header's form are those of vLLM 0.32. vLLM itself sends the header
with whole answers only; here streams have it too, since a router needs it most there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import Gauge

from pointsman_serving.engines.vllm_metrics import LatencyBuckets, VllmMetrics

if TYPE_CHECKING:
    from pointsman_serving.engines.timing import EngineModel


class EngineMetrics(VllmMetrics):
    """The metrics of one engine.

    Gauges are read from the model when they are asked for; counters of the prefix cache follow
    it with :meth:`stepped`. Durations are seconds of the clock, whatever the engine's speed.
    """

    def __init__(self, model: EngineModel, *, model_name: str) -> None:
        super().__init__(
            model_name=model_name,
            running=lambda: model.running_count,
            waiting=lambda: model.waiting_count,
            kv_usage=lambda: model.kv_usage,
        )
        self._model = model
        self._queries_seen = 0
        self._hits_seen = 0
        self._preemptions_seen = 0
        self._preemptions = self.counter("num_preemptions", "Preemptions of requests.")
        self.queue_time = self.histogram(
            "request_queue_time_seconds",
            "Time spent in the WAITING phase.",
            LatencyBuckets().request,
        )
        lora = ("max_lora", "waiting_lora_adapters", "running_lora_adapters")
        Gauge("vllm:lora_requests_info", "LoRA requests.", lora, registry=self.registry).labels(
            "0", "", ""
        ).set_to_current_time()
        cache = {
            "block_size": str(model.profile.block_tokens),
            "num_gpu_blocks": str(model.profile.kv_capacity_tokens // model.profile.block_tokens),
            "enable_prefix_caching": str(model.profile.prefix_caching),
            "engine": "0",
        }
        Gauge(
            "vllm:cache_config_info", "Cache config.", tuple(cache), registry=self.registry
        ).labels(**cache).set(1)

    def stepped(self) -> None:
        """Take over the model's own counters after an iteration."""
        model = self._model
        self.prefix_queries.inc(model.prefix_queries_tokens - self._queries_seen)
        self.prefix_hits.inc(model.prefix_hits_tokens - self._hits_seen)
        self._preemptions.inc(model.preemptions - self._preemptions_seen)
        self._queries_seen = model.prefix_queries_tokens
        self._hits_seen = model.prefix_hits_tokens
        self._preemptions_seen = model.preemptions
