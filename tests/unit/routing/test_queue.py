from __future__ import annotations

import gc
import itertools
import weakref
from collections import defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pointsman_serving.routing.place import Place
from pointsman_serving.routing.queue import WaitQueue

RULE = ("policy", "rule")
OTHER_RULE = ("policy", "other")
LANE = frozenset({"p"})
OTHER_LANE = frozenset({"q"})
NO_LIMIT = 1 << 30


def place(tenant: str = "t", **fields: object) -> Place:
    return Place(**{"rule": RULE, "lane": LANE, "tenant": tenant, **fields})  # type: ignore[arg-type]


def queue_of(*waiting: tuple[str, Place], limit: int = NO_LIMIT) -> WaitQueue[str]:
    queue: WaitQueue[str] = WaitQueue(limit=limit)
    for name, where in waiting:
        assert join(queue, name, where)
    return queue


def join(queue: WaitQueue[str], name: str, where: Place, *, rule_limit: int = NO_LIMIT) -> bool:
    return queue.join(name, where, rule_limit=rule_limit, now=0.0).accepted


def order(queue: WaitQueue[str], *lanes: frozenset[str]) -> list[str]:
    return list(queue.in_order(set(lanes or (LANE, OTHER_LANE))))


def served(queue: WaitQueue[str], count: int) -> list[str]:
    """Let so many go, each the first of all."""
    gone = []
    for _ in range(count):
        gone.append(next(queue.in_order({LANE, OTHER_LANE})))
        queue.admit(gone[-1], now=0.0)
    return gone


# Order.


def test_order_is_by_arrival_when_nothing_else_differs() -> None:
    queue = queue_of(*((name, place()) for name in "abc"))
    assert order(queue) == ["a", "b", "c"]


def test_order_is_by_priority_when_priorities_differ() -> None:
    queue = queue_of(
        ("low", place(priority=-3)),
        ("middle", place("other")),
        ("high", place(priority=7, lane=OTHER_LANE, rule=OTHER_RULE)),
    )
    assert order(queue) == ["high", "middle", "low"]
    assert list(queue.in_order({LANE, OTHER_LANE}, least_priority=0)) == ["high", "middle"]


def test_order_is_by_deadline_when_the_tenant_is_one() -> None:
    queue = queue_of(("late", place(deadline=9.0)), ("soon", place(deadline=1.0)))
    assert order(queue) == ["soon", "late"]


def test_order_puts_those_tried_again_first_when_they_have_the_same_priority() -> None:
    queue = queue_of(
        ("first", place(deadline=0.0)),
        ("again", place(again=True, arrived_at=5.0, deadline=99.0)),
        ("older again", place("u", again=True, arrived_at=2.0, deadline=99.0)),
        ("high", place(priority=1)),
    )
    assert order(queue) == ["high", "older again", "again", "first"]


def test_order_gives_a_tenant_its_turn_when_another_has_a_thousand_waiting() -> None:
    queue = queue_of(*((f"a{n}", place("a")) for n in range(1000)))
    served(queue, 10)
    join(queue, "b", place("b"))
    assert order(queue)[0] == "b"


def test_order_alternates_by_tokens_when_one_tenants_requests_are_larger() -> None:
    queue = queue_of(
        *((f"large{n}", place("large", cost_tokens=300.0)) for n in range(4)),
        *((f"small{n}", place("small", cost_tokens=100.0)) for n in range(12)),
    )
    assert order(queue) == served(queue, 16)
    queue = queue_of(
        *((f"large{n}", place("large", cost_tokens=300.0)) for n in range(4)),
        *((f"small{n}", place("small", cost_tokens=100.0)) for n in range(12)),
    )
    gone = served(queue, 8)
    assert sum(name.startswith("small") for name in gone) == 6


def test_order_leaves_out_lanes_when_they_are_closed_meanwhile() -> None:
    queue = queue_of(
        *((f"p{n}", place("a")) for n in range(3)),
        *((f"q{n}", place("b", lane=OTHER_LANE)) for n in range(3)),
    )
    lanes = {LANE, OTHER_LANE}
    found = []
    for name in queue.in_order(lanes):
        found.append(name)
        if name == "p0":
            lanes.discard(LANE)
    assert found == ["p0", "q0", "q1", "q2"]


