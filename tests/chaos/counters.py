"""A gateway's own counts, read as Prometheus reads them."""

from __future__ import annotations

import asyncio
import re
import time

from tests.chaos.stream import ask

_SAMPLE = re.compile(r"^(\w+(?:\{[^}]*\})?) (\S+)$", re.MULTILINE)
_PREFIX = "pointsman_gateway_"
_GAUGES = frozenset(
    {
        "in_flight",
        "queue_depth",
        "upstream_connections",
        "replica_in_flight",
        "replica_pending_prefill_tokens",
    }
)
"""Those that are zero when nothing is asked, and no connection is kept for later."""


async def scrape(port: int) -> dict[str, float]:
    """The series of the gateway on this port, without histograms' buckets."""
    request = b"GET /metrics HTTP/1.1\r\nhost: g\r\nconnection: close\r\n\r\n"
    observed = await ask("127.0.0.1", port, request, limit_seconds=10.0)
    text = b"".join(piece for _, piece in observed.pieces).decode()
    return {
        match[1]: float(match[2])
        for match in _SAMPLE.finditer(text)
        if match[1].startswith(_PREFIX) and "_bucket" not in match[1]
    }


def leftovers(metrics: dict[str, float]) -> dict[str, float]:
    """What should be zero when all has ended, and is not."""
    return {
        series: value
        for series, value in metrics.items()
        if value and series.partition("{")[0].removeprefix(_PREFIX) in _GAUGES
    }


async def settled(port: int, *, limit_seconds: float = 30.0) -> dict[str, float]:
    """The series once nothing is left over, or when the time to wait for that is up."""
    until = time.monotonic() + limit_seconds
    while True:
        metrics = await scrape(port)
        if not leftovers(metrics) or time.monotonic() > until:
            return metrics
        await asyncio.sleep(0.5)


def total(metrics: dict[str, float], name: str) -> float:
    """The sum of a counter over all its labels."""
    return sum(
        value
        for series, value in metrics.items()
        if series.partition("{")[0] == f"{_PREFIX}{name}_total"
    )
