"""What holds after any sequence of events."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pointsman_api.route_table import LatencyObjective, Overload, OverloadAction
from pointsman_serving.routing.scheduler import Scheduler
from pointsman_serving.routing.types import (
    Api,
    Decision,
    LoadReport,
    Outcome,
    ReplicaAddress,
    ReplicaKey,
    RouteRequest,
    Usage,
)
from tests.unit.routing.fleet import addresses, chat, pool_entry, table_of, text

if TYPE_CHECKING:
    from pointsman_serving.routing.snapshot import SchedulerSnapshot
    from pointsman_serving.routing.ticket import Ticket

POOLS = ("p", "q")
TABLE = table_of(
    pool_entry("p", context_tokens=4_000, quality={"Default": 0.6}),
    pool_entry("q", engine="Simulated"),
    slo=LatencyObjective(ttft_seconds=1.0),
    overload=Overload(action=OverloadAction.REJECT),
)
KEYS = [ReplicaKey(pool, name) for pool in POOLS for name in "abc"]

seconds = st.floats(0.0, 20.0)
fractions = st.floats(0.0, 1.0)
counts = st.none() | st.integers(0, 400) | st.integers(-(10**20), 10**20)
usages = st.none() | st.builds(
    Usage, prompt_tokens=counts, completion_tokens=counts, cached_tokens=counts
)
events = st.one_of(
    st.tuples(st.just("send"), st.integers(0, 5), st.sampled_from([10, 900, 9_000]), st.booleans()),
    st.tuples(st.just("first"), fractions),
    st.tuples(st.just("tokens"), fractions, st.integers(0, 50)),
    st.tuples(st.just("finish"), fractions, st.booleans(), usages),
    st.tuples(st.just("again"), fractions),
    st.tuples(st.just("replicas"), st.sampled_from(POOLS), st.sets(st.sampled_from("abc"))),
    st.tuples(st.just("report"), st.sampled_from(KEYS), st.floats(), st.floats()),
    st.tuples(st.just("failed"), st.sampled_from(KEYS), st.booleans()),
    st.tuples(st.just("table"), st.booleans()),
    st.tuples(st.just("instance"), st.sampled_from(KEYS), st.sampled_from(["01", "02"])),
    st.tuples(st.just("health"), st.booleans()),
)
histories = st.lists(st.tuples(st.floats(0.0, 2.0), events), max_size=60)


def listing(pool: str, *names: str) -> list[ReplicaAddress]:
    """The replicas of ``p`` can be asked for their health, those of ``q`` cannot."""
    path = "/health" if pool == "p" else ""
    return [dataclasses.replace(each, health_path=path) for each in addresses(pool, *names)]


@dataclass
class Run:
    """A scheduler after a history, and what it did."""

    scheduler: Scheduler
    now: float = 0.0
    open: list[Ticket] = field(default_factory=list)
    closed: list[Ticket] = field(default_factory=list)
    decisions: list[Decision] = field(default_factory=list)

    def act(self, number: int, event: tuple) -> None:  # type: ignore[type-arg]
        match event:
            case ("send", seed, size, stream):
                self._send(f"r{number}", seed, size, stream)
            case ("first", where) if self.open:
                self.scheduler.first_token(self._pick(where), now=self.now)
            case ("tokens", where, count) if self.open:
                self.scheduler.tokens(self._pick(where), count, now=self.now)
            case ("finish", where, ok, usage) if self.open:
                ticket = self._pick(where)
                self.open.remove(ticket)
                self.closed.append(ticket)
                self.scheduler.finish(ticket, now=self.now, ok=ok, usage=usage)
            case ("again", where) if self.closed:
                ticket = self.closed[int(where * (len(self.closed) - 1))]
                self.scheduler.first_token(ticket, now=self.now)
                self.scheduler.tokens(ticket, 3, now=self.now)
                self.scheduler.finish(ticket, now=self.now, ok=True, usage=Usage(prompt_tokens=9))
            case ("replicas", pool, names):
                self.scheduler.set_replicas(pool, listing(pool, *sorted(names)), now=self.now)
            case ("report", key, load, usage):
                report = LoadReport(
                    waiting_requests=load, running_requests=load, kv_cache_usage=usage
                )
                self.scheduler.report(key, report, now=self.now)
            case ("failed", key, hard):
                self.scheduler.failed(key, now=self.now, hard=hard)
            case ("instance", key, value):
                self.scheduler.instance(key, value, now=self.now)
            case ("health", answered):
                for address in self.scheduler.wanting_health(self.now):
                    self.scheduler.health(address, now=self.now, answered=answered)
            case ("table", whole):
                self.scheduler.set_table(TABLE if whole else table_of(pool_entry("p")))

    def _send(self, request_id: str, seed: int, size: int, stream: bool) -> None:
        request = chat(text(seed, size) + request_id, request_id=request_id, stream=stream)
        decision = self.scheduler.decide(request, now=self.now, explain=True)
        self.decisions.append(decision)
        if decision.winner is not None:
            self.open.append(self.scheduler.dispatch(request, decision, now=self.now))

    def _pick(self, where: float) -> Ticket:
        return self.open[int(where * (len(self.open) - 1))]


def run(history: list, *, seed: int = 0, backwards: bool = False) -> Run:  # type: ignore[type-arg]
    scheduler = Scheduler(TABLE, seed=seed, asks_health=True)
    for pool in POOLS:
        listed = listing(pool, "a", "b", "c")
        scheduler.set_replicas(pool, listed[::-1] if backwards else listed, now=0.0)
    result = Run(scheduler)
    for number, (passed, event) in enumerate(history):
        result.now += passed
        result.act(number, event)
    return result


def requests(now: float) -> list[RouteRequest]:
    return [
        chat(text(1, 900), request_id="one"),
        chat(text(2, 9_000), request_id="two", arrived_at=now),
        chat("a", "b", "c", request_id="three"),
        chat("e", request_id="four", api=Api.EMBEDDINGS),
    ]


@settings(max_examples=60)
@given(histories)
@pytest.mark.pain_5
def test_counters_return_to_zero_when_all_requests_have_ended(history: list) -> None:  # type: ignore[type-arg]
    done = run(history)
    for ticket in done.open:
        done.scheduler.finish(ticket, now=done.now, ok=False)
        done.scheduler.finish(ticket, now=done.now, ok=True)
    done.scheduler.set_table(TABLE)
    for ticket in done.open + done.closed:
        load = ticket.replica.load
        assert (load.in_flight, load.decoding, load.pending_tokens) == (0, 0, 0.0)
        assert ticket.replica.cache.blocks_in_flight == 0
    for pool in done.scheduler.snapshot().pools:
        assert all(not replica.draining for replica in pool.replicas)
        assert all(replica.in_flight == 0 for replica in pool.replicas)


@settings(max_examples=40)
@given(histories)
def test_same_history_gives_the_same_decisions(history: list) -> None:  # type: ignore[type-arg]
    first, second = run(history), run(history)
    assert first.decisions == second.decisions
    assert first.scheduler.snapshot() == second.scheduler.snapshot()


@settings(max_examples=40)
@given(histories)
def test_order_in_which_replicas_are_listed_does_not_matter(history: list) -> None:  # type: ignore[type-arg]
    forwards, backwards = run(history), run(history, backwards=True)
    assert [each.winner for each in forwards.decisions] == [
        each.winner for each in backwards.decisions
    ]


@settings(max_examples=40)
@given(histories, st.sets(st.sampled_from(KEYS)), seconds)
def test_deciding_changes_nothing(history: list, exclude: set[ReplicaKey], later: float) -> None:  # type: ignore[type-arg]
    done, undisturbed = run(history), run(history)
    now = done.now + later
    for request in requests(now):
        expected = undisturbed.scheduler.decide(request, now=now, exclude=exclude)
        for explain in (True, False):
            decision = done.scheduler.decide(request, now=now, exclude=exclude, explain=explain)
            assert decision.outcome == expected.outcome
            assert decision.winner == expected.winner
    assert done.scheduler.snapshot() == undisturbed.scheduler.snapshot()


@settings(max_examples=60)
@given(histories, st.sets(st.sampled_from(KEYS)), seconds)
def test_scores_are_finite_and_bounds_are_kept(
    history: list,  # type: ignore[type-arg]
    exclude: set[ReplicaKey],
    later: float,
) -> None:
    done = run(history)
    now = done.now + later
    for request in requests(now):
        decision = done.scheduler.decide(request, now=now, exclude=exclude, explain=True)
        assert (decision.winner is not None) == (decision.outcome is Outcome.CHOSEN)
        assert decision.reason.endswith(".")
        for candidate in decision.candidates:
            assert math.isfinite(candidate.score)
            assert math.isfinite(candidate.predicted_latency_seconds)
            assert candidate.predicted_ttft_seconds > 0.0
            assert candidate.predicted_latency_seconds >= candidate.predicted_ttft_seconds
            assert candidate.predicted_cached_tokens >= 0
            assert candidate.predicted_cost_dollars >= 0.0
        if decision.winner is not None:
            assert decision.winner.key not in exclude
            assert decision.winner.rejected is None
    check_bounds(done.scheduler.snapshot())


def check_bounds(snapshot: SchedulerSnapshot) -> None:
    for pool in snapshot.pools:
        for replica in pool.replicas:
            assert 0 <= replica.in_flight <= replica.slots + 1
            assert 1 <= replica.most_in_flight <= replica.slots + 1
            assert 0 <= replica.decoding <= replica.in_flight
            assert replica.pending_prefill_tokens >= 0.0
            assert 0.0 <= replica.cache_confidence <= 1.0