def test_order_goes_on_when_waiters_leave_meanwhile() -> None:
    queue = queue_of(*((f"{n}", place(f"t{n % 3}")) for n in range(9)))
    found = []
    for name in queue.in_order({LANE}):
        found.append(name)
        queue.admit(name, now=0.0)
        queue.leave(str(int(name) + 1), now=0.0)
    assert found == ["0", "4", "2", "6", "8"]
    assert len(queue) == 0


def test_tenant_is_not_in_front_when_it_comes_back_at_once() -> None:
    queue = queue_of(
        ("a0", place("a", cost_tokens=1000.0)),
        *((f"b{n}", place("b", cost_tokens=100.0)) for n in range(20)),
    )
    assert served(queue, 1) == ["a0"]
    join(queue, "a1", place("a", cost_tokens=1000.0))
    assert served(queue, 12) == [*(f"b{n}" for n in range(11)), "a1"]


def test_lane_is_owed_nothing_when_it_had_no_replica() -> None:
    queue = queue_of(
        *((f"p{n}", place("a", cost_tokens=100.0)) for n in range(50)),
        *((f"q{n}", place("b", lane=OTHER_LANE, cost_tokens=100.0)) for n in range(50)),
    )
    queue.set_cold(LANE, True, now=0.0)
    for name in itertools.islice(list(queue.in_order({OTHER_LANE})), 20):
        queue.admit(name, now=0.0)
    queue.set_cold(LANE, False, now=1.0)
    assert {name[0] for name in served(queue, 4)} == {"p", "q"}


def test_lane_has_a_shared_pool_to_itself_when_it_was_full_but_not_for_long() -> None:
    both = LANE | OTHER_LANE
    queue = queue_of(
        *((f"p{n}", place("a", cost_tokens=10_000.0)) for n in range(50)),
        *((f"b{n}", place("b", lane=both, cost_tokens=10_000.0)) for n in range(100)),
    )

    def next_of(*lanes: frozenset[str]) -> str:
        name = next(queue.in_order(set(lanes)))
        queue.admit(name, now=0.0)
        return name

    for _ in range(40):
        next_of(both)
    order_of_p = [next_of(LANE, both)[0] for _ in range(20)]
    # What the others had elsewhere is made up for, up to 100,000 tokens.
    assert order_of_p[:10] == ["p"] * 10
    assert order_of_p[10:].count("b") >= 4


# Bounds.


def test_newcomer_is_refused_when_its_rule_is_full() -> None:
    queue: WaitQueue[str] = WaitQueue(limit=NO_LIMIT)
    assert [join(queue, name, place(), rule_limit=2) for name in "abc"] == [True, True, False]
    assert join(queue, "d", place(rule=OTHER_RULE), rule_limit=2)
    assert join(queue, "again", place(again=True), rule_limit=2)
    assert queue.depths() == {RULE: 3, OTHER_RULE: 1}


def test_nobody_waits_when_the_limit_is_zero() -> None:
    assert not join(queue_of(), "a", place(), rule_limit=0)


def test_newest_of_the_largest_tenant_is_pushed_out_when_the_rule_is_full() -> None:
    queue = queue_of(*((f"a{n}", place("a")) for n in range(4)))
    joined = queue.join("b0", place("b"), rule_limit=4, now=0.0)
    assert (joined.accepted, joined.pushed_out) == (True, "a3")
    joined = queue.join("b1", place("b"), rule_limit=4, now=0.0)
    assert (joined.accepted, joined.pushed_out) == (True, "a2")
    # Two against two: a third would be more than the other's.
    assert not join(queue, "b2", place("b"), rule_limit=4)
    assert sorted(order(queue)) == ["a0", "a1", "b0", "b1"]
    queue.leave("b1", now=0.0)
    # Two against one: a second would only turn the two round.
    assert not join(queue, "b3", place("b"), rule_limit=3)


