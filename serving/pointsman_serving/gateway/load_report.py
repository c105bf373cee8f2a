"""What replicas say of their load in the ``endpoint-load-metrics`` header (ORCA, JSON form).

vLLM writes ``JSON {"named_metrics": {"kv_cache_usage_perc": 0.4, "num_requests_waiting": 2.0}}``.
"""

from __future__ import annotations

import math

import msgspec

from pointsman_serving.routing.types import LoadReport


class _Report(msgspec.Struct):
    named_metrics: dict[str, float] = {}


_decode = msgspec.json.Decoder(_Report).decode


def parse_load_report(value: bytes) -> LoadReport | None:
    """The report of a header's value; None where it says nothing that can be used."""
    text = value.strip()
    if text[:4].upper() == b"JSON":
        text = text[4:].strip()
    try:
        metrics = _decode(text).named_metrics
    except msgspec.DecodeError:
        return None
    waiting = _usable(metrics.get("num_requests_waiting"))
    running = _usable(metrics.get("num_requests_running"))
    usage = _usable(metrics.get("kv_cache_usage_perc", metrics.get("kv_cache_utilization")))
    if waiting is None and running is None and usage is None:
        return None
    return LoadReport(
        waiting_requests=waiting,
        running_requests=running,
        kv_cache_usage=None if usage is None else min(usage, 1.0),
    )


def _usable(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) and value >= 0 else None
