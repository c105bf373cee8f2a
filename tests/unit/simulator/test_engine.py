"""The fast engine gives what EngineModel gives, event by event."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pointsman_serving.engines.timing import (
    EngineModel,
    EngineProfile,
    EngineRequest,
    EventKind,
)
from pointsman_serving.simulator.engine import FastEngine
from pointsman_serving.simulator.request import SimRequest

Row = tuple[float, str, str, int]

TIGHT = EngineProfile(
    iteration_seconds=0.01,
    block_tokens=512,
    kv_capacity_tokens=8 * 512,
    max_sequences=4,
    max_batched_tokens=1024,
)


def model_rows(profile: EngineProfile, requests: list[SimRequest]) -> list[Row]:
    """What the reference does; whoever comes during a step waits for its end."""
    engine = EngineModel(profile)
    rows: list[Row] = []
    arrivals = sorted(requests, key=lambda each: each.arrival_seconds)
    position = 0
    now = 0.0
    while position < len(arrivals) or engine.running_count or engine.waiting_count:
        idle = not (engine.running_count or engine.waiting_count)
        idle = idle and arrivals[position].arrival_seconds > now
        if idle:
            now = arrivals[position].arrival_seconds
        while position < len(arrivals) and arrivals[position].arrival_seconds <= now:
            request = arrivals[position]
            position += 1
            engine.add(
                EngineRequest(
                    request_id=request.request_id,
                    prompt_tokens=request.prompt_tokens,
                    output_tokens=request.output_tokens,
                    block_hashes=request.blocks[: request.prompt_tokens // profile.block_tokens],
                )
            )
            if idle:
                break  # it begins at once, alone
        result = engine.step()
        for event in result.events:
            if event.kind is EventKind.TOKEN:
                continue
            early = event.kind in (EventKind.ADMITTED, EventKind.PREEMPTED)
            at = now if early else now + result.duration_seconds
            rows.append((at, event.kind.value, event.request_id, event.cached_tokens))
        now += result.duration_seconds
    return rows


def fast_rows(profile: EngineProfile, requests: list[SimRequest]) -> list[Row]:
    engine = FastEngine(profile)
    engine.log = []
    rows: list[Row] = []
    arrivals = sorted(requests, key=lambda each: each.arrival_seconds)
    position = 0
    while position < len(arrivals) or engine.ends_at < math.inf:
        next_arrival = arrivals[position].arrival_seconds if position < len(arrivals) else math.inf
        if engine.ends_at <= next_arrival:
            at = engine.ends_at
            for kind, sequence in engine.step():
                rows.append((at, kind.value, sequence.request.request_id, 0))
        else:
            engine.add(arrivals[position], arrivals[position].output_tokens, next_arrival)
            position += 1
    rows += [(at, kind.value, name, cached) for at, kind, name, cached in engine.log]
    return rows


def assert_same(profile: EngineProfile, requests: list[SimRequest]) -> None:
    expected = sorted(model_rows(profile, requests), key=lambda row: row[1:])
    actual = sorted(fast_rows(profile, requests), key=lambda row: row[1:])
    assert [row[1:] for row in expected] == [row[1:] for row in actual]
    for before, after in zip(expected, actual, strict=True):
        assert after[0] == pytest.approx(before[0], rel=1e-9, abs=1e-9)


def workload(seed: int, count: int, *, rate: float, prompt: int, output: int) -> list[SimRequest]:
    """Requests in groups that share their first blocks; times that no step boundary meets."""
    source = random.Random(seed)
    at = 0.0
    requests = []
    for number in range(count):
        at += source.expovariate(rate)
        tokens = source.randint(1, prompt)
        group = source.randrange(3)
        shared = source.randrange(4)
        blocks = tuple(
            group * 100 + index if index < shared else 1000 + number * 100 + index
            for index in range(-(-tokens // 512))
        )
        requests.append(
            SimRequest(
                request_id=f"r{number}",
                arrival_seconds=at,
                prompt_tokens=tokens,
                output_tokens=source.randint(1, output),
                blocks=blocks,
            )
        )
    return requests


def test_events_are_the_models_when_the_cache_is_ample() -> None:
    profile = EngineProfile(block_tokens=512)

    assert_same(profile, workload(1, 200, rate=4.0, prompt=9000, output=400))


def test_events_are_the_models_when_prompts_are_longer_than_a_step() -> None:
    profile = EngineProfile(block_tokens=512, max_batched_tokens=512)

    assert_same(profile, workload(2, 100, rate=3.0, prompt=5000, output=100))


def test_events_are_the_models_when_sequences_are_preempted() -> None:
    requests = workload(3, 150, rate=6.0, prompt=1500, output=700)

    assert_same(TIGHT, requests)
    engine_rows = fast_rows(TIGHT, requests)
    assert any(kind == EventKind.PREEMPTED.value for _, kind, _, _ in engine_rows)


def test_events_are_the_models_when_nothing_is_shared() -> None:
    profile = replace(TIGHT, prefix_caching=False)

    assert_same(profile, workload(4, 80, rate=5.0, prompt=1500, output=300))


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    count=st.integers(1, 25),
    rate=st.sampled_from([0.5, 3.0, 20.0, 200.0]),
    prompt=st.sampled_from([1, 600, 2000]),
    output=st.sampled_from([1, 30, 1200]),
    sequences=st.sampled_from([1, 2, 5]),
    budget=st.sampled_from([5, 300, 4096]),
    blocks=st.sampled_from([7, 9, 40]),
)
def test_events_are_the_models_whatever_comes(
    seed: int,
    count: int,
    rate: float,
    prompt: int,
    output: int,
    sequences: int,
    budget: int,
    blocks: int,
) -> None:
    profile = replace(
        TIGHT, max_sequences=sequences, max_batched_tokens=budget, kv_capacity_tokens=blocks * 512
    )

    assert_same(profile, workload(seed, count, rate=rate, prompt=prompt, output=output))


def test_next_in_line_goes_when_the_one_before_it_is_withdrawn() -> None:
    engine = FastEngine(TIGHT)
    running, large, small = (
        SimRequest(request_id=name, arrival_seconds=0.0, prompt_tokens=tokens, output_tokens=output)
        for name, tokens, output in (("running", 500, 900), ("large", 3600, 1), ("small", 100, 1))
    )
    engine.add(running, 900, 0.0)
    engine.step()
    engine.add(large, 1, 0.1)
    engine.add(small, 1, 0.1)
    while engine.ends_at < 1.0:
        engine.step()
    assert 2 == len(engine.waiting)

    assert engine.withdraw(large, 1.0)

    before = engine.ends_at
    engine.step()
    assert before < 1.1
    assert [small] == [each.request for each in engine.running if each.request is not running]
    assert 100 == engine.pending_prefill_tokens
    assert not engine.withdraw(small, before)
