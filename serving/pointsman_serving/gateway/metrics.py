"""What the gateway counts, under its own names and under OpenTelemetry's for generative AI.

A request touches one plain object per (model, pool); the Prometheus families are made from
these objects when somebody scrapes. Everything happens on one event loop, so nothing is locked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from pointsman_serving.gateway.histogram import (
    DECISION_SECONDS,
    DURATION_SECONDS,
    TOKENS,
    TPOT_SECONDS,
    TTFT_SECONDS,
    Histogram,
)
from pointsman_serving.gateway.queue_counts import QueueCounts
from pointsman_serving.gateway.readings import Readings, reading_families
from pointsman_serving.gateway.trouble_counts import TroubleCounts
from pointsman_serving.routing.types import Api, Usage

OTHER = "other"

_PROVIDER = "pointsman"

_OPERATIONS = {
    Api.CHAT: "chat",
    Api.COMPLETIONS: "text_completion",
    Api.EMBEDDINGS: "embeddings",
}


@dataclass(slots=True, kw_only=True)
class Series:
    """The counts of one (model, pool, API)."""

    codes: dict[int, int] = field(default_factory=dict)
    duration: Histogram = field(default_factory=lambda: Histogram(DURATION_SECONDS))
    ttft: Histogram = field(default_factory=lambda: Histogram(TTFT_SECONDS))
    tpot: Histogram = field(default_factory=lambda: Histogram(TPOT_SECONDS))
    prompt_tokens: Histogram = field(default_factory=lambda: Histogram(TOKENS))
    completion_tokens: Histogram = field(default_factory=lambda: Histogram(TOKENS))
    cached_tokens: int = 0
    predicted_cached_tokens: int = 0

    def ended(self, code: int, duration_seconds: float) -> None:
        """Count a request's end."""
        self.codes[code] = self.codes.get(code, 0) + 1
        self.duration.observe(duration_seconds)

    def streamed(self, ttft_seconds: float, rest_seconds: float, events: int) -> None:
        """Count a stream's first event and the gaps between the others."""
        self.ttft.observe(ttft_seconds)
        if events > 1:
            self.tpot.observe(rest_seconds / (events - 1))

    def used(self, usage: Usage, predicted_cached_tokens: int | None) -> None:
        """Count the tokens that the engine reported.

        Args:
            predicted_cached_tokens: None where the prediction was not for this usage.
        """
        if usage.prompt_tokens is not None:
            self.prompt_tokens.observe(usage.prompt_tokens)
        if usage.completion_tokens is not None:
            self.completion_tokens.observe(usage.completion_tokens)
        if usage.cached_tokens is not None and predicted_cached_tokens is not None:
            # Only where both are known: their difference is the error of the prediction.
            self.cached_tokens += usage.cached_tokens
            self.predicted_cached_tokens += predicted_cached_tokens