def test_newest_of_the_lowest_priority_is_pushed_out_when_all_is_full() -> None:
    queue = queue_of(
        ("low0", place(priority=-1)),
        ("low1", place(priority=-1)),
        ("again", place(priority=-2, again=True)),
        ("middle", place(priority=0)),
        limit=4,
    )
    joined = queue.join("high", place(priority=5, rule=OTHER_RULE), rule_limit=9, now=0.0)
    assert (joined.accepted, joined.pushed_out) == (True, "low1")
    assert not join(queue, "low2", place(priority=-1))
    assert order(queue) == ["high", "middle", "low0", "again"]


def test_queue_refuses_to_take_one_twice_when_it_waits() -> None:
    queue = queue_of(("a", place()))
    with pytest.raises(ValueError, match="'a' waits already"):
        queue.join("a", place(), rule_limit=9, now=0.0)


def test_queue_fails_when_one_is_let_go_that_does_not_wait() -> None:
    with pytest.raises(LookupError, match="'a' does not wait"):
        queue_of().admit("a", now=0.0)


def test_queue_forgets_who_leaves_when_not_served() -> None:
    queue = queue_of(("a", place()))
    assert queue.leave("a", now=0.0)
    assert not queue.leave("a", now=0.0)
    assert (len(queue), queue.depths(), queue.lanes()) == (0, {}, [])


def test_queue_keeps_no_waiter_alive_when_it_has_left() -> None:
    class Request:
        pass

    queue: WaitQueue[Request] = WaitQueue(limit=9)
    stays, leaves = Request(), Request()
    for request in (stays, leaves):
        queue.join(request, place(), rule_limit=9, now=0.0)
    queue.leave(leaves, now=0.0)
    trace = weakref.ref(leaves)
    del leaves, request
    gc.collect()
    assert trace() is None


@pytest.mark.pain_24
def test_queue_keeps_no_state_of_tenants_when_a_hundred_thousand_have_come_and_gone() -> None:
    queue = queue_of(*((f"stays{n}", place("stays", cost_tokens=1.0)) for n in range(3)))
    for number in range(100_000):
        name = f"r{number}"
        join(queue, name, place(f"t{number}", cost_tokens=1e9))
        if number % 2:
            queue.leave(name, now=0.0)
        else:
            queue.admit(name, now=0.0)
    (lane,) = queue._bands[0].lanes.values()
    (line,) = queue._rules.values()
    sizes = [
        len(lane._flows),
        len(lane._finished),
        len(lane._finished_order),
        len(lane._next._items),
        len(line._tenants),
        len(line._most),
    ]
    assert max(sizes) <= 1100
    assert len(queue) == 3


# Time.


def test_time_ends_with_the_queues_limit_when_there_are_replicas() -> None:
    queue = queue_of(("a", place(queue_seconds=30.0, cold_seconds=300.0)))
    entry = queue.find("a")
    assert entry is not None
    assert entry.expires_at == 30.0


def test_time_goes_on_where_it_stopped_when_replicas_leave_and_return() -> None:
    queue = queue_of(("a", place(queue_seconds=30.0, cold_seconds=300.0)))
    entry = queue.find("a")
    assert entry is not None
    assert queue.set_cold(LANE, True, now=10.0) == ["a"]
    assert entry.expires_at == 310.0
    assert queue.set_cold(LANE, True, now=11.0) == []
    assert queue.set_cold(LANE, False, now=60.0) == ["a"]
    assert entry.expires_at == 60.0 + 20.0
    queue.set_cold(LANE, True, now=70.0)
    assert entry.expires_at == 70.0 + 250.0


def test_time_ends_earlier_when_a_latest_is_stated() -> None:
    queue = queue_of(("a", place(latest=2.0)))
    entry = queue.find("a")
    assert entry is not None
    assert entry.expires_at == 2.0


def test_wait_is_estimated_when_departures_are_known() -> None:
    queue = queue_of(*((f"{n}", place()) for n in range(10)))
    assert queue.wait_seconds(place(), departures=1, now=0.0) is None
    for second in (2.0, 4.0, 6.0, 8.0):
        queue.admit(next(queue.in_order({LANE})), now=second)
    assert queue.wait_seconds(place(), departures=5, now=8.0) is None
    # Six are ahead, one leaves every two seconds; the next is counted as if it had.
    assert queue.wait_seconds(place(), departures=4, now=8.0) == pytest.approx(6 * 8 / 5, rel=0.15)
    # Another tenant's first waits for one.
    assert queue.wait_seconds(place("u"), departures=4, now=8.0) == pytest.approx(8 / 5, rel=0.15)
    assert queue.wait_seconds(place(priority=1), departures=0, now=8.0) is None


