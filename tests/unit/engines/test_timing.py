"""When the timing model computes which token."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pointsman_serving.engines.timing import (
    EngineModel,
    EngineProfile,
    EngineRequest,
    EventKind,
    StepEvent,
    StepResult,
)

ADMITTED, FIRST_TOKEN, TOKEN = EventKind.ADMITTED, EventKind.FIRST_TOKEN, EventKind.TOKEN
FINISHED, PREEMPTED = EventKind.FINISHED, EventKind.PREEMPTED

# Seconds that are easy to add up by hand.
PROFILE = EngineProfile(
    iteration_seconds=1.0,
    prefill_token_seconds=0.01,
    attention_pair_seconds=0.0,
    decode_sequence_seconds=0.1,
    decode_context_token_seconds=0.001,
    kv_capacity_tokens=40,
    block_tokens=4,
    max_sequences=2,
    max_batched_tokens=16,
)


def request(name: str, prompt: int, output: int, *hashes: int) -> EngineRequest:
    return EngineRequest(
        request_id=name, prompt_tokens=prompt, output_tokens=output, block_hashes=hashes
    )


def trace(model: EngineModel) -> list[tuple[float, list[tuple[str, EventKind, int]]]]:
    """Every step until nothing is left, as (seconds, events)."""
    steps = []
    while model.running_count or model.waiting_count:
        result = model.step()
        events = [tuple(event) for event in result.events]
        steps.append((round(result.duration_seconds, 6), events))
    return steps


def run_seconds(model: EngineModel) -> float:
    return sum(seconds for seconds, _ in trace(model))


def test_step_takes_no_time_when_there_is_nothing_to_do() -> None:
    assert StepResult(duration_seconds=0.0, events=()) == EngineModel(PROFILE).step()


def test_step_computes_a_prompt_in_chunks_when_it_exceeds_the_token_budget() -> None:
    model = EngineModel(replace(PROFILE, max_batched_tokens=8))
    model.add(request("a", 10, 2))
    assert [
        (1.08, [("a", ADMITTED, 0)]),
        (1.02, [("a", FIRST_TOKEN, 0)]),
        (1.111, [("a", TOKEN, 0), ("a", FINISHED, 0)]),
    ] == trace(model)


def test_step_charges_attention_for_every_pair_when_a_prompt_is_computed() -> None:
    model = EngineModel(
        replace(PROFILE, iteration_seconds=0, prefill_token_seconds=0, attention_pair_seconds=1)
    )
    model.add(request("a", 4, 1))
    assert 1 + 2 + 3 + 4 == model.step().duration_seconds


def test_step_shares_a_prefix_when_both_requests_come_in_one_iteration() -> None:
    model = EngineModel(PROFILE)
    model.add(request("a", 8, 1, 11, 12))
    model.add(request("b", 8, 1, 11, 12))
    # The second block of b is computed again: the first token is sampled from its last token.
    assert [
        (
            1.12,
            [
                ("a", ADMITTED, 0),
                ("b", ADMITTED, 4),
                ("a", FIRST_TOKEN, 0),
                ("a", FINISHED, 0),
                ("b", FIRST_TOKEN, 0),
                ("b", FINISHED, 0),
            ],
        )
    ] == trace(model)
    assert (16, 4) == (model.prefix_queries_tokens, model.prefix_hits_tokens)


def test_step_finds_prompt_and_answer_when_the_next_turn_comes() -> None:
    model = EngineModel(PROFILE)
    model.add(request("first", 6, 3, 1, 2))
    trace(model)
    model.add(request("second", 12, 1, 1, 2, 3))
    # Nine tokens made two full blocks: six of the prompt and two of the answer.
    assert StepEvent("second", ADMITTED, 8) == model.step().events[0]


def test_step_shares_nothing_when_prefix_caching_is_off() -> None:
    model = EngineModel(replace(PROFILE, prefix_caching=False))
    for name in ("a", "b"):
        model.add(request(name, 9, 1, 1, 2))
    trace(model)
    assert (0, 0) == (model.prefix_hits_tokens, model.cached_blocks)


def test_step_keeps_the_third_waiting_when_two_sequences_are_allowed() -> None:
    model = EngineModel(PROFILE)
    for name in ("a", "b", "c"):
        model.add(request(name, 4, 2))
    model.step()
    assert (2, 1) == (model.running_count, model.waiting_count)
    assert StepEvent("c", ADMITTED, 0) not in model.step().events
    assert StepEvent("c", ADMITTED, 0) in model.step().events


def test_step_preempts_the_youngest_and_computes_it_again_when_the_cache_is_full() -> None:
    model = EngineModel(replace(PROFILE, kv_capacity_tokens=16))
    model.add(request("a", 7, 6))
    model.add(request("b", 7, 6))
    assert [
        (
            1.14,
            [("a", ADMITTED, 0), ("b", ADMITTED, 0), ("a", FIRST_TOKEN, 0), ("b", FIRST_TOKEN, 0)],
        ),
        (1.216, [("a", TOKEN, 0), ("b", TOKEN, 0)]),
        (1.109, [("b", PREEMPTED, 0), ("a", TOKEN, 0)]),
        (1.11, [("a", TOKEN, 0)]),
        (1.111, [("a", TOKEN, 0)]),
        (1.112, [("a", TOKEN, 0), ("a", FINISHED, 0)]),
        (1.09, [("b", ADMITTED, 0), ("b", TOKEN, 0)]),
        (1.11, [("b", TOKEN, 0)]),
        (1.111, [("b", TOKEN, 0)]),
        (1.112, [("b", TOKEN, 0), ("b", FINISHED, 0)]),
    ] == trace(model)
    assert 1 == model.preemptions


@pytest.mark.parametrize(("block", "cached_tokens"), [(1, 0), (2, 4), (3, 4)])
def test_step_evicts_the_oldest_idle_prefix_when_room_is_needed(
    block: int, cached_tokens: int
) -> None:
    model = EngineModel(replace(PROFILE, kv_capacity_tokens=16))
    for name, earlier in (("a", 1), ("b", 2), ("c", 3)):
        model.add(request(name, 4, 1, earlier))
        trace(model)
    model.add(request("wide", 8, 1, 4, 5))
    trace(model)
    model.add(request("again", 5, 1, block))
    assert StepEvent("again", ADMITTED, cached_tokens) == model.step().events[0]


def test_step_takes_the_time_of_one_when_twelve_run_together() -> None:
    one, twelve = EngineModel(EngineProfile()), EngineModel(EngineProfile())
    one.add(request("one", 100, 50))
    for number in range(12):
        twelve.add(request(str(number), 100, 50))
    assert run_seconds(twelve) < 1.15 * run_seconds(one)


def test_abort_frees_the_cache_when_the_request_runs_or_waits() -> None:
    model = EngineModel(replace(PROFILE, max_sequences=1))
    model.add(request("runs", 8, 5))
    model.add(request("waits", 8, 5))
    model.step()
    assert (True, True, False) == (model.abort("runs"), model.abort("waits"), model.abort("runs"))
    assert (0, 0, 0.0) == (model.running_count, model.waiting_count, model.kv_usage)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (request("a", 4, 1), "in the engine already"),
        (request("b", 0, 1), "both must be at least 1"),
        (request("b", 1, 0), "both must be at least 1"),
        (request("b", 40, 1), "needs 41 tokens of cache and the engine has 40"),
    ],
)
def test_add_says_what_is_wrong_when_a_request_can_never_run(
    wrong: EngineRequest, message: str
) -> None:
    model = EngineModel(PROFILE)
    model.add(request("a", 4, 1))
    with pytest.raises(ValueError, match=message):
        model.add(wrong)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("iteration_seconds", -0.1),
        ("prefill_token_seconds", float("nan")),
        ("block_tokens", 0),
        ("max_sequences", 0),
        ("max_batched_tokens", 1),
        ("kv_capacity_tokens", 3),
    ],
)
def test_profile_names_the_field_when_a_value_is_impossible(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=field):
        replace(PROFILE, **{field: value})


@st.composite
def workloads(draw: st.DrawFn) -> list[tuple[int, EngineRequest, int | None]]:
    """(step of arrival, request, step of its abort), with prefixes that requests share."""
    loads = []
    for number in range(draw(st.integers(1, 8))):
        prompt, output = draw(st.integers(1, 24)), draw(st.integers(1, 16))
        family = draw(st.integers(1, 2))
        shared = draw(st.integers(0, 10))
        hashes = [
            family * 1000 + index if index < shared else (number + 3) * 1000 + index
            for index in range((prompt + output) // 4)
        ]
        abort = draw(st.none() | st.integers(0, 30))
        arrival = draw(st.integers(0, 10))
        loads.append((arrival, request(str(number), prompt, output, *hashes), abort))
    return loads


def play(
    profile: EngineProfile, loads: list[tuple[int, EngineRequest, int | None]]
) -> tuple[EngineModel, list[StepResult]]:
    model, results = EngineModel(profile), []
    number = 0
    while number < 31 or model.running_count or model.waiting_count:
        for arrival, load, abort in loads:
            if arrival == number:
                model.add(load)
            if abort == number:
                model.abort(load.request_id)
        busy = model.running_count + model.waiting_count
        result = model.step()
        assert (result.duration_seconds > 0) == (busy > 0)
        assert model.running_count <= profile.max_sequences
        assert 0 <= model.kv_usage <= 1
        results.append(result)
        number += 1
        assert number < 2000, "the engine makes no progress"
    return model, results


PROFILES = st.builds(
    replace,
    st.just(PROFILE),
    kv_capacity_tokens=st.sampled_from([40, 44, 80, 400]),
    max_sequences=st.integers(1, 5),
    max_batched_tokens=st.sampled_from([5, 8, 64]),
    prefix_caching=st.booleans(),
)


@settings(max_examples=150, deadline=None)
@given(profile=PROFILES, loads=workloads())
def test_model_gives_every_token_and_every_block_back_when_all_is_done(
    profile: EngineProfile, loads: list[tuple[int, EngineRequest, int | None]]
) -> None:
    model, results = play(profile, loads)
    events = [event for result in results for event in result.events]
    for _, load, _ in loads:
        mine = [event for event in events if event.request_id == load.request_id]
        tokens = [event for event in mine if event.kind in (FIRST_TOKEN, TOKEN)]
        finished = any(event.kind is FINISHED for event in mine)
        assert (len(tokens) == load.output_tokens) == finished
        assert [event.kind for event in tokens[:1]] == [FIRST_TOKEN][: len(tokens)]
        assert sum(event.kind is FIRST_TOKEN for event in mine) <= 1
        for event in mine:
            assert 0 <= event.cached_tokens < load.prompt_tokens + load.output_tokens
        if mine:
            assert 0 <= mine[0].cached_tokens < load.prompt_tokens
    assert 0.0 == model.kv_usage
    assert 0 <= model.prefix_hits_tokens <= model.prefix_queries_tokens


@settings(max_examples=50, deadline=None)
@given(profile=PROFILES, loads=workloads())
def test_model_does_the_same_when_it_is_asked_the_same(
    profile: EngineProfile, loads: list[tuple[int, EngineRequest, int | None]]
) -> None:
    assert play(profile, loads)[1] == play(profile, loads)[1]
