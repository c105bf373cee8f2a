from __future__ import annotations

import dataclasses

import pytest

from pointsman_serving.routing.breaker import (
    TRANSITIONS,
    Breaker,
    BreakerEvent,
    BreakerState,
)
from pointsman_serving.routing.scheduler import Scheduler
from pointsman_serving.routing.types import LoadReport, Outcome, ReplicaAddress, ReplicaKey
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
        breaker.succeeded(0.0, probe=False, whole=True)
    assert breaker.allows(0.0)


def test_breaker_lets_one_probe_through_when_its_time_is_over() -> None:
    breaker = opened()
    assert not breaker.allows(0.9)
    assert breaker.allows(1.0)
    assert breaker.sent(1.0)
    assert not breaker.allows(1.0)
    assert not breaker.sent(1.0)
    breaker.succeeded(1.5, probe=True, whole=False)
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


@pytest.mark.parametrize(("healthy_seconds", "ejection"), [(7.0, 4.0), (61.0, 1.0)])
def test_ejection_starts_short_again_when_the_replica_was_well_for_a_minute(
    healthy_seconds: float, ejection: float
) -> None:
    breaker = opened()
    breaker.sent(1.0)
    breaker.failed(1.0, hard=False)
    breaker.sent(3.0)
    assert breaker.succeeded(3.0, probe=True, whole=False)
    breaker.failed(3.0 + healthy_seconds, hard=True)
    assert breaker.until == 3.0 + healthy_seconds + ejection


def test_another_probe_may_go_when_the_client_of_the_first_left() -> None:
    breaker = opened()
    breaker.sent(1.0)
    breaker.gave_up(1.2)
    assert breaker.allows(1.2)


def test_next_request_tries_too_when_the_probe_has_not_failed_for_a_while() -> None:
    breaker = opened()
    assert breaker.sent(1.0)
    assert not breaker.allows(2.9)
    assert breaker.serves(2.9)
    assert breaker.allows(3.0)
    assert breaker.sent(3.0)
    # One more each time, not all at once.
    assert not breaker.allows(4.9)
    assert not breaker.sent(4.9)
    assert breaker.allows(5.0)
    assert breaker.succeeded(5.0, probe=True, whole=True)
    assert breaker.state is BreakerState.CLOSED


def test_ejection_doubles_once_when_several_probes_fail() -> None:
    breaker = opened()
    breaker.sent(1.0)
    breaker.sent(3.0)
    assert breaker.failed(4.0, hard=False)
    assert breaker.until == 6.0
    assert not breaker.failed(4.1, hard=False)
    breaker.gave_up(4.2)
    assert (breaker.state, breaker.until) == (BreakerState.OPEN, 6.0)
    assert not breaker.serves(4.2)


def test_old_requests_change_nothing_when_the_breaker_is_open() -> None:
    breaker = opened()
    breaker.succeeded(0.1, probe=False, whole=True)
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


# Streams that break, and failures among answers.


def test_breaker_opens_when_every_stream_breaks_after_its_first_token() -> None:
    breaker = Breaker()
    breaker.succeeded(0.0, probe=False, whole=False)
    assert not breaker.failed(0.1, hard=False)
    breaker.succeeded(0.2, probe=False, whole=False)
    assert breaker.failed(0.3, hard=False)


def test_ejections_grow_when_a_replica_gives_first_tokens_and_never_an_answer() -> None:
    breaker = opened()
    lengths = []
    for _ in range(5):
        now = breaker.until
        assert breaker.sent(now)
        assert breaker.succeeded(now, probe=True, whole=False)
        # It is on probation: one break is enough.
        assert breaker.failed(now, hard=False)
        lengths.append(breaker.until - now)
    assert lengths == [2.0, 4.0, 8.0, 16.0, 32.0]


def test_breaker_opens_when_a_third_of_the_answers_fail_and_never_two_in_a_row() -> None:
    breaker = Breaker()
    for number in range(100):
        if number % 2 == 0:
            breaker.succeeded(0.0, probe=False, whole=True)
        elif breaker.failed(0.0, hard=False):
            break
    assert breaker.state is BreakerState.OPEN


def test_breaker_stays_closed_when_one_answer_in_ten_fails() -> None:
    breaker = Breaker()
    for number in range(500):
        if number % 10 == 9:
            assert not breaker.failed(0.0, hard=False)
        else:
            breaker.succeeded(0.0, probe=False, whole=True)


