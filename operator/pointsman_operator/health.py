"""/healthz, /readyz and /metrics, on one port."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterable

import structlog
from aiohttp import web

from pointsman_operator.metrics import OperatorMetrics

log = structlog.get_logger(__name__)

Problems = Callable[[], Iterable[str]]
"""What is wrong now, as sentences; nothing where all is well."""

BEAT_SECONDS = 1.0
LATE_SECONDS = 30.0
"""An event loop that is late by this much is stuck."""


class Pulse:
    """Tells an event loop that does not get on."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._beat = clock()

    def problems(self) -> Iterable[str]:
        """Whether the loop was late."""
        late = self._clock() - self._beat
        if late > LATE_SECONDS:
            yield f"the event loop has not got on for {late:.0f} s"

    async def run(self) -> None:
        """Beat until cancelled."""
        while True:
            self._beat = self._clock()
            await asyncio.sleep(BEAT_SECONDS)


@contextlib.asynccontextmanager
async def serve_health(
    *, host: str | None, port: int, metrics: OperatorMetrics, unhealthy: Problems, unready: Problems
) -> AsyncIterator[int]:
    """Answer probes and scrapes while the block runs; yields the port.

    Args:
        unhealthy: what a restart would mend.
        unready: what keeps this process from its work.
    """

    def answer(problems: Problems) -> Callable[[web.Request], object]:
        async def handle(_: web.Request) -> web.Response:
            found = list(problems())
            text = "\n".join(found) or "ok"
            return web.Response(status=503 if found else 200, text=f"{text}\n")

        return handle

    async def scrape(_: web.Request) -> web.Response:
        return web.Response(
            body=metrics.text(),
            headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"},
        )

    app = web.Application()
    app.router.add_get("/healthz", answer(unhealthy))  # type: ignore[arg-type]
    app.router.add_get("/readyz", answer(unready))  # type: ignore[arg-type]
    app.router.add_get("/metrics", scrape)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port)
        await site.start()
        bound = int(runner.addresses[0][1])
        log.info("probes and metrics", port=bound)
        yield bound
    finally:
        await runner.cleanup()
