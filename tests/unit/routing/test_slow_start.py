from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pointsman_serving.routing.breaker import BreakerState
from pointsman_serving.routing.scheduler import Scheduler
from pointsman_serving.routing.slow_start import effective_slots
from pointsman_serving.routing.types import ReplicaKey
from tests.unit.routing.fleet import addresses, chat, pool_entry, table_of

seconds = st.floats(min_value=0.0, max_value=100.0)


@given(slots=st.integers(1, 1024), ages=st.lists(seconds, min_size=2), over=seconds)
def test_slots_grow_from_one_at_least_to_all_when_a_replica_grows_older(
    slots: int, ages: list[float], over: float
) -> None:
    found = [effective_slots(slots, age, over_seconds=over) for age in sorted(ages)]
    assert found == sorted(found)
    assert 1 <= found[0]
    assert found[-1] <= slots
    assert slots == effective_slots(slots, over, over_seconds=over)
    assert max(1, slots // 10) >= effective_slots(slots, -1.0, over_seconds=over + 1.0)


def scheduler_of(*names: str, slots: int = 40, slow_start_seconds: float = 10.0) -> Scheduler:
    scheduler = Scheduler(table_of(pool_entry()), slow_start_seconds=slow_start_seconds)
    scheduler.set_replicas("dense", addresses("dense", *names, slots=slots), now=100.0)
    return scheduler


def room(scheduler: Scheduler, name: str, *, now: float, others: str = "") -> int:
    """How many requests a replica takes; they all end at once."""
    exclude = {ReplicaKey("dense", other) for other in others}
    tickets = []
    while (decision := scheduler.decide(chat("x"), now=now, exclude=exclude)).winner is not None:
        assert decision.winner.key.replica == name
        tickets.append(scheduler.dispatch(chat("x"), decision, now=now))
    for ticket in tickets:
        scheduler.finish(ticket, now=now, ok=False)
    return len(tickets)


def test_all_slots_are_there_when_the_whole_pool_is_new() -> None:
    assert room(scheduler_of("a", "b"), "a", now=100.0, others="b") == 40 + 2


def test_newcomer_gets_its_slots_by_and_by_when_the_pool_had_others() -> None:
    scheduler = scheduler_of("a")
    scheduler.set_replicas("dense", addresses("dense", "a", "b", slots=40), now=200.0)
    found = [room(scheduler, "b", now=now, others="a") for now in (200.0, 205.0, 210.0, 300.0)]
    assert found == [4 + 1, 22 + 1, 40 + 2, 40 + 2]
    # The veteran has all of its own throughout.
    assert room(scheduler, "a", now=200.0, others="b") == 42


def test_newcomers_get_all_slots_when_the_others_are_new_too() -> None:
    scheduler = scheduler_of("a")
    scheduler.set_replicas("dense", addresses("dense", "a", "b", slots=40), now=101.0)
    assert room(scheduler, "b", now=101.0, others="a") == 42


def test_all_slots_are_there_at_once_when_slow_start_is_off() -> None:
    scheduler = scheduler_of("a", slow_start_seconds=0.0)
    scheduler.set_replicas("dense", addresses("dense", "a", "b", slots=40), now=200.0)
    assert room(scheduler, "b", now=200.0, others="a") == 42


def back(scheduler: Scheduler, name: str, *, now: float) -> None:
    """Eject a replica and bring it back by a probe."""
    scheduler.failed(ReplicaKey("dense", name), now=now - 1.0, hard=True)
    others = {ReplicaKey("dense", other) for other in "ab" if other != name}
    decision = scheduler.decide(chat("x"), now=now, exclude=others)
    ticket = scheduler.dispatch(chat("x"), decision, now=now)
    scheduler.first_token(ticket, now=now)
    scheduler.finish(ticket, now=now, ok=True)
    snapshots = {each.key.replica: each for each in scheduler.snapshot().pools[0].replicas}
    assert snapshots[name].breaker is BreakerState.CLOSED


def test_replica_starts_slowly_when_it_is_back_from_an_ejection() -> None:
    scheduler = scheduler_of("a", "b")
    back(scheduler, "b", now=200.0)
    assert room(scheduler, "b", now=200.0, others="a") == 5
    assert room(scheduler, "b", now=210.0, others="a") == 42


def test_replica_gets_all_slots_when_it_is_the_first_that_is_back() -> None:
    scheduler = scheduler_of("a", "b")
    scheduler.failed(ReplicaKey("dense", "a"), now=200.0, hard=True)
    back(scheduler, "b", now=200.5)
    assert room(scheduler, "b", now=200.5, others="a") == 42


def test_room_is_seen_when_a_cold_replica_has_grown_warm() -> None:
    scheduler = scheduler_of("a")
    scheduler.set_replicas("dense", addresses("dense", "a", "b", slots=40), now=200.0)
    while (decision := scheduler.decide(chat("x"), now=200.0)).winner is not None:
        scheduler.dispatch(chat("x"), decision, now=200.0)
    assert not scheduler.has_room(["dense"], now=200.0)
    assert scheduler.has_room(["dense"], now=203.0)


def test_limit_stays_low_when_the_same_list_is_told_again() -> None:
    scheduler = scheduler_of("a")
    for now in (200.0, 201.0):
        scheduler.set_replicas("dense", addresses("dense", "a", "b", slots=40), now=now)
    assert room(scheduler, "b", now=200.0, others="a") == 5
