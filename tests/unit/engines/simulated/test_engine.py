"""The loop that runs the timing model against a clock."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from pointsman_serving.engines.engine import EngineFailedError
from pointsman_serving.engines.simulated.engine import SimulatedEngine, TokenEvent
from pointsman_serving.engines.simulated.metrics import EngineMetrics
from pointsman_serving.engines.timing import EngineModel, EngineProfile, EngineRequest

PROFILE = EngineProfile(
    iteration_seconds=1.0,
    prefill_token_seconds=0.0,
    attention_pair_seconds=0.0,
    decode_sequence_seconds=0.0,
    decode_context_token_seconds=0.0,
)


class VirtualClock:
    """Time that passes only in sleeps."""

    def __init__(self) -> None:
        self.now = 100.0
        self.fails_at = float("inf")

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds
        if self.now >= self.fails_at:
            raise RuntimeError("the clock broke")
        await asyncio.sleep(0)


def engine_on(clock: VirtualClock, *, speed: float = 1.0) -> tuple[SimulatedEngine, EngineMetrics]:
    model = EngineModel(PROFILE)
    metrics = EngineMetrics(model, model_name="m")
    return SimulatedEngine(model, metrics, speed=speed, now=clock, sleep=clock.sleep), metrics


def request(name: str, output: int) -> EngineRequest:
    return EngineRequest(request_id=name, prompt_tokens=3, output_tokens=output)


async def collect(engine: SimulatedEngine, work: EngineRequest) -> list[TokenEvent]:
    return [event async for event in engine.generate(work, finish_reason="stop")]


async def test_generate_yields_a_token_an_iteration_when_alone() -> None:
    clock = VirtualClock()
    engine, _ = engine_on(clock, speed=4.0)
    events = await collect(engine, request("a", 3))
    assert [
        TokenEvent(0, 0, last=False),
        TokenEvent(1, 0, last=False),
        TokenEvent(2, 0, last=True),
    ] == (events)
    assert (100.75, 3.0) == (clock.now, engine.busy_seconds)


async def test_generate_takes_the_longest_ones_time_when_many_run() -> None:
    clock = VirtualClock()
    engine, metrics = engine_on(clock)
    await asyncio.gather(*(collect(engine, request(str(n), n + 1)) for n in range(12)))
    assert 12.0 == engine.busy_seconds
    assert 'finished_reason="stop",model_name="m"} 12.0' in metrics.exposition().decode()
    assert 0 == engine.open_requests


async def test_generate_aborts_when_its_reader_leaves() -> None:
    engine, metrics = engine_on(VirtualClock())
    async with aclosing(engine.generate(request("a", 500), finish_reason="stop")) as events:
        await anext(events)
        assert 1 == engine.open_requests
    async with asyncio.timeout(5):
        while not engine.idle:
            await asyncio.sleep(0)
    assert 0 == engine.open_requests
    assert engine.busy_seconds < 500
    assert 'finished_reason="abort",model_name="m"} 1.0' in metrics.exposition().decode()


async def test_generate_fails_for_all_when_the_engine_fails() -> None:
    clock = VirtualClock()
    clock.fails_at = 102.0
    engine, _ = engine_on(clock)
    results = await asyncio.gather(
        *(collect(engine, request(name, 9)) for name in "ab"), return_exceptions=True
    )
    assert [EngineFailedError, EngineFailedError] == [type(result) for result in results]
    assert not engine.alive
    with pytest.raises(EngineFailedError, match="restart the replica"):
        await collect(engine, request("late", 1))
