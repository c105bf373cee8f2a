from __future__ import annotations

import pytest

from pointsman_serving.routing.breaker import (
    TRANSITIONS,
    Breaker,
    BreakerEvent,
    BreakerState,
)
from pointsman_serving.routing.scheduler import Scheduler
from tests.unit.routing.fleet import addresses, chat, pool_entry, table_of, text


def opened(*, now: float = 0.0) -> Breaker:
    breaker = Breaker()
    assert breaker.failed(now, hard=True)
    return breaker


def test_breaker_opens_when_two_failures_follow_each_other() -> None:
    breaker = Breaker()
    assert not breaker.failed(0.0, hard=False)
    assert breaker.allows(0.0)
    assert breaker.failed(0.0, hard=False)
    assert not breaker.allows(0.0)


def test_breaker_stays_closed_when_a_success_comes_between_failures() -> None:
    breaker = Breaker()
    for _ in range(5):
        breaker.failed(0.0, hard=False)
        breaker.succeeded(0.0, probe=False)
    assert breaker.allows(0.0)


def test_breaker_lets_one_probe_through_when_its_time_is_over() -> None:
    breaker = opened()
    assert not breaker.allows(0.9)
    assert breaker.allows(1.0)
    assert breaker.sent(1.0)
    assert not breaker.allows(1.0)
    assert not breaker.sent(1.0)
    breaker.succeeded(1.5, probe=True)
    assert breaker.state is BreakerState.CLOSED


def test_ejection_doubles_up_to_a_minute_when_probes_fail() -> None:
    breaker = opened()
    now, lengths = 0.0, []
    for _ in range(8):
        lengths.append(breaker.until - now)
        now = breaker.until
        breaker.sent(now)
        breaker.failed(now, hard=False)
    assert lengths == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0]


@pytest.mark.parametrize("told_first", [True, False])
def test_ejection_doubles_when_the_probes_end_and_its_failure_come_in_any_order(
    told_first: bool,
) -> None:
    breaker = opened()
    lengths = []
    for _ in range(4):
        now = breaker.until
        assert breaker.sent(now)
        for told in (told_first, not told_first):
            if told:
                breaker.failed(now, hard=False)
            else:
                breaker.gave_up(now)
        lengths.append(breaker.until - now)
    assert lengths == [2.0, 4.0, 8.0, 16.0]


@pytest.mark.parametrize("told_first", [True, False])
def test_a_dead_replica_is_probed_a_few_times_when_it_stays_dead_for_long(told_first: bool) -> None:
    scheduler = Scheduler(table_of(pool_entry()))
    scheduler.set_replicas("dense", addresses("dense", "dead", "alive"), now=0.0)
    probes = 0
    for number in range(2_000):
        now = number / 20
        request = chat(text(number, 400))
        decision = scheduler.decide(request, now=now)
        ticket = scheduler.dispatch(request, decision, now=now)
        if ticket.key.replica == "alive":
            scheduler.finish(ticket, now=now, ok=True)
            continue
        probes += 1
        if told_first:
            scheduler.failed(ticket.key, now=now)
        scheduler.finish(ticket, now=now, ok=False)
        if not told_first:
            scheduler.failed(ticket.key, now=now)
    # Two until it is ejected, then after 1, 2, 4, 8, 16 and 32 s.
    assert 4 <= probes <= 8


def test_ejection_starts_short_again_when_a_probe_succeeded() -> None:
    breaker = opened()
    breaker.sent(1.0)
    breaker.failed(1.0, hard=False)
    breaker.sent(3.0)
    breaker.succeeded(3.0, probe=True)
    breaker.failed(10.0, hard=True)
    assert breaker.until == 11.0


def test_another_probe_may_go_when_the_client_of_the_first_left() -> None:
    breaker = opened()
    breaker.sent(1.0)
    breaker.gave_up(1.2)
    assert breaker.allows(1.2)


def test_old_requests_change_nothing_when_the_breaker_is_open() -> None:
    breaker = opened()
    breaker.succeeded(0.1, probe=False)
    breaker.failed(0.1, hard=True)
    breaker.gave_up(0.1)
    assert breaker.state is BreakerState.OPEN
    assert breaker.until == 1.0


@pytest.mark.parametrize("state", BreakerState)
def test_every_state_can_be_left_and_reached(state: BreakerState) -> None:
    assert any(before is state and after is not state for (before, _), after in TRANSITIONS.items())
    assert any(after is state for after in TRANSITIONS.values())


def test_every_event_has_a_transition() -> None:
    assert {event for _, event in TRANSITIONS} == set(BreakerEvent)