def test_position_is_that_of_its_turn_when_tenants_share() -> None:
    queue = queue_of(*((f"a{n}", place("a")) for n in range(5)), ("b", place("b")))
    queue.join("q", place(lane=OTHER_LANE, priority=9), rule_limit=9, now=0.0)
    numbers = {name: entry.number for name in queue.waiters() if (entry := queue.find(name))}
    places = queue.positions(LANE, most=3)
    assert places == {numbers["a0"]: 1, numbers["b"]: 2, numbers["a1"]: 3}
    assert queue.seconds_behind(5, place(), departures=1, now=0.0) is None
    queue.admit("a0", now=3.0)
    assert queue.seconds_behind(5, place(), departures=1, now=3.0) == pytest.approx(7.5, rel=0.15)


def test_rates_are_forgotten_when_their_lane_is_no_longer_in_the_table() -> None:
    queue = queue_of(("a", place()), ("b", place(lane=OTHER_LANE)), ("c", place(priority=1)))
    for name in "bc":
        queue.admit(name, now=1.0)
    queue.retain([(1, LANE)])
    assert set(queue._rates) == {(0, LANE), (1, LANE)}


# Laws.

_COSTS = st.lists(st.integers(1, 500), min_size=1, max_size=12)


@settings(deadline=None, max_examples=150)
@given(st.dictionaries(st.sampled_from("abcde"), _COSTS, min_size=2), st.randoms())
def test_tenants_share_equally_when_they_all_wait(
    costs: dict[str, list[int]], random: object
) -> None:
    """Start-time fair queueing's bound: a request of each at most between two that both wait."""
    requests = [(tenant, n, cost) for tenant, all_ in costs.items() for n, cost in enumerate(all_)]
    random.shuffle(requests)  # type: ignore[attr-defined]
    queue = queue_of(
        *((f"{tenant} {n}", place(tenant, cost_tokens=cost)) for tenant, n, cost in requests)
    )
    tokens: dict[str, int] = defaultdict(int)
    waiting = {tenant: len(all_) for tenant, all_ in costs.items()}
    while len(queue):
        (name,) = served(queue, 1)
        tenant, number = name.split()
        tokens[tenant] += costs[tenant][int(number)]
        waiting[tenant] -= 1
        for one, other in itertools.combinations([t for t in waiting if waiting[t]], 2):
            assert abs(tokens[one] - tokens[other]) <= max(costs[one]) + max(costs[other])


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 300)), min_size=1, max_size=40),
    st.integers(0, 40),
)
def test_newcomers_first_waits_for_one_of_each_other_tenant_at_most_when_it_joins(
    others: list[tuple[str, int]], after: int
) -> None:
    queue = queue_of(
        *((f"{t} {n}", place(t, cost_tokens=cost)) for n, (t, cost) in enumerate(others))
    )
    served(queue, min(after, len(others)))
    join(queue, "new 0", place("new", cost_tokens=500.0))
    before: dict[str, int] = defaultdict(int)
    while True:
        (name,) = served(queue, 1)
        if name == "new 0":
            break
        before[name.split()[0]] += 1
    assert all(count <= 1 for count in before.values())


