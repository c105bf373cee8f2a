from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointsman_api.modelpool import ModelPool
from pointsman_operator.observed import PoolObserved, PoolReport
from pointsman_operator.scaling import (
    Load,
    ScalingState,
    decide,
    initial_state,
    load_of,
    wanted_replicas,
)
from tests.unit.operator.scenes import NOW, gateway, made_pool, running


def scaled(
    *, low: int = 1, high: int = 8, up: str = "10s", down: str = "300s", **more: Any
) -> ModelPool:
    return made_pool(
        autoscaling={
            "minReplicas": low,
            "maxReplicas": high,
            "target": {"value": 10},
            "scaleUpDelay": up,
            "scaleDownDelay": down,
        },
        **more,
    )


def after(
    pool: ModelPool,
    state: ScalingState,
    loads: Iterable[int],
    *,
    rolling_out: bool = False,
    complete: bool = True,
    every: float = 1.0,
    start: float = NOW,
) -> ScalingState:
    """The state after one decision each second, with these loads."""
    for step, requests in enumerate(loads):
        load = Load(requests=requests, complete=complete)
        state = decide(pool, state, load, now=start + step * every, rolling_out=rolling_out)
    return state


def test_more_replicas_come_once_the_load_has_called_for_them_long_enough() -> None:
    pool = scaled()

    assert 1 == after(pool, ScalingState(wanted=1), [35] * 10).wanted
    assert 4 == after(pool, ScalingState(wanted=1), [35] * 11).wanted


def test_a_short_burst_starts_nothing() -> None:
    assert 1 == after(scaled(), ScalingState(wanted=1), [80] * 9 + [5] + [80] * 9).wanted


def test_the_last_moment_of_a_rising_load_does_not_start_more_than_all_of_it_called_for() -> None:
    assert 2 == after(scaled(), ScalingState(wanted=1), [15] * 10 + [80]).wanted


def test_fewer_replicas_are_left_once_the_load_has_called_for_fewer_long_enough() -> None:
    pool = scaled()

    assert 8 == after(pool, ScalingState(wanted=8), [15] * 300).wanted
    assert 2 == after(pool, ScalingState(wanted=8), [15] * 301).wanted


def test_no_fewer_are_left_than_the_busiest_moment_of_the_delay_called_for() -> None:
    loads = [15] * 100 + [55] + [15] * 200

    assert 6 == after(scaled(), ScalingState(wanted=8), loads).wanted


def test_the_delay_begins_anew_when_the_load_came_back() -> None:
    assert 8 == after(scaled(), ScalingState(wanted=8), [15] * 200 + [80] + [15] * 300).wanted


def test_a_pool_goes_to_zero_when_it_was_idle_for_the_whole_delay() -> None:
    pool = scaled(low=0)

    assert 1 == after(pool, ScalingState(wanted=1), [0] * 300).wanted
    assert 0 == after(pool, ScalingState(wanted=1), [0] * 301).wanted
    assert 1 == after(pool, ScalingState(wanted=1), [0] * 200 + [1] + [0] * 100).wanted


def test_a_pool_at_zero_starts_at_once_when_a_request_waits() -> None:
    state = after(scaled(low=0), ScalingState(wanted=0), [1])

    assert (1, NOW) == (state.wanted, state.scaled_at)


def test_nothing_goes_while_a_gateway_does_not_report() -> None:
    pool = scaled(low=0)

    assert 4 == after(pool, ScalingState(wanted=4), [0] * 900, complete=False).wanted
    interrupted = after(pool, ScalingState(wanted=4), [0] * 290)
    interrupted = after(pool, interrupted, [0], complete=False, start=NOW + 290)
    assert 4 == after(pool, interrupted, [0] * 290, start=NOW + 291).wanted


def test_more_come_though_a_gateway_does_not_report() -> None:
    assert 4 == after(scaled(), ScalingState(wanted=1), [35] * 11, complete=False).wanted


@pytest.mark.parametrize("load", [0, 80])
def test_nothing_changes_during_a_roll_out(load: int) -> None:
    assert 3 == after(scaled(), ScalingState(wanted=3), [load] * 900, rolling_out=True).wanted


def test_both_delays_begin_anew_after_a_roll_out() -> None:
    pool = scaled()
    state = after(pool, ScalingState(wanted=8), [15] * 299)
    state = after(pool, state, [15], rolling_out=True, start=NOW + 299)

    assert 8 == after(pool, state, [15] * 300, start=NOW + 300).wanted


@pytest.mark.parametrize("rolling_out", [False, True])
def test_the_pools_limits_hold_at_once(rolling_out: bool) -> None:
    pool = scaled(low=2, high=4)

    assert 4 == after(pool, ScalingState(wanted=9), [0], rolling_out=rolling_out).wanted
    assert 2 == after(pool, ScalingState(wanted=1), [0], rolling_out=rolling_out).wanted