def test_breaker_stays_closed_when_it_may_not_eject() -> None:
    breaker = Breaker()
    for _ in range(20):
        assert not breaker.failed(0.0, hard=False, may_eject=False)
    assert breaker.allows(0.0)
    assert breaker.failed(0.0, hard=True, may_eject=False)


# Replicas whose health is asked.


def test_time_alone_brings_nobody_back_when_the_health_is_asked() -> None:
    breaker = Breaker(asked=True)
    breaker.failed(0.0, hard=True)
    assert not breaker.wants_health(0.9)
    assert breaker.wants_health(1.0)
    assert not breaker.allows(1_000.0)
    breaker.health(1.0, answered=True)
    assert breaker.state is BreakerState.DUE
    assert breaker.allows(1.0)
    assert breaker.sent(1.0)
    assert not breaker.allows(1.0)


def test_health_is_asked_less_often_up_to_five_seconds_when_it_is_silent() -> None:
    breaker = Breaker(asked=True)
    breaker.failed(0.0, hard=True)
    pauses = []
    for _ in range(4):
        now = breaker.until
        assert breaker.wants_health(now)
        breaker.health(now, answered=False)
        pauses.append(breaker.until - now)
    assert pauses == [2.0, 4.0, 5.0, 5.0]


def test_health_changes_nothing_when_the_replica_is_not_ejected() -> None:
    breaker = Breaker(asked=True)
    for answered in (True, False):
        breaker.health(0.0, answered=answered)
    assert breaker.state is BreakerState.CLOSED
    assert not breaker.wants_health(0.0)


@pytest.mark.parametrize(
    ("asked", "hard", "expected"),
    [(True, True, False), (True, False, True), (False, True, True), (False, False, True)],
)
def test_only_a_lost_replica_is_no_last_resort_when_its_health_is_asked(
    asked: bool, hard: bool, expected: bool
) -> None:
    breaker = Breaker(asked=asked)
    breaker.failed(0.0, hard=hard)
    breaker.failed(0.0, hard=hard)
    assert breaker.state is BreakerState.OPEN
    assert breaker.last_resort is expected
    breaker.health(2.0, answered=True)
    assert breaker.last_resort


# In the scheduler.


def asked_scheduler(*names: str) -> Scheduler:
    scheduler = Scheduler(table_of(pool_entry()), asks_health=True)
    scheduler.set_replicas("dense", healthy(*names), now=0.0)
    return scheduler


def healthy(*names: str) -> list[ReplicaAddress]:
    listed = addresses("dense", *names)
    return [dataclasses.replace(each, health_path="/health") for each in listed]


def test_request_is_held_when_every_replica_is_lost() -> None:
    scheduler = asked_scheduler("a", "b")
    for address in healthy("a", "b"):
        scheduler.failed(address.key, now=0.0, hard=True)
    request = chat("x")
    for now in (0.0, 50.0):
        assert scheduler.decide(request, now=now).outcome is Outcome.NO_REPLICA
        assert not scheduler.has_room(["dense"], now=now)
    assert scheduler.wanting_health(0.5) == []
    assert scheduler.wanting_health(1.0) == healthy("a", "b")
    scheduler.health(healthy("a", "b")[1], now=1.0, answered=True)
    assert scheduler.has_room(["dense"], now=1.0)
    decision = scheduler.decide(request, now=1.0)
    assert decision.winner is not None
    assert decision.winner.key.replica == "b"


def test_pool_has_a_replica_and_no_room_when_its_only_one_is_being_tried() -> None:
    scheduler = asked_scheduler("a")
    (address,) = healthy("a")
    scheduler.failed(address.key, now=0.0, hard=True)
    assert not scheduler.has_replica(["dense"], now=1.0)
    scheduler.health(address, now=1.0, answered=True)
    request = chat("x", stream=False)
    ticket = scheduler.dispatch(request, scheduler.decide(request, now=1.0), now=1.0)
    assert ticket.probe
    assert scheduler.has_replica(["dense"], now=1.0)
    assert not scheduler.has_room(["dense"], now=2.9)
    assert scheduler.has_room(["dense"], now=3.0)
    scheduler.finish(ticket, now=60.0, ok=True)
    assert scheduler.has_room(["dense"], now=60.0)


