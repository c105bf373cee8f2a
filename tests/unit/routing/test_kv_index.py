"""The scheduler with engines that tell what they hold."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pointsman_api.route_table import PrefixIndex
from pointsman_serving.routing.kv.events import BlocksStored
from pointsman_serving.routing.scheduler import Scheduler
from pointsman_serving.routing.types import ReplicaKey, Usage
from tests.unit.routing.engine_cache import EngineCache
from tests.unit.routing.fleet import addresses, chat, pool_entry, table_of, text

if TYPE_CHECKING:
    from pointsman_serving.routing.ticket import Ticket
    from pointsman_serving.routing.types import RouteRequest

A, B = ReplicaKey("dense", "a"), ReplicaKey("dense", "b")
STORY = text("story", 4_000)
TOKENS = list(range(1_000))
"""Of the story, four bytes each."""


class Fleet:
    """Two replicas, of which one or both tell what they hold."""

    def __init__(self, *told: ReplicaKey, complete: bool = True) -> None:
        self.scheduler = Scheduler(table_of(pool_entry(prefix_index=PrefixIndex.EVENTS)))
        self.scheduler.set_replicas("dense", addresses("dense", "a", "b"), now=0.0)
        self.engines = {key: EngineCache(block_tokens=16, seed=key.replica) for key in (A, B)}
        self.now = 0.0
        for key in told:
            self.scheduler.kv.started(key, complete=complete)
            self.scheduler.kv.caught_up(key)

    def tell(self, key: ReplicaKey) -> None:
        self.scheduler.kv.apply(key, self.engines[key].take())

    def compute(self, key: ReplicaKey, tokens: list[int], salt: str = "") -> None:
        self.engines[key].compute(tokens, salt)
        self.tell(key)

    def learn(self, request: RouteRequest, tokens: list[int], salt: str = "") -> None:
        self.scheduler.kv.learn("dense", request.prompt, tokens, salt=salt)

    def predicted(self, request: RouteRequest) -> dict[str, int]:
        decision = self.scheduler.decide(request, now=self.now, explain=True)
        return {each.key.replica: each.predicted_cached_tokens for each in decision.candidates}

    def send(self, request: RouteRequest, key: ReplicaKey) -> Ticket:
        other = B if key == A else A
        decision = self.scheduler.decide(request, now=self.now, exclude={other})
        return self.scheduler.dispatch(request, decision, now=self.now)

    def run(self, request: RouteRequest, key: ReplicaKey, cached: int) -> None:
        ticket = self.send(request, key)
        self.now += 1.0
        self.scheduler.first_token(ticket, now=self.now)
        usage = Usage(
            prompt_tokens=request.prompt.total_bytes // 4, completion_tokens=2, cached_tokens=cached
        )
        self.scheduler.finish(ticket, now=self.now, ok=True, usage=usage)


def test_replica_that_tells_that_it_holds_the_prompt_is_chosen_when_belief_knows_nothing() -> None:
    fleet = Fleet(A, B)
    fleet.compute(B, TOKENS)
    fleet.learn(chat(STORY), TOKENS)
    assert {"a": 0, "b": 992} == fleet.predicted(chat(STORY))
    winner = fleet.scheduler.decide(chat(STORY), now=0.0).winner
    assert winner is not None
    assert winner.key == B


@pytest.mark.pain_9
def test_evicted_blocks_are_not_counted_when_belief_still_has_them() -> None:
    fleet = Fleet(A)
    fleet.compute(A, TOKENS)
    fleet.learn(chat(STORY), TOKENS)
    fleet.run(chat(STORY), A, cached=0)
    assert 992 == fleet.predicted(chat(STORY))["a"]
    engine = fleet.engines[A]
    for block in list(engine.blocks)[:40]:
        engine.remove(block)
    fleet.tell(A)
    assert 992 - 40 * 16 == fleet.predicted(chat(STORY))["a"]


@pytest.mark.pain_9
def test_nothing_told_counts_when_the_engine_has_started_anew() -> None:
    fleet = Fleet(A)
    fleet.compute(A, TOKENS)
    fleet.learn(chat(STORY), TOKENS)
    assert 992 == fleet.predicted(chat(STORY))["a"]
    fleet.scheduler.kv.stopped(A)
    assert 0 == fleet.predicted(chat(STORY))["a"]
    fleet.scheduler.kv.started(A, complete=True)
    fleet.scheduler.kv.caught_up(A)
    assert 0 == fleet.predicted(chat(STORY))["a"]


def test_belief_holds_when_the_events_are_lost() -> None:
    fleet = Fleet(A)
    fleet.compute(A, TOKENS)
    fleet.learn(chat(STORY), TOKENS)
    fleet.run(chat(STORY), A, cached=992)
    fleet.scheduler.kv.stopped(A)
    assert 900 < fleet.predicted(chat(STORY))["a"] <= 1_010


def test_confidence_does_not_scale_what_is_told() -> None:
    fleet = Fleet(A)
    fleet.compute(A, TOKENS)
    fleet.learn(chat(STORY), TOKENS)
    for number in range(6):
        other = chat(text(number, 4_000))
        fleet.run(other, A, cached=0)
        fleet.run(other, A, cached=600)
    confidence = fleet.scheduler.snapshot().pools[0].replicas[0].cache_confidence
    assert confidence < 0.9
    assert 992 == fleet.predicted(chat(STORY))["a"]
    engine = fleet.engines[A]
    engine.remove(next(block for block in engine.blocks if len(block[1]) == 992))
    fleet.tell(A)
    assert 976 == fleet.predicted(chat(STORY))["a"]


def test_prompt_in_flight_counts_when_no_event_has_come_yet() -> None:
    fleet = Fleet(A, B)
    fleet.compute(A, [7] * 160)
    fleet.learn(chat(STORY), TOKENS)
    assert 0 == fleet.predicted(chat(STORY))["a"]
    ticket = fleet.send(chat(STORY), A)
    assert 900 < fleet.predicted(chat(STORY))["a"] <= 1_000
    fleet.scheduler.finish(ticket, now=0.0, ok=False)
    assert 0 == fleet.predicted(chat(STORY))["a"]


def test_belief_holds_when_the_engines_history_is_not_known_whole() -> None:
    fleet = Fleet(A, complete=False)
    fleet.compute(A, [7] * 160)
    fleet.learn(chat(STORY), TOKENS)
    fleet.run(chat(STORY), A, cached=0)
    assert 900 < fleet.predicted(chat(STORY))["a"] <= 1_010
    fleet.compute(A, TOKENS[:480])
    fleet.scheduler.failed(A, now=fleet.now, hard=True)
    assert 480 == fleet.predicted(chat(STORY))["a"]


def test_what_follows_known_tokens_is_believed_when_all_known_are_held() -> None:
    fleet = Fleet(A)
    fleet.compute(A, TOKENS)
    fleet.learn(chat(STORY), TOKENS)
    longer = chat(STORY + text("more", 4_000))
    assert 900 < fleet.predicted(longer)["a"] <= 992
    fleet.run(longer, A, cached=992)
    assert 1_800 < fleet.predicted(longer)["a"] <= 2_050


def test_tenants_are_apart_when_their_salts_differ() -> None:
    fleet = Fleet(A)
    fleet.compute(A, TOKENS, "salt-one")
    one, two = chat(STORY, tenant="one"), chat(STORY, tenant="two")
    fleet.learn(one, TOKENS, "salt-one")
    fleet.learn(two, TOKENS, "salt-two")
    assert [992, 0] == [fleet.predicted(each)["a"] for each in (one, two)]


def test_prediction_is_the_engines_when_the_prompt_is_longer_than_reckoned() -> None:
    fleet = Fleet(A)
    dense = list(range(3_200))
    fleet.compute(A, dense)
    fleet.learn(chat(STORY), dense)
    assert 3_200 == fleet.predicted(chat(STORY))["a"]
    ticket = fleet.send(chat(STORY), A)
    assert ticket.uncached_tokens == 1.0


def test_nothing_is_learned_when_no_engine_has_told_its_block_size() -> None:
    fleet = Fleet(A)
    fleet.learn(chat(STORY), TOKENS)
    fleet.compute(A, TOKENS)
    assert 0 == fleet.predicted(chat(STORY))["a"]
    fleet.learn(chat(STORY), TOKENS)
    assert 992 == fleet.predicted(chat(STORY))["a"]


def test_replica_is_estimated_when_its_blocks_have_another_size_than_its_peers() -> None:
    fleet = Fleet(A, B)
    fleet.engines[B].block_tokens = 32
    fleet.compute(A, TOKENS)
    fleet.compute(B, TOKENS)
    fleet.learn(chat(STORY), TOKENS)
    fleet.run(chat(STORY), B, cached=990)
    predicted = fleet.predicted(chat(STORY))
    assert 992 == predicted["a"]
    assert 900 < predicted["b"] <= 1_010


def test_predictions_are_counted_by_their_source() -> None:
    fleet = Fleet(A)
    fleet.compute(A, TOKENS)
    fleet.learn(chat(STORY), TOKENS)
    fleet.run(chat(STORY), A, cached=990)
    fleet.run(chat(text("other", 800)), A, cached=7)
    fleet.run(chat(STORY), B, cached=5)
    (counts,) = fleet.scheduler.kv.snapshot()
    assert (1, 2.0) == (counts.exact_predictions, counts.exact_error_tokens)
    assert (2, 12.0) == (counts.estimated_predictions, counts.estimated_error_tokens)
    assert {"a": 62} == counts.held_blocks


def test_index_is_left_aside_when_it_is_always_wrong() -> None:
    fleet = Fleet(A)
    fleet.compute(A, TOKENS)
    fleet.learn(chat(STORY), TOKENS)
    for _ in range(8):
        assert 992 == fleet.predicted(chat(STORY))["a"]
        fleet.run(chat(STORY), A, cached=0)
    assert fleet.predicted(chat(STORY))["a"] < 500
    assert 1 == fleet.scheduler.kv.snapshot()[0].distrusted


def test_memory_is_shared_when_many_replicas_tell() -> None:
    fleet = Fleet()
    names = [f"r{number}" for number in range(2_000)]
    fleet.scheduler.set_replicas("dense", addresses("dense", *names), now=0.0)
    for name in names:
        fleet.scheduler.kv.started(ReplicaKey("dense", name), complete=True)
    tokens = list(range(2_000 * 4))
    engine = EngineCache(block_tokens=4)
    engine.capacity = 10_000
    engine.compute(tokens)
    fleet.scheduler.kv.apply(ReplicaKey("dense", "r0"), engine.take())
    (counts,) = fleet.scheduler.kv.snapshot()
    assert 1_024 == counts.held_blocks["r0"]


def test_events_are_dropped_when_nobody_knows_the_replica() -> None:
    fleet = Fleet(A)
    gone = A._replace(replica="gone")
    fleet.scheduler.kv.started(gone, complete=True)
    fleet.scheduler.kv.caught_up(gone)
    event = BlocksStored(hashes=[1], parent=None, token_ids=[1] * 16, block_tokens=16)
    fleet.scheduler.kv.apply(gone, [event])
    fleet.scheduler.kv.apply(B, [event])
    fleet.scheduler.kv.stopped(gone)
    fleet.scheduler.kv.learn("none", chat(STORY).prompt, TOKENS, salt="")
    assert {"a": 0} == fleet.scheduler.kv.snapshot()[0].held_blocks
