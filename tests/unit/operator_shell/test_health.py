from __future__ import annotations

import asyncio

import aiohttp

from pointsman_operator.health import LATE_SECONDS, Pulse, serve_health
from pointsman_operator.metrics import OperatorMetrics
from pointsman_operator.work_queue import WorkQueue


async def test_probes_tell_what_is_wrong_when_asked() -> None:
    metrics = OperatorMetrics()
    wrong: list[str] = []
    async with (
        serve_health(
            host="127.0.0.1",
            port=0,
            metrics=metrics,
            unhealthy=lambda: wrong,
            unready=lambda: ["no list yet of pods"],
        ) as port,
        aiohttp.ClientSession(f"http://127.0.0.1:{port}") as client,
    ):
        async with client.get("/healthz") as response:
            assert (200, "ok\n") == (response.status, await response.text())
        wrong.append("the watch of pods is silent for 200 s")
        async with client.get("/healthz") as response:
            assert 503 == response.status
            assert "the watch of pods is silent" in await response.text()
        async with client.get("/readyz") as response:
            assert 503 == response.status


async def test_metrics_count_reconciles_by_queue_and_reason() -> None:
    metrics = OperatorMetrics()

    async def reconcile(key: str) -> None:
        """Never started."""

    queue: WorkQueue[str] = WorkQueue("pools", reconcile)
    queue.add("a")
    metrics.watch(lambda: [queue], list, lambda: True)
    metrics.reconciled("pools", 0.1, None)
    metrics.reconciled("pools", 0.1, ValueError("x"))
    text = metrics.text().decode()
    assert 'pointsman_operator_reconciles_total{queue="pools",result="ok"} 1.0' in text
    assert (
        'pointsman_operator_reconcile_errors_total{queue="pools",reason="ValueError"} 1.0' in text
    )
    assert 'pointsman_operator_queue_depth{queue="pools"} 1.0' in text
    assert "pointsman_operator_leader 1.0" in text


async def test_pulse_is_late_when_the_loop_is_stuck() -> None:
    now = 100.0
    pulse = Pulse(clock=lambda: now)
    task = asyncio.create_task(pulse.run())
    await asyncio.sleep(0.01)
    assert [] == list(pulse.problems())
    now += LATE_SECONDS + 1
    assert 1 == len(list(pulse.problems()))
    task.cancel()
