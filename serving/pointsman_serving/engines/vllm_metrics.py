"""The metrics that our own engines expose under vLLM's names, and the ORCA header from them.

The names and labels are those that dashboards and routers already read from vLLM 0.32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from pointsman_serving.engines.load_header import RESPONSE_HEADER, load_header_value

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_TEXTS = {
    "num_requests_running": "Requests in model execution batches.",
    "num_requests_waiting": "Requests waiting to be processed.",
    "kv_cache_usage_perc": "KV-cache usage. 1 means 100 percent usage.",
    "prefix_cache_queries": "Prefix cache queries, in tokens.",
    "prefix_cache_hits": "Prefix cache hits, in tokens.",
    "prompt_tokens": "Prefill tokens processed.",
    "generation_tokens": "Generation tokens processed.",
    "request_success": "Count of successfully processed requests.",
    "time_to_first_token_seconds": "Time to first token in seconds.",
    "inter_token_latency_seconds": "Inter-token latency in seconds.",
    "e2e_request_latency_seconds": "End to end latency in seconds.",
}
"""vLLM's own help texts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyBuckets:
    """Upper bounds of the histograms in seconds; vLLM's where none are given."""

    first_token: tuple[float, ...] = (
        *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5),
        *(10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
    )
    between_tokens: tuple[float, ...] = (
        *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5),
        *(10.0, 20.0, 40.0, 80.0),
    )
    request: tuple[float, ...] = (
        *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0),
        *(120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
    )


class VllmMetrics:
    """The common metrics of one engine, in a registry of their own.

    An engine's class adds its own metrics with :meth:`counter` and :meth:`histogram`.
    """

    def __init__(
        self,
        *,
        model_name: str,
        running: Callable[[], int],
        waiting: Callable[[], int],
        kv_usage: Callable[[], float],
        buckets: LatencyBuckets | None = None,
        texts: Mapping[str, str] | None = None,
    ) -> None:
        """Register the metrics.

        Args:
            model_name: the name that requests ask for; a label of every metric.
            running: requests in the batch; this and the next two are read when they are asked for.
            waiting: requests that are not in the batch yet.
            kv_usage: share of the KV cache in use, 0 to 1.
            buckets: of the histograms; vLLM's where None.
            texts: help texts by name, where the engine counts otherwise than vLLM's say.
        """
        buckets = buckets or LatencyBuckets()
        text = _TEXTS | dict(texts or {})
        self.registry = CollectorRegistry()
        self._labels = {"model_name": model_name, "engine": "0"}
        self._waiting = waiting
        self._kv_usage = kv_usage
        for name, read in (
            ("num_requests_running", running),
            ("num_requests_waiting", waiting),
            ("kv_cache_usage_perc", kv_usage),
        ):
            gauge = Gauge(f"vllm:{name}", text[name], tuple(self._labels), registry=self.registry)
            gauge.labels(**self._labels).set_function(read)

        def counter(name: str) -> Counter:
            return self.counter(name, text[name])

        def histogram(name: str, bounds: tuple[float, ...]) -> Histogram:
            return self.histogram(name, text[name], bounds)

        self.prefix_queries = counter("prefix_cache_queries")
        self.prefix_hits = counter("prefix_cache_hits")
        self.prompt_tokens = counter("prompt_tokens")
        self.generation_tokens = counter("generation_tokens")
        self._success = Counter(
            "vllm:request_success",
            text["request_success"],
            (*self._labels, "finished_reason"),
            registry=self.registry,
        )
        for reason in ("stop", "length", "abort"):
            self._success.labels(**self._labels, finished_reason=reason)
        self.time_to_first_token = histogram("time_to_first_token_seconds", buckets.first_token)
        self.inter_token_latency = histogram("inter_token_latency_seconds", buckets.between_tokens)
        self.e2e_latency = histogram("e2e_request_latency_seconds", buckets.request)

    def counter(self, name: str, text: str) -> Counter:
        """A counter with the common labels; the name without ``vllm:``."""
        found = Counter(f"vllm:{name}", text, tuple(self._labels), registry=self.registry)
        return found.labels(**self._labels)

    def histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        """A histogram with the common labels; the name without ``vllm:``."""
        found = Histogram(
            f"vllm:{name}", text, tuple(self._labels), registry=self.registry, buckets=buckets
        )
        return found.labels(**self._labels)

    def ended(self, reason: str) -> None:
        """Count a request that ended with ``stop``, ``length`` or ``abort``."""
        self._success.labels(**self._labels, finished_reason=reason).inc()

    def exposition(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self.registry)

    def load(self) -> dict[str, float]:
        """What the ORCA header tells."""
        return {
            "kv_cache_usage_perc": float(self._kv_usage()),
            "num_requests_waiting": float(self._waiting()),
        }

    def load_header(self, wanted: str) -> dict[str, str]:
        """The ORCA header in the form that a request wants (JSON or TEXT); else none."""
        form = wanted.strip().upper()
        if form not in ("JSON", "TEXT"):
            return {}
        value = load_header_value(self.load(), text=form == "TEXT")
        return {RESPONSE_HEADER.decode(): value.decode()}