class Metrics(Collector):
    """All counts of one gateway.

    Args:
        version: of Pointsman.
        max_values: distinct values of one label; later ones become ``other``.
    """

    def __init__(self, *, version: str, max_values: int) -> None:
        self.registry = CollectorRegistry(auto_describe=False)
        self.decision = Histogram(DECISION_SECONDS)
        self.queue = QueueCounts()
        self.trouble = TroubleCounts()
        self.readings: Callable[[], Readings] | None = None
        self._version = version
        self._max_values = max_values
        self._models: set[str] = set()
        self._pools: set[str] = set()
        self._series: dict[tuple[str, str, Api], Series] = {}
        self.registry.register(self)

    def series(self, model: str, pool: str, api: Api) -> Series:
        """The counts of a model and a pool; an empty pool: none was chosen."""
        found = self._series.get((model, pool, api))
        if found is not None:
            return found
        key = (self._capped(model, self._models), self._capped(pool, self._pools), api)
        return self._series.setdefault(key, Series())

    def _capped(self, value: str, seen: set[str]) -> str:
        if value in seen:
            return value
        if len(seen) >= self._max_values:
            return OTHER
        seen.add(value)
        return value

    def collect(self) -> Iterable[Metric]:
        """The families, for the registry."""
        yield from self._requests()
        yield from self._gen_ai()
        decision = HistogramMetricFamily(
            "pointsman_gateway_decision_seconds", "Time to choose a replica, without waiting."
        )
        decision.add_metric([], self.decision.buckets(), self.decision.total)
        yield decision
        yield from self.trouble.families()
        yield from self.queue.families()
        yield InfoMetricFamily(
            "pointsman_gateway_build", "The gateway's version.", value={"version": self._version}
        )
        if self.readings is not None:
            yield from reading_families(self.readings())

    def _requests(self) -> Iterable[Metric]:
        labels = ["model", "pool"]
        by_pool: dict[tuple[str, str], list[Series]] = {}
        for (model, pool, _), one in self._series.items():
            by_pool.setdefault((model, pool), []).append(one)
        requests = CounterMetricFamily(
            "pointsman_gateway_requests",
            "Requests that ended, by status; 499: the client left first.",
            labels=[*labels, "code"],
        )
        counters = {
            name: CounterMetricFamily(f"pointsman_gateway_{name}", text, labels=labels)
            for name, text in (
                ("prompt_tokens", "Prompt tokens, as the engines counted them."),
                ("completion_tokens", "Output tokens, as the engines counted them."),
                ("cached_tokens", "Prompt tokens that the engines had cached."),
                ("predicted_cached_tokens", "Prompt tokens that the scheduler believed cached."),
            )
        }
        for names, group in by_pool.items():
            codes: dict[int, int] = {}
            for one in group:
                for code, count in one.codes.items():
                    codes[code] = codes.get(code, 0) + count
            for code, count in sorted(codes.items()):
                requests.add_metric([*names, str(code)], count)
            sums = {
                "prompt_tokens": sum(one.prompt_tokens.total for one in group),
                "completion_tokens": sum(one.completion_tokens.total for one in group),
                "cached_tokens": sum(one.cached_tokens for one in group),
                "predicted_cached_tokens": sum(one.predicted_cached_tokens for one in group),
            }
            for name, value in sums.items():
                counters[name].add_metric([*names], value)
        yield requests
        yield from counters.values()
        for name, text, pick in (
            ("request_duration", "From the request's arrival to its end.", _duration),
            ("time_to_first_token", "From arrival to the first event of a stream.", _ttft),
            ("time_per_output_token", "Mean gap between a stream's events.", _tpot),
        ):
            family = HistogramMetricFamily(
                f"pointsman_gateway_{name}_seconds", text, labels=[*labels, "api"]
            )
            for (model, pool, api), one in self._series.items():
                histogram = pick(one)
                if histogram.count:
                    family.add_metric(
                        [model, pool, api.value], histogram.buckets(), histogram.total
                    )
            yield family

    def _gen_ai(self) -> Iterable[Metric]:
        labels = ["gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model"]
        for name, text, pick in (
            ("server_request_duration_seconds", "gen_ai.server.request.duration", _duration),
            ("server_time_to_first_token_seconds", "gen_ai.server.time_to_first_token", _ttft),
            ("server_time_per_output_token_seconds", "gen_ai.server.time_per_output_token", _tpot),
        ):
            family = HistogramMetricFamily(f"gen_ai_{name}", text, labels=labels)
            for (operation, model), group in self._by_model().items():
                _add_merged(family, [operation, _PROVIDER, model], [pick(one) for one in group])
            yield family
        tokens = HistogramMetricFamily(
            "gen_ai_client_token_usage",
            "gen_ai.client.token.usage",
            labels=[*labels, "gen_ai_token_type"],
        )
        for (operation, model), group in self._by_model().items():
            names = [operation, _PROVIDER, model]
            _add_merged(tokens, [*names, "input"], [one.prompt_tokens for one in group])
            _add_merged(tokens, [*names, "output"], [one.completion_tokens for one in group])
        yield tokens

    def _by_model(self) -> dict[tuple[str, str], list[Series]]:
        groups: dict[tuple[str, str], list[Series]] = {}
        for (model, _, api), one in self._series.items():
            groups.setdefault((_OPERATIONS[api], model), []).append(one)
        return groups


def _duration(series: Series) -> Histogram:
    return series.duration


def _ttft(series: Series) -> Histogram:
    return series.ttft


def _tpot(series: Series) -> Histogram:
    return series.tpot


def _add_merged(
    family: HistogramMetricFamily, labels: list[str], histograms: list[Histogram]
) -> None:
    merged: dict[str, float] = {}
    for histogram in histograms:
        for bound, count in histogram.buckets():
            merged[bound] = merged.get(bound, 0.0) + count
    if merged and merged["+Inf"]:
        family.add_metric(labels, list(merged.items()), sum(h.total for h in histograms))