def test_the_load_is_what_runs_and_what_waits_at_all_gateways() -> None:
    pools = {"team/chat": PoolReport(queued=3, open_streams=4)}

    load = load_of("team/chat", [gateway(pools=pools)], now=NOW, stale_seconds=10)

    assert Load(requests=14, complete=True) == load


def test_a_load_is_not_complete_when_a_report_is_old_or_missing() -> None:
    pools = {"team/chat": PoolReport(queued=3)}
    old = gateway(pools=pools, ages=(0.5, 60))

    assert Load(requests=3, complete=False) == load_of(
        "team/chat", [old], now=NOW, stale_seconds=10
    )


def test_what_a_pod_said_that_is_gone_makes_no_load_incomplete() -> None:
    view = gateway(pools={"team/chat": PoolReport(queued=3)}, ages=(0.5, 60))

    gone = type(view)(name=view.name, pods=view.pods[:1], reports=view.reports)

    assert load_of("team/chat", [gone], now=NOW, stale_seconds=10).complete


def test_what_a_pod_that_goes_still_has_is_load_until_it_falls_silent() -> None:
    view = gateway(pools={"team/chat": PoolReport(queued=3, open_streams=4)})
    going = type(view)(name=view.name, pods=view.pods[:1], reports=view.reports)

    assert Load(requests=14) == load_of("team/chat", [going], now=NOW, stale_seconds=10)


def test_a_number_below_zero_takes_nothing_from_what_others_have() -> None:
    good = gateway(hashes=("",), pools={"team/chat": PoolReport(queued=3)})
    broken = gateway(
        name="b", hashes=("",), pools={"team/chat": PoolReport(queued=-9, open_streams=2)}
    )

    assert 5 == load_of("team/chat", [good, broken], now=NOW, stale_seconds=10).requests


def test_scaling_starts_at_what_runs() -> None:
    pool = scaled()
    observed, _ = running(pool, replicas=5)

    assert 5 == initial_state(pool, observed).wanted


def test_a_new_pool_starts_once_even_if_it_may_be_at_zero() -> None:
    assert 1 == initial_state(scaled(low=0), PoolObserved(now=NOW)).wanted


def test_a_pool_that_is_at_zero_stays_there_when_the_operator_starts_anew() -> None:
    pool = scaled(low=0, status={"currentRevision": "chat-1"})

    assert 0 == initial_state(pool, PoolObserved(now=NOW)).wanted


def test_a_fixed_number_is_wanted_as_it_is() -> None:
    assert 1 == wanted_replicas(made_pool(), None)
    assert 0 == wanted_replicas(made_pool(replicas=0), None)
    assert 7 == wanted_replicas(made_pool(replicas=7), None)
    assert 3 == wanted_replicas(scaled(), ScalingState(wanted=3))


def test_a_state_survives_being_written_as_json() -> None:
    state = after(scaled(), ScalingState(wanted=1, scaled_at=NOW), [35] * 3)

    assert state == ScalingState.from_document(json.loads(json.dumps(state.to_document())))


steps = st.lists(
    st.tuples(st.integers(0, 200), st.booleans(), st.booleans(), st.floats(0.1, 60)), max_size=40
)


@given(steps=steps, first=st.integers(0, 20), low=st.integers(0, 3), high=st.integers(3, 9))
def test_scaling_keeps_its_limits_and_its_promises(
    steps: list[tuple[int, bool, bool, float]], first: int, low: int, high: int
) -> None:
    pool = scaled(low=low, high=high)
    state, now = ScalingState(wanted=first), NOW
    for requests, complete, rolling_out, wait in steps:
        before, now = state, now + wait
        load = Load(requests=requests, complete=complete)
        state = decide(pool, state, load, now=now, rolling_out=rolling_out)

        assert low <= state.wanted <= high
        if low <= before.wanted <= high:
            assert not (rolling_out and state.wanted != before.wanted)
            assert not (not complete and state.wanted < before.wanted)
        if state.wanted == 0 < before.wanted <= high:
            assert 0 == requests
        assert decide(pool, before, load, now=now, rolling_out=rolling_out) == state
        if state.wanted != before.wanted:
            assert now == state.scaled_at


@given(load=st.integers(0, 100), first=st.integers(1, 8))
def test_a_steady_load_is_served_by_as_many_as_it_calls_for_and_stays_there(
    load: int, first: int
) -> None:
    pool = scaled()

    settled = after(pool, ScalingState(wanted=first), [load] * 400)

    assert min(max(-(-load // 10), 1), 8) == settled.wanted
    assert settled.wanted == after(pool, settled, [load] * 400, start=NOW + 400).wanted