def test_request_waits_when_one_replica_is_lost_and_the_other_full() -> None:
    scheduler = asked_scheduler("a", "b")
    scheduler.failed(ReplicaKey("dense", "a"), now=0.0, hard=True)
    while (decision := scheduler.decide(chat("x"), now=0.0)).winner is not None:
        scheduler.dispatch(chat("x"), decision, now=0.0)
    assert decision.outcome is Outcome.WAIT


def test_health_of_another_life_is_ignored_when_the_replica_has_moved() -> None:
    scheduler = asked_scheduler("a", "b")
    (old, _) = healthy("a", "b")
    moved = dataclasses.replace(old, port=9_999)
    scheduler.set_replicas("dense", [moved], now=0.0)
    scheduler.failed(old.key, now=0.0, hard=True)
    scheduler.health(old, now=1.0, answered=True)
    assert not scheduler.has_room(["dense"], now=1.0)


@pytest.mark.parametrize(("replicas", "most"), [(1, 1), (2, 1), (5, 2), (8, 4)])
def test_no_more_than_half_are_ejected_when_all_answer_badly(replicas: int, most: int) -> None:
    names = "abcdefgh"[:replicas]
    scheduler = asked_scheduler(*names)
    for _ in range(10):
        for address in healthy(*names):
            scheduler.failed(address.key, now=0.0)
    (pool,) = scheduler.snapshot().pools
    assert most == sum(each.breaker is BreakerState.OPEN for each in pool.replicas)
    assert most == pool.ejections


def test_all_are_ejected_when_none_can_be_connected_to() -> None:
    scheduler = asked_scheduler(*"abcd")
    for address in healthy(*"abcd"):
        scheduler.failed(address.key, now=0.0, hard=True)
    (pool,) = scheduler.snapshot().pools
    assert {each.breaker for each in pool.replicas} == {BreakerState.OPEN}


# Another engine under the same name.


def test_what_was_learned_is_forgotten_when_the_engines_life_changes() -> None:
    scheduler = asked_scheduler("a")
    key = ReplicaKey("dense", "a")
    assert not scheduler.instance(key, "01", now=0.0)
    request = chat(text(1, 4_000))
    ticket = scheduler.dispatch(request, scheduler.decide(request, now=0.0), now=0.0)
    scheduler.first_token(ticket, now=0.1)
    scheduler.finish(ticket, now=0.2, ok=True)
    scheduler.report(key, LoadReport(waiting_requests=9.0), now=0.2)
    scheduler.failed(key, now=0.2)

    def predicted() -> tuple[int, float]:
        winner = scheduler.decide(request, now=0.3).winner
        assert winner is not None
        return winner.predicted_cached_tokens, winner.predicted_ttft_seconds

    cached, loaded = predicted()
    assert cached > 0
    assert not scheduler.instance(key, "01", now=0.3)
    assert predicted() == (cached, loaded)
    assert scheduler.instance(key, "02", now=0.3)
    (pool,) = scheduler.snapshot().pools
    assert (pool.restarts, pool.replicas[0].cached_blocks) == (1, 0)
    assert predicted()[0] == 0
    # One more failure is the first again.
    scheduler.failed(key, now=0.3)
    assert scheduler.snapshot().pools[0].replicas[0].breaker is BreakerState.CLOSED


def test_reports_of_a_life_that_is_over_do_not_count_when_another_begins() -> None:
    scheduler = asked_scheduler("a", "b")
    key = ReplicaKey("dense", "a")
    scheduler.instance(key, "01", now=0.0)
    scheduler.report(key, LoadReport(waiting_requests=50.0), now=0.0)
    scheduler.instance(key, "02", now=0.0)
    decision = scheduler.decide(chat("x"), now=0.0, explain=True)
    first, second = decision.candidates
    assert first.predicted_ttft_seconds == second.predicted_ttft_seconds


def test_late_answers_of_the_life_before_teach_nothing_when_another_has_begun() -> None:
    scheduler = asked_scheduler("a")
    key = ReplicaKey("dense", "a")
    scheduler.instance(key, "01", now=0.0)
    request = chat(text(1, 4_000))
    ticket = scheduler.dispatch(request, scheduler.decide(request, now=0.0), now=0.0)
    scheduler.instance(key, "02", now=0.1)
    scheduler.first_token(ticket, now=0.2)
    scheduler.finish(ticket, now=0.3, ok=True)
    (replica,) = scheduler.snapshot().pools[0].replicas
    assert (replica.cached_blocks, replica.in_flight) == (0, 0)