class Queues(RuleBasedStateMachine):
    """Joining, going and leaving in any order, against a plain model of who waits."""

    RULE_LIMIT = 6
    LIMIT = 10

    def __init__(self) -> None:
        super().__init__()
        self.queue: WaitQueue[int] = WaitQueue(limit=self.LIMIT)
        self.model: dict[int, Place] = {}
        self.number = 0

    @rule(
        tenant=st.sampled_from("abc"),
        priority=st.sampled_from([-1, 0, 3]),
        lane=st.sampled_from([LANE, OTHER_LANE, LANE | OTHER_LANE]),
        cost=st.integers(1, 100),
        deadline=st.integers(0, 5),
        again=st.booleans(),
        cold=st.booleans(),
    )
    def join(
        self,
        tenant: str,
        priority: int,
        lane: frozenset[str],
        cost: int,
        deadline: int,
        again: bool,
        cold: bool,
    ) -> None:
        self.number += 1
        where = Place(
            rule=("policy", f"{priority}"),
            lane=lane,
            priority=priority,
            tenant=tenant,
            cost_tokens=cost,
            deadline=deadline,
            arrived_at=self.number,
            again=again,
        )
        of_rule = self.queue.depth(where.rule)
        whole = len(self.queue)
        joined = self.queue.join(
            self.number, where, rule_limit=self.RULE_LIMIT, now=self.number, cold=cold
        )
        if joined.pushed_out is not None:
            lost = self.model.pop(joined.pushed_out)
            assert not lost.again
            if of_rule >= self.RULE_LIMIT:
                assert (lost.rule, lost.tenant != tenant) == (where.rule, True)
            else:
                assert lost.priority < priority
        if again or (of_rule < self.RULE_LIMIT and whole < self.LIMIT):
            assert (joined.accepted, joined.pushed_out) == (True, None)
        if joined.accepted:
            self.model[self.number] = where

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        waiter = data.draw(st.sampled_from(sorted(self.model)))
        assert self.queue.leave(waiter, now=self.number)
        del self.model[waiter]

    @precondition(lambda self: self.model)
    @rule(lane=st.sampled_from([LANE, OTHER_LANE, LANE | OTHER_LANE]))
    def let_the_first_go(self, lane: frozenset[str]) -> None:
        waiter = next(self.queue.in_order({lane}), None)
        here = {number: where for number, where in self.model.items() if where.lane == lane}
        # Work conservation: whoever waits in a lane that is open is offered.
        assert (waiter is None) == (not here)
        if waiter is None:
            return
        where = self.model.pop(waiter)
        assert where.priority == max(other.priority for other in here.values())
        rivals = [other for other in here.values() if other.priority == where.priority]
        assert where.again == any(other.again for other in rivals)
        if not where.again:
            own = [other.deadline for other in rivals if other.tenant == where.tenant]
            assert where.deadline == min(own)
        self.queue.admit(waiter, now=self.number)

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def let_any_go(self, data: st.DataObject) -> None:
        waiter = data.draw(st.sampled_from(sorted(self.model)))
        self.queue.admit(waiter, now=self.number)
        del self.model[waiter]

    @rule(lane=st.sampled_from([LANE, OTHER_LANE]), cold=st.booleans())
    def replicas_change(self, lane: frozenset[str], cold: bool) -> None:
        self.queue.set_cold(lane, cold, now=self.number)

    @invariant()
    def all_are_offered_once(self) -> None:
        lanes = {LANE, OTHER_LANE, LANE | OTHER_LANE}
        offered = list(self.queue.in_order(lanes))
        assert sorted(offered) == sorted(self.model)
        priorities = [self.model[waiter].priority for waiter in offered]
        assert priorities == sorted(priorities, reverse=True)

    @invariant()
    def counts_are_those_of_the_model(self) -> None:
        assert len(self.queue) == len(self.model)
        depths: dict[tuple[str, str], int] = defaultdict(int)
        for where in self.model.values():
            depths[where.rule] += 1
        assert self.queue.depths() == depths
        assert set(self.queue.lanes()) == {where.lane for where in self.model.values()}
        refusable = [where for where in self.model.values() if not where.again]
        assert len(refusable) <= self.LIMIT
        assert max((depths[w.rule] for w in refusable), default=0) <= self.RULE_LIMIT + len(
            self.model
        ) - len(refusable)

    def teardown(self) -> None:
        for waiter in self.model:
            assert self.queue.leave(waiter, now=self.number)
        queue = self.queue
        assert (len(queue), queue._bands, queue._rules, queue._lanes) == (0, {}, {}, {})
        assert queue._priorities == []


Queues.TestCase.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
test_queue_keeps_its_promises_when_driven_at_random = Queues.TestCase
