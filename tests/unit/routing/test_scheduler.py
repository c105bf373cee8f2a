from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest

from pointsman_api.route_table import (
    FusedObjective,
    HeaderMatch,
    LatencyObjective,
    Overload,
    OverloadAction,
    Pricing,
    Route,
    RouteTable,
    Rule,
    RuleMatch,
    Stickiness,
    Strategy,
    StrategyType,
    Target,
)
from pointsman_serving.routing.scheduler import Scheduler
from pointsman_serving.routing.types import (
    Api,
    LoadReport,
    Outcome,
    RejectReason,
    ReplicaKey,
    Usage,
)
from tests.unit.routing.fleet import (
    Engine,
    addresses,
    chat,
    fleet_of,
    places,
    pool_entry,
    table_of,
    text,
)

if TYPE_CHECKING:
    from collections.abc import Callable

A, B = ReplicaKey("dense", "a"), ReplicaKey("dense", "b")


def scheduler_of(*names: str, slots: int = 8, **rule: object) -> Scheduler:
    scheduler = Scheduler(table_of(pool_entry(), **rule))
    scheduler.set_replicas("dense", addresses("dense", *names, slots=slots), now=0.0)
    return scheduler


def on_a_gpu() -> Engine:
    return Engine(noise=0.3)


def on_a_cpu() -> Engine:
    return Engine(
        prefill_seconds_per_token=1.2e-3,
        base_seconds=0.05,
        step_seconds=0.02,
        step_seconds_per_sequence=1.5e-3,
        noise=0.3,
        bytes_per_token=3,
        template_tokens=25,
    )


def almost_instant() -> Engine:
    return Engine(
        prefill_seconds_per_token=5e-6,
        base_seconds=0.002,
        step_seconds=0.002,
        step_seconds_per_sequence=0.0,
        noise=0.3,
    )


PROFILES = (on_a_gpu, on_a_cpu, almost_instant)


# Affinity and spread


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("engine", PROFILES)
@pytest.mark.pain_8
def test_group_stays_on_one_replica_when_its_long_prefix_is_cached(
    seed: int, engine: Callable[[], Engine]
) -> None:
    fleet = fleet_of(pool_entry(), seed=seed, engine=engine)
    prefixes = [text(("group", seed, group), 2_200) for group in range(4)]
    for number in range(10):
        for group, prefix in enumerate(prefixes):
            fleet.ask(chat(f"{prefix} question {group} {number}"))
    for group in range(4):
        assert Counter(places(fleet.calls[group::4])).most_common(1)[0][1] >= 9


@pytest.mark.parametrize("seed", range(5))
def test_groups_do_not_share_one_replica_when_two_are_idle(seed: int) -> None:
    fleet = fleet_of(pool_entry(), seed=seed)
    for group in range(4):
        for number in range(10):
            fleet.ask(chat(text(("group", seed, group), 2_200) + str(number)))
    homes = [places(fleet.calls[10 * group : 10 * group + 10])[-1] for group in range(4)]
    assert set(homes) == {"a", "b"}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("size", [40, 400, 4_000])
@pytest.mark.parametrize("engine", PROFILES)
@pytest.mark.pain_7
def test_unrelated_requests_spread_when_latencies_differ_by_noise(
    seed: int, size: int, engine: Callable[[], Engine]
) -> None:
    fleet = fleet_of(pool_entry(), seed=seed, engine=engine)
    for number in range(40):
        fleet.ask(chat(text((seed, number), size)))
    counts = Counter(places(fleet.calls))
    assert min(counts["a"], counts["b"]) >= 12


@pytest.mark.parametrize("factor", [0.75, 1.3])
def test_unrelated_requests_spread_when_one_replica_is_always_a_third_slower(
    factor: float,
) -> None:
    fleet = fleet_of(pool_entry())
    slow = fleet.engines[A]
    slow.step_seconds *= factor
    slow.prefill_seconds_per_token *= factor
    slow.base_seconds *= factor
    for number in range(40):
        fleet.ask(chat(text(number, 400)))
    counts = Counter(places(fleet.calls))
    assert min(counts["a"], counts["b"]) >= 12


def test_unrelated_requests_spread_when_they_share_a_short_system_prompt() -> None:
    fleet = fleet_of(pool_entry())
    for number in range(40):
        fleet.ask(chat("You are a helpful assistant. " * 5 + text(number, 200)))
    counts = Counter(places(fleet.calls))
    assert min(counts["a"], counts["b"]) >= 12


def test_requests_shun_a_replica_when_it_is_three_times_slower() -> None:
    fleet = fleet_of(pool_entry())
    fleet.engines[A].step_seconds *= 3
    for number in range(60):
        fleet.ask(chat(text(number, 400)))
    assert Counter(places(fleet.calls[20:]))["b"] > 30


def test_slow_replica_is_tried_again_when_time_has_passed() -> None:
    fleet = fleet_of(pool_entry())
    slow = fleet.engines[A]
    slow.step_seconds *= 3
    for number in range(40):
        fleet.ask(chat(text(number, 400)))
    slow.step_seconds /= 3
    fleet.run(until=fleet.now + 300.0)
    later = [fleet.ask(chat(text(("later", number), 400))) for number in range(40)]
    assert Counter(places(later))["a"] >= 12


@pytest.mark.parametrize("engine", PROFILES)
def test_unrelated_requests_spread_when_groups_came_before(engine: Callable[[], Engine]) -> None:
    fleet = fleet_of(pool_entry(), engine=engine)
    for group in range(3):
        for number in range(10):
            fleet.ask(chat(text(("group", group), 2_200) + str(number)))
    counts = Counter(places([fleet.ask(chat(text(number, 300))) for number in range(40)]))
    assert min(counts["a"], counts["b"]) >= 12


@pytest.mark.parametrize("at_once", [1, 4])
@pytest.mark.parametrize("engine", PROFILES)
def test_chats_stay_where_their_cache_is_when_they_take_turns(
    at_once: int, engine: Callable[[], Engine]
) -> None:
    fleet = fleet_of(pool_entry(), engine=engine)
    chats = [[text(("chat", number), 120)] for number in range(20)]
    reached = attainable = 0
    for turn in range(8):
        for start in range(0, 20, at_once):
            for messages in chats[start : start + at_once]:
                assert fleet.send(chat(*messages))[1] is not None
            fleet.run()
        for messages, call in zip(chats, fleet.calls[-20:], strict=True):
            if turn:
                held = chat(*messages[:-2]).prompt.blocks[-1].end_bytes
                reached += call.cached_tokens
                attainable += held // fleet.engines[call.key].bytes_per_token // 16 * 16
            messages += [text((call.sent_at, "answer"), 200), text((call.sent_at, "next"), 80)]
    assert reached >= 0.95 * attainable


@pytest.mark.pain_7
def test_replicas_take_turns_when_nothing_tells_them_apart() -> None:
    fleet = fleet_of(pool_entry())
    for number in range(20):
        fleet.ask(chat(text(number, 40), "an answer from elsewhere", "and now?"))
    homes = places(fleet.calls)
    assert homes[::2] == [homes[0]] * 10
    assert homes[1::2] == [homes[1]] * 10
    assert homes[0] != homes[1]


@pytest.mark.pain_10
def test_gateways_choose_alike_when_a_prefix_is_new_to_both() -> None:
    fleets = [fleet_of(pool_entry(), replicas=8) for _ in range(2)]
    for gateway, fleet in enumerate(fleets):
        for number in range(8):
            fleet.ask(chat(text((gateway, number), 400)))
    alike = 0
    for number in range(40):
        request = chat(text(("new", number), 400))
        pairs = []
        for fleet in fleets:
            first = fleet.scheduler.decide(request, now=fleet.now).winner
            assert first is not None
            second = fleet.scheduler.decide(request, now=fleet.now, exclude={first.key}).winner
            assert second is not None
            pairs.append({first.key, second.key})
        alike += pairs[0] == pairs[1]
    assert alike >= 30


def test_burst_goes_to_one_replica_when_its_prefix_is_in_flight() -> None:
    fleet = fleet_of(pool_entry(), engine=lambda: Engine(slots=32))
    prefix = text("burst", 40_000)
    for number in range(10):
        fleet.send(chat(prefix + str(number)))
    assert len(set(places(fleet.calls))) == 1


@pytest.mark.pain_6
def test_burst_overflows_when_congestion_outweighs_the_prefix() -> None:
    fleet = fleet_of(pool_entry(), engine=lambda: Engine(slots=64))
    prefix = text("burst", 2_000)
    for number in range(60):
        fleet.send(chat(prefix + str(number)))
    counts = Counter(places(fleet.calls))
    assert min(counts.values()) >= 12


# Saturation


@pytest.mark.pain_6
def test_group_moves_and_says_why_when_all_slots_of_its_replica_are_busy() -> None:
    fleet = fleet_of(pool_entry())
    prefix = text("group", 2_400)
    home = fleet.ask(chat(prefix + "first")).key
    for number in range(8):
        fleet.send(chat(prefix + str(number)), output_tokens=2_000)
    assert fleet.scheduler.decide(chat(prefix + "next"), now=fleet.now).winner is not None
    while fleet.engines[home].running < 8:
        fleet.send(chat(prefix + text(fleet.now, 8)), output_tokens=2_000, exclude={other(home)})
    fleet.run(until=fleet.now + 5.0)
    decision = fleet.scheduler.decide(chat(prefix + "next"), now=fleet.now, explain=True)
    assert decision.winner is not None
    assert decision.winner.key == other(home)
    assert f"dense/{home.replica} holds more of the prompt" in decision.reason
    assert "8 requests for 8 slots" in decision.reason


def other(key: ReplicaKey) -> ReplicaKey:
    return B if key == A else A


@pytest.mark.pain_6
def test_group_moves_and_says_why_when_much_prefill_is_pending_on_its_replica() -> None:
    fleet = fleet_of(pool_entry())
    prefix = text("group", 2_400)
    home = fleet.ask(chat(prefix + "first")).key
    for number in range(2):
        fleet.send(chat(text(("long", number), 120_000)), exclude={other(home)})
    decision = fleet.scheduler.decide(chat(prefix + "next"), now=fleet.now, explain=True)
    assert decision.winner is not None
    assert decision.winner.key == other(home)
    assert "prefill tokens ahead" in decision.reason


def test_reason_says_full_when_the_best_cached_replica_is_full() -> None:
    fleet = fleet_of(pool_entry())
    prefix = text("group", 2_400)
    home = fleet.ask(chat(prefix + "first")).key
    for number in range(9):
        fleet.send(chat(prefix + str(number)), exclude={other(home)})
    decision = fleet.scheduler.decide(chat(prefix + "next"), now=fleet.now, explain=True)
    assert decision.winner is not None
    assert decision.winner.key == other(home)
    assert "it is full (9 requests for 8 slots)" in decision.reason
    assert [each.rejected for each in decision.candidates] == [None, RejectReason.FULL]


def test_request_waits_when_all_replicas_are_full() -> None:
    fleet = fleet_of(pool_entry())
    sent = [fleet.send(chat(text(number, 100))) for number in range(18)]
    assert all(call is not None for _, call in sent)
    decision, _ = fleet.send(chat("one more"))
    assert decision.outcome is Outcome.WAIT
    assert decision.reason.startswith("All 2 replicas of dense are full")


def test_request_goes_on_when_a_full_replica_has_finished_one() -> None:
    fleet = fleet_of(pool_entry(), replicas=1)
    for number in range(9):
        fleet.send(chat(text(number, 100)))
    assert fleet.send(chat("one more"))[0].outcome is Outcome.WAIT
    while all(call.finished_at is None for call in fleet.calls):
        fleet.step()
    assert fleet.send(chat("one more"))[0].outcome is Outcome.CHOSEN


def test_full_replica_does_not_wait_for_others_load_when_only_reports_say_so() -> None:
    scheduler = scheduler_of("a")
    scheduler.report(A, LoadReport(waiting_requests=500.0, running_requests=8.0), now=0.0)
    assert scheduler.decide(chat("hello"), now=0.0).outcome is Outcome.CHOSEN


def test_pool_has_a_replica_and_no_room_when_all_are_full() -> None:
    fleet = fleet_of(pool_entry(), replicas=1)
    scheduler = fleet.scheduler
    assert scheduler.capacity(["dense", "unknown"]) == 9
    for number in range(9):
        fleet.send(chat(text(number, 100)))
    assert (
        scheduler.has_room(["dense"], now=fleet.now),
        scheduler.has_replica(["dense"], now=fleet.now),
    ) == (False, True)


def test_pool_has_no_replica_when_its_only_one_is_ejected() -> None:
    scheduler = scheduler_of("a")
    scheduler.failed(A, now=0.0, hard=True)
    assert [scheduler.has_replica(["dense"], now=now) for now in (0.5, 1.5)] == [False, True]
    assert not scheduler.has_replica(["unknown"], now=0.0)


# Reports


def test_request_goes_elsewhere_when_a_replica_reports_waiting_requests() -> None:
    scheduler = scheduler_of("a", "b")
    first = scheduler.decide(chat("hello"), now=0.0).winner
    assert first is not None
    scheduler.report(first.key, LoadReport(waiting_requests=20.0, running_requests=8.0), now=0.0)
    second = scheduler.decide(chat("hello"), now=0.1).winner
    assert second is not None
    assert second.key == other(first.key)


@pytest.mark.pain_21
def test_replica_is_not_thought_idle_when_its_report_says_so() -> None:
    scheduler = scheduler_of("a", "b")
    request = chat("hello")
    decision = scheduler.decide(request, now=0.0)
    ticket = scheduler.dispatch(request, decision, now=0.0)
    idle = LoadReport(waiting_requests=0.0, running_requests=0.0, kv_cache_usage=0.0)
    scheduler.report(ticket.key, idle, now=0.0)
    scored = scheduler.decide(chat("hello"), now=0.0, explain=True)
    by_key = {each.key: each for each in scored.candidates}
    assert by_key[ticket.key].in_flight == 1
    assert by_key[ticket.key].score < by_key[other(ticket.key)].score


# Failures


def test_excluded_replica_is_not_chosen() -> None:
    scheduler = scheduler_of("a", "b")
    for key in (A, B):
        winner = scheduler.decide(chat("hello"), now=0.0, exclude={key}).winner
        assert winner is not None
        assert winner.key == other(key)


def test_no_replica_is_said_when_all_were_tried() -> None:
    scheduler = scheduler_of("a", "b")
    decision = scheduler.decide(chat("hello"), now=0.0, exclude={A, B})
    assert decision.outcome is Outcome.NO_REPLICA
    assert decision.reason == "No replica of dense can take the request now (2 Excluded)."


def test_no_replica_is_said_when_the_pool_has_none() -> None:
    decision = scheduler_of().decide(chat("hello"), now=0.0)
    assert decision.outcome is Outcome.NO_REPLICA
    assert decision.reason == "No replica of dense is there; the pools may still be starting."


def test_replica_is_ejected_when_it_cannot_be_connected_to() -> None:
    scheduler = scheduler_of("a", "b")
    scheduler.failed(A, now=0.0, hard=True)
    for number in range(6):
        decision = scheduler.decide(chat(text(number, 300)), now=0.5, explain=True)
        assert decision.winner is not None
        assert decision.winner.key == B
        assert [each.rejected for each in decision.candidates] == [None, RejectReason.EJECTED]


def test_replica_is_ejected_when_it_fails_twice_in_a_row() -> None:
    scheduler = scheduler_of("a", "b")
    scheduler.failed(A, now=0.0)
    assert scheduler.decide(chat("x"), now=0.0, exclude={B}).outcome is Outcome.CHOSEN
    scheduler.failed(A, now=0.0)
    explained = scheduler.decide(chat("x"), now=0.0, explain=True).candidates
    assert {each.key: each.rejected for each in explained}[A] is RejectReason.EJECTED


def test_one_probe_is_sent_when_the_ejection_is_over() -> None:
    scheduler = scheduler_of("a", "b")
    scheduler.failed(A, now=0.0, hard=True)
    request = chat("x")
    decision = scheduler.decide(request, now=2.0, exclude={B})
    probe = scheduler.dispatch(request, decision, now=2.0)
    explained = scheduler.decide(chat("y"), now=2.0, explain=True).candidates
    assert {each.key: each.rejected for each in explained}[A] is RejectReason.EJECTED
    scheduler.first_token(probe, now=2.1)
    explained = scheduler.decide(chat("y"), now=2.1, explain=True).candidates
    assert {each.key: each.rejected for each in explained}[A] is None


def test_ejected_replica_is_tried_when_it_is_the_last() -> None:
    scheduler = scheduler_of("a", "b")
    scheduler.failed(A, now=0.0, hard=True)
    scheduler.failed(B, now=0.0, hard=True)
    assert scheduler.decide(chat("x"), now=0.1).outcome is Outcome.CHOSEN
    winner = scheduler.decide(chat("x"), now=0.1, exclude={A}).winner
    assert winner is not None
    assert winner.key == B


@pytest.mark.pain_9
def test_cache_is_forgotten_when_a_replica_is_ejected() -> None:
    fleet = fleet_of(pool_entry())
    prefix = text("group", 4_000)
    home = fleet.ask(chat(prefix)).key
    fleet.scheduler.failed(home, now=fleet.now, hard=True)
    decision = fleet.scheduler.decide(chat(prefix), now=fleet.now + 5.0, explain=True)
    assert [each.predicted_cached_tokens for each in decision.candidates] == [0, 0]


def test_blocks_are_not_believed_cached_when_the_request_failed_before_its_first_token() -> None:
    scheduler = scheduler_of("a", "b")
    request = chat(text("long", 4_000))
    ticket = scheduler.dispatch(request, scheduler.decide(request, now=0.0), now=0.0)
    during = scheduler.decide(request, now=0.0, explain=True).candidates
    assert max(each.predicted_cached_tokens for each in during) > 900
    scheduler.finish(ticket, now=1.0, ok=False)
    after = scheduler.decide(request, now=1.0, explain=True).candidates
    assert [each.predicted_cached_tokens for each in after] == [0, 0]


def test_latency_is_not_learned_when_the_answer_is_not_complete() -> None:
    scheduler = scheduler_of("a")
    before = scheduler.snapshot().pools[0]
    request = chat(text("long", 4_000))
    ticket = scheduler.dispatch(request, scheduler.decide(request, now=0.0), now=0.0)
    scheduler.first_token(ticket, now=90.0)
    scheduler.finish(ticket, now=100.0, ok=False, usage=Usage(completion_tokens=100))
    after = scheduler.snapshot().pools[0]
    assert after.prefill_base_seconds == before.prefill_base_seconds
    assert after.step_seconds == before.step_seconds
    assert after.output_tokens == before.output_tokens


# Replicas and tables


@pytest.mark.pain_1
def test_ticket_stays_valid_when_its_replica_is_no_longer_listed() -> None:
    scheduler = scheduler_of("a", "b")
    request = chat("hello")
    ticket = scheduler.dispatch(request, scheduler.decide(request, now=0.0), now=0.0)
    scheduler.set_replicas("dense", addresses("dense", other(ticket.key).replica), now=1.0)
    assert scheduler.address(ticket.key) is not None
    winner = scheduler.decide(chat("hello"), now=1.0).winner
    assert winner is not None
    assert winner.key == other(ticket.key)
    scheduler.first_token(ticket, now=1.1)
    scheduler.finish(ticket, now=1.2, ok=True)
    assert scheduler.address(ticket.key) is None


def test_cache_is_kept_when_the_same_replicas_are_listed_again() -> None:
    fleet = fleet_of(pool_entry())
    request = chat(text("long", 4_000))
    home = fleet.ask(request).key
    fleet.scheduler.set_replicas("dense", addresses("dense", "b", "a")[::-1], now=fleet.now)
    fleet.scheduler.set_replicas(
        "dense",
        [
            address
            for name, port in (("b", 8001), ("a", 8000))
            for address in addresses("dense", name, port=port)
        ],
        now=fleet.now,
    )
    explained = fleet.scheduler.decide(request, now=fleet.now, explain=True).candidates
    cached = {each.key: each.predicted_cached_tokens for each in explained}
    assert cached[other(home)] == 0


@pytest.mark.pain_9
def test_cache_is_cleared_when_a_replica_comes_back_at_another_address() -> None:
    fleet = fleet_of(pool_entry())
    request = chat(text("long", 4_000))
    fleet.ask(request)
    fleet.scheduler.set_replicas("dense", addresses("dense", "a", "b", port=9_000), now=fleet.now)
    explained = fleet.scheduler.decide(request, now=fleet.now, explain=True).candidates
    assert [each.predicted_cached_tokens for each in explained] == [0, 0]


def test_failures_are_forgotten_when_a_replica_comes_back_at_another_address() -> None:
    scheduler = scheduler_of("a", "b")
    scheduler.failed(A, now=0.0, hard=True)
    scheduler.set_replicas("dense", addresses("dense", "a", "b", port=9_000), now=0.1)
    explained = scheduler.decide(chat("x"), now=0.1, explain=True).candidates
    assert [each.rejected for each in explained] == [None, None]


@pytest.mark.pain_7
def test_newcomer_does_not_get_everything_when_the_others_have_worked() -> None:
    fleet = fleet_of(pool_entry())
    for number in range(40):
        fleet.ask(chat(text(number, 400)))
    fleet.engines[ReplicaKey("dense", "c")] = Engine()
    fleet.scheduler.set_replicas("dense", addresses("dense", "a", "b", "c"), now=fleet.now)
    later = [fleet.ask(chat(text(("later", number), 400))) for number in range(30)]
    assert 5 <= Counter(places(later))["c"] <= 15


def test_learned_state_is_kept_when_the_table_changes() -> None:
    fleet = fleet_of(pool_entry())
    request = chat(text("long", 4_000))
    home = fleet.ask(request).key
    fleet.scheduler.set_table(table_of(pool_entry(), pool_entry("other")))
    winner = fleet.scheduler.decide(request, now=fleet.now).winner
    assert winner is not None
    assert winner.key == home
    assert winner.predicted_cached_tokens > 900


def test_replicas_are_remembered_when_they_are_listed_before_their_pool() -> None:
    scheduler = Scheduler(RouteTable())
    scheduler.set_replicas("dense", addresses("dense", "a"), now=0.0)
    scheduler.set_table(table_of(pool_entry()))
    assert scheduler.decide(chat("hello"), now=0.0).outcome is Outcome.CHOSEN


def test_replicas_are_refused_when_they_belong_to_another_pool() -> None:
    scheduler = scheduler_of("a")
    with pytest.raises(ValueError, match="belongs to pool 'other', not to 'dense'"):
        scheduler.set_replicas("dense", addresses("other", "a"), now=0.0)


def test_dispatch_is_refused_when_the_decision_has_no_winner() -> None:
    scheduler = scheduler_of()
    request = chat("hello")
    with pytest.raises(ValueError, match="NoReplica has no replica to send to"):
        scheduler.dispatch(request, scheduler.decide(request, now=0.0), now=0.0)


def test_dispatch_is_refused_when_the_winner_is_gone() -> None:
    scheduler = scheduler_of("a")
    request = chat("hello")
    decision = scheduler.decide(request, now=0.0)
    scheduler.set_replicas("dense", [], now=0.0)
    with pytest.raises(ValueError, match="dense/a is gone; decide again"):
        scheduler.dispatch(request, decision, now=0.0)


# Outcomes


def test_existing_models_are_named_when_the_model_is_unknown() -> None:
    decision = scheduler_of("a").decide(chat("x", model="gpt-9"), now=0.0)
    assert decision.outcome is Outcome.NO_MODEL
    assert decision.reason == "The model 'gpt-9' does not exist; there are: assistant, dense."


def test_rules_are_named_when_none_matches() -> None:
    only_code = RuleMatch(headers=(HeaderMatch(name="x-task", value="code"),))
    scheduler = scheduler_of("a", matches=(only_code,))
    decision = scheduler.decide(chat("x"), now=0.0)
    assert decision.outcome is Outcome.NO_RULE
    assert "No rule of assistant matches" in decision.reason
    assert "there are: default" in decision.reason
    code = chat("x", headers={"x-task": "code"})
    assert scheduler.decide(code, now=0.0).outcome is Outcome.CHOSEN


def test_largest_context_is_named_when_the_prompt_is_too_long() -> None:
    scheduler = Scheduler(table_of(pool_entry(context_tokens=1_000)))
    scheduler.set_replicas("dense", addresses("dense", "a"), now=0.0)
    decision = scheduler.decide(chat(text("long", 9_000), max_output_tokens=100), now=0.0)
    assert decision.outcome is Outcome.TOO_LONG
    assert "prompt tokens and 100 tokens of answer do not fit" in decision.reason
    assert "1,000 tokens (dense)" in decision.reason


def test_larger_pool_is_chosen_when_the_prompt_fits_only_its_context() -> None:
    small = pool_entry("small", context_tokens=1_000, quality={"Default": 0.9})
    large = pool_entry("large", context_tokens=32_000, quality={"Default": 0.1})
    fleet = fleet_of(small, large)
    decision = fleet.scheduler.decide(chat(text("long", 5_000)), now=0.0, explain=True)
    assert decision.winner is not None
    assert decision.winner.key.pool == "large"
    reasons = {each.key.pool: each.rejected for each in decision.candidates}
    assert reasons == {"small": RejectReason.CONTEXT_TOO_SMALL, "large": None}


def test_embeddings_are_refused_when_no_engine_serves_them() -> None:
    scheduler = Scheduler(table_of(pool_entry(engine="Simulated")))
    scheduler.set_replicas("dense", addresses("dense", "a"), now=0.0)
    decision = scheduler.decide(chat("x", api=Api.EMBEDDINGS), now=0.0)
    assert decision.outcome is Outcome.API_NOT_SERVED
    assert decision.reason.startswith("The endpoint embeddings is served by none of the pools")


def test_pools_without_a_feature_are_passed_over_when_another_has_it() -> None:
    fleet = fleet_of(pool_entry("plain", engine="Transformers"), pool_entry("full"))
    request = chat("x", features=frozenset({"tools"}))
    decision = fleet.scheduler.decide(request, now=0.0, explain=True)
    assert decision.winner is not None
    assert decision.winner.key.pool == "full"
    reasons = {each.key.pool: each.rejected for each in decision.candidates}
    assert reasons == {"plain": RejectReason.FEATURE_NOT_SERVED, "full": None}


def test_a_pool_is_chosen_when_no_engine_has_the_feature() -> None:
    fleet = fleet_of(pool_entry("plain", engine="Transformers"))
    decision = fleet.scheduler.decide(chat("x", features=frozenset({"tools"})), now=0.0)
    assert decision.outcome is Outcome.CHOSEN


def test_embeddings_take_no_output_time_when_a_pool_serves_them() -> None:
    winner = scheduler_of("a").decide(chat("x", api=Api.EMBEDDINGS), now=0.0).winner
    assert winner is not None
    assert winner.predicted_latency_seconds == winner.predicted_ttft_seconds


# Objectives


def slo_rule(action: OverloadAction) -> dict[str, object]:
    return {
        "slo": LatencyObjective(ttft_seconds=0.5),
        "overload": Overload(action=action),
    }


def test_request_is_refused_early_when_no_replica_can_meet_its_objective() -> None:
    fleet = fleet_of(pool_entry(), **slo_rule(OverloadAction.REJECT))
    for number in range(20):
        fleet.ask(chat(text(number, 2_000)))
    decision, _ = fleet.send(chat(text("long", 400_000)))
    assert decision.outcome is Outcome.HOPELESS
    assert "wanted within 0.50 s" in decision.reason


def test_request_is_served_late_when_the_rule_does_not_reject() -> None:
    fleet = fleet_of(pool_entry(), **slo_rule(OverloadAction.QUEUE))
    for number in range(20):
        fleet.ask(chat(text(number, 2_000)))
    decision, _ = fleet.send(chat(text("long", 400_000)))
    assert decision.outcome is Outcome.CHOSEN


def test_request_is_not_refused_when_nothing_was_learned_yet() -> None:
    fleet = fleet_of(pool_entry(), **slo_rule(OverloadAction.REJECT))
    decision, _ = fleet.send(chat(text("long", 400_000)))
    assert decision.outcome is Outcome.CHOSEN


def test_request_is_not_refused_when_what_was_learned_is_old() -> None:
    fleet = fleet_of(pool_entry(), **slo_rule(OverloadAction.REJECT))
    for number in range(20):
        fleet.ask(chat(text(number, 2_000)))
    fleet.run(until=fleet.now + 60.0)
    decision, _ = fleet.send(chat(text("long", 400_000)))
    assert decision.outcome is Outcome.CHOSEN


def test_waiting_counts_against_the_objective_when_the_request_was_queued() -> None:
    fleet = fleet_of(pool_entry(), **slo_rule(OverloadAction.REJECT))
    for number in range(20):
        fleet.ask(chat(text(number, 2_000)))
    fresh, late = (chat("short", arrived_at=fleet.now - waited) for waited in (0.0, 0.6))
    assert fleet.scheduler.decide(fresh, now=fleet.now).outcome is Outcome.CHOSEN
    assert fleet.scheduler.decide(late, now=fleet.now).outcome is Outcome.HOPELESS


def test_request_is_refused_when_its_objective_has_passed_while_all_were_full() -> None:
    fleet = fleet_of(pool_entry(), replicas=1, **slo_rule(OverloadAction.REJECT))
    for number in range(9):
        fleet.send(chat(text(number, 100)))
    assert fleet.send(chat("x", arrived_at=fleet.now))[0].outcome is Outcome.WAIT
    decision, _ = fleet.send(chat("x", arrived_at=fleet.now - 0.6))
    assert decision.outcome is Outcome.HOPELESS
    assert "has waited 0.60 s" in decision.reason


def test_candidate_that_meets_the_objective_wins_when_another_scores_higher() -> None:
    good = pool_entry("good", quality={"Default": 0.9})
    fast = pool_entry("fast", quality={"Default": 0.1})
    fleet = fleet_of(good, fast, slo=LatencyObjective(ttft_seconds=0.3))
    for engine in (fleet.engines[ReplicaKey("good", name)] for name in "ab"):
        engine.base_seconds = 1.0
    for number in range(12):
        fleet.ask(chat(text(number, 200), model="good"))
    winner = fleet.scheduler.decide(chat("x"), now=fleet.now).winner
    assert winner is not None
    assert winner.key.pool == "fast"
    assert winner.meets_slo


def two_pools(**objective: float) -> dict[str, object]:
    return {"strategy": Strategy(objective=FusedObjective(**objective))}


GOOD = pool_entry(
    "good",
    quality={"Default": 0.8},
    pricing=Pricing(input_dollars=1e-5, cached_input_dollars=1e-6, output_dollars=4e-5),
)
CHEAP = pool_entry(
    "cheap",
    quality={"Default": 0.6},
    pricing=Pricing(input_dollars=1e-7, cached_input_dollars=1e-8, output_dollars=4e-7),
)


def test_better_pool_wins_when_quality_is_worth_more_than_its_price() -> None:
    fleet = fleet_of(GOOD, CHEAP, **two_pools(quality_per_second=0.01, quality_per_dollar=1.0))
    assert fleet.ask(chat(text("x", 2_000))).key.pool == "good"


def test_cheaper_pool_wins_when_a_dollar_is_worth_more_than_its_quality() -> None:
    fleet = fleet_of(GOOD, CHEAP, **two_pools(quality_per_second=0.01, quality_per_dollar=100.0))
    assert fleet.ask(chat(text("x", 2_000))).key.pool == "cheap"


def test_worse_pool_takes_over_when_the_better_one_is_congested() -> None:
    fleet = fleet_of(GOOD, CHEAP, **two_pools(quality_per_second=0.05, quality_per_dollar=0.0))
    assert fleet.ask(chat("x")).key.pool == "good"
    for number in range(6):
        fleet.send(chat(text(("long", number), 200_000), model="good"))
    decision, call = fleet.send(chat("x" * 500))
    assert call is not None, decision
    assert call.key.pool == "cheap"


def test_load_still_decides_among_equals_when_a_second_is_worth_nothing() -> None:
    fleet = fleet_of(pool_entry(), **two_pools(quality_per_second=0.0, quality_per_dollar=0.0))
    for number in range(16):
        fleet.send(chat(text(number, 300)))
    assert Counter(places(fleet.calls)) == {"a": 8, "b": 8}


def test_target_quality_overrides_the_pools_when_it_is_stated() -> None:
    targets = (Target(pool="good", quality=0.1), Target(pool="cheap"))
    fleet = fleet_of(GOOD, CHEAP, targets=targets)
    assert fleet.ask(chat("x")).key.pool == "cheap"


def test_cached_tokens_are_cheaper_when_the_price_says_so() -> None:
    fleet = fleet_of(GOOD, replicas=1)
    request = chat(text("x", 4_000))
    cold = fleet.ask(request)
    assert cold.ticket.predicted_cached_tokens == 0
    dollars = [
        each.predicted_cost_dollars
        for each in fleet.scheduler.decide(request, now=fleet.now, explain=True).candidates
    ]
    fresh = fleet.scheduler.decide(chat(text("y", 4_000)), now=fleet.now).winner
    assert fresh is not None
    assert dollars[0] < fresh.predicted_cost_dollars - 0.008


def test_unknown_pool_is_tried_when_the_known_one_gives_short_answers() -> None:
    fleet = fleet_of(pool_entry("old"), pool_entry("new"))
    for number in range(30):
        fleet.ask(chat(text(number, 300), model="old"), output_tokens=8)
    tried = [fleet.ask(chat(text(("both", number), 300)), output_tokens=8) for number in range(20)]
    assert "new" in {call.key.pool for call in tried}


# Conversations


def sticky(ttl_seconds: float) -> dict[str, object]:
    objective = FusedObjective(quality_per_second=0.01, quality_per_dollar=1.0)
    stickiness = Stickiness(ttl_seconds=ttl_seconds)
    return {"strategy": Strategy(objective=objective, stickiness=stickiness)}


def test_conversation_keeps_its_pool_when_the_other_becomes_better() -> None:
    fleet = fleet_of(GOOD, CHEAP, **two_pools(quality_per_second=0.05, quality_per_dollar=0.0))
    first = fleet.ask(chat("hello", conversation="c1"))
    assert first.key.pool == "good"
    for number in range(6):
        fleet.send(chat(text(("long", number), 200_000), model="good"))
    request = chat("hello", "answer", "more", conversation="c1")
    decision = fleet.scheduler.decide(request, now=fleet.now, explain=True)
    assert decision.winner is not None
    assert decision.winner.key.pool == "good"
    assert decision.reason.startswith("The conversation stays with the pool good.")
    assert RejectReason.STICKY_TO_OTHER_POOL in {each.rejected for each in decision.candidates}


def test_conversation_is_known_by_its_first_messages_when_it_states_no_id() -> None:
    fleet = fleet_of(GOOD, CHEAP, **two_pools(quality_per_second=0.05, quality_per_dollar=0.0))
    fleet.ask(chat("hello"))
    for number in range(6):
        fleet.send(chat(text(("long", number), 200_000), model="good"))
    for request, pool in ((chat("hello", "answer", "more"), "good"), (chat("hello"), "cheap")):
        winner = fleet.scheduler.decide(request, now=fleet.now).winner
        assert winner is not None
        assert winner.key.pool == pool


def test_conversation_moves_when_its_pool_is_gone() -> None:
    fleet = fleet_of(GOOD, CHEAP, **two_pools(quality_per_second=0.01, quality_per_dollar=1.0))
    assert fleet.ask(chat("hello", conversation="c1")).key.pool == "good"
    fleet.scheduler.set_replicas("good", [], now=fleet.now)
    assert fleet.ask(chat("hello", conversation="c1")).key.pool == "cheap"


def test_conversation_is_free_when_its_time_is_over() -> None:
    fleet = fleet_of(GOOD, CHEAP, **sticky(60.0))
    assert fleet.ask(chat("hello", conversation="c1")).key.pool == "good"
    fleet.run(until=fleet.now + 61.0)
    decision = fleet.scheduler.decide(chat("hello", conversation="c1"), now=fleet.now, explain=True)
    assert "stays" not in decision.reason


def test_conversation_is_free_when_the_policy_says_so() -> None:
    fleet = fleet_of(GOOD, CHEAP, **sticky(0.0))
    fleet.ask(chat("hello", conversation="c1"))
    assert fleet.scheduler.snapshot().conversations == 0


def weighted(*weights: int) -> dict[str, object]:
    return {
        "strategy": Strategy(type=StrategyType.WEIGHTED),
        "targets": tuple(
            Target(pool=pool, weight=weight)
            for pool, weight in zip(("good", "cheap"), weights, strict=True)
        ),
    }


def test_conversations_divide_by_weight_when_the_strategy_is_weighted() -> None:
    fleet = fleet_of(GOOD, CHEAP, **weighted(1, 3))
    pools = []
    for number in range(400):
        winner = fleet.scheduler.decide(chat(text(number, 100)), now=0.0).winner
        assert winner is not None
        pools.append(winner.key.pool)
    assert 260 <= pools.count("cheap") <= 340


@pytest.mark.pain_10
def test_weighted_choice_is_the_same_when_another_gateway_makes_it() -> None:
    fleets = [fleet_of(GOOD, CHEAP, **weighted(1, 1)) for _ in range(2)]
    for number in range(50):
        request = chat(text(number, 100))
        winners = [fleet.scheduler.decide(request, now=0.0).winner for fleet in fleets]
        assert winners[0] is not None
        assert winners[0] == winners[1]


def test_target_gets_nothing_when_its_weight_is_zero() -> None:
    fleet = fleet_of(GOOD, CHEAP, **weighted(0, 1))
    for number in range(20):
        assert fleet.ask(chat(text(number, 100))).key.pool == "cheap"


def test_weight_zero_is_named_when_all_targets_have_it() -> None:
    decision = fleet_of(GOOD, CHEAP, **weighted(0, 0)).scheduler.decide(chat("x"), now=0.0)
    assert decision.outcome is Outcome.NO_REPLICA
    assert "has the weight 0: good, cheap" in decision.reason


def test_other_pool_is_taken_when_the_weighted_one_has_no_replica() -> None:
    fleet = fleet_of(GOOD, CHEAP, **weighted(1_000, 1))
    fleet.scheduler.set_replicas("good", [], now=0.0)
    assert fleet.ask(chat("x")).key.pool == "cheap"


# Many instances


@pytest.mark.parametrize(("replicas", "scored"), [(32, 32), (33, 16), (100, 16), (300, 16)])
def test_scored_candidates_are_bounded_when_the_fleet_is_large(replicas: int, scored: int) -> None:
    fleet = fleet_of(pool_entry(), replicas=replicas)
    for number in range(50):
        decision = fleet.scheduler.decide(chat(text(number, 500)), now=0.0, explain=True)
        assert 4 <= len(decision.candidates) <= scored


def test_group_stays_on_one_replica_when_the_fleet_is_large() -> None:
    fleet = fleet_of(pool_entry(), replicas=100)
    prefix = text("group", 2_400)
    for number in range(20):
        fleet.ask(chat(f"{prefix}{number}"))
    assert Counter(places(fleet.calls)).most_common(1)[0][1] >= 19


def test_free_replica_is_found_when_nearly_all_of_a_large_fleet_are_full() -> None:
    fleet = fleet_of(pool_entry(), replicas=40)
    for number in range(40 * 9 - 1):
        decision, call = fleet.send(chat(text(number, 100)))
        assert call is not None, decision
    assert fleet.send(chat("last"))[0].outcome is Outcome.CHOSEN
    assert fleet.send(chat("too many"))[0].outcome is Outcome.WAIT


# Learning


def test_prediction_comes_close_when_the_replica_was_observed() -> None:
    engine = Engine(base_seconds=0.2, prefill_seconds_per_token=1e-3, step_seconds=0.05, noise=0.1)
    fleet = fleet_of(pool_entry(), replicas=1, engine=lambda: engine)
    for number in range(60):
        fleet.ask(chat(text(number, 200 + 60 * number)), output_tokens=20)
    winner = fleet.scheduler.decide(chat(text("new", 4_000)), now=fleet.now).winner
    assert winner is not None
    assert winner.predicted_ttft_seconds == pytest.approx(1.2, rel=0.25)
    assert winner.predicted_tpot_seconds == pytest.approx(0.05, rel=0.25)


def test_waiting_for_a_slot_is_not_learned_as_slow_prefill() -> None:
    fleet = fleet_of(pool_entry(), replicas=1)
    for round_ in range(10):
        for number in range(9):
            fleet.send(chat(text((round_, number), 400)), output_tokens=1_000)
        fleet.run()
    winner = fleet.scheduler.decide(chat(text("new", 400)), now=fleet.now).winner
    assert winner is not None
    assert winner.predicted_ttft_seconds < 0.06


def test_prediction_comes_close_when_answers_are_not_streamed() -> None:
    engine = Engine(base_seconds=0.2, prefill_seconds_per_token=1e-3, step_seconds=0.05)
    fleet = fleet_of(pool_entry(), replicas=1, engine=lambda: engine)
    for number in range(60):
        fleet.ask(chat(text(number, 200 + 60 * number), stream=False), output_tokens=20)
    request = chat(text("new", 4_000), stream=False, max_output_tokens=20)
    winner = fleet.scheduler.decide(request, now=fleet.now).winner
    assert winner is not None
    assert winner.predicted_latency_seconds == pytest.approx(1.2 + 19 * 0.05, rel=0.25)


@pytest.mark.pain_8
def test_affinity_is_not_believed_when_the_engine_caches_nothing() -> None:
    fleet = fleet_of(pool_entry(), engine=lambda: Engine(caches=False))
    prefix = text("group", 2_400)
    for number in range(60):
        fleet.ask(chat(prefix + str(number)))
    counts = Counter(places(fleet.calls[30:]))
    assert min(counts["a"], counts["b"]) >= 9


def test_less_is_believed_cached_when_the_engine_evicts_earlier_than_assumed() -> None:
    fleet = fleet_of(pool_entry(), replicas=1, engine=lambda: Engine(capacity_blocks=100))
    key = ReplicaKey("dense", "a")
    prompts = [text(number, 2_000) for number in range(12)]
    for _ in range(12):
        for prompt in prompts:
            fleet.ask(chat(prompt), output_tokens=4)
    snapshot = fleet.scheduler.snapshot().pools[0].replicas[0]
    assert snapshot.key == key
    assert snapshot.cache_capacity_bytes < 100_000


@pytest.mark.pain_8
def test_snapshot_counts_predicted_and_actual_cached_tokens() -> None:
    fleet = fleet_of(pool_entry(), replicas=1)
    for _ in range(3):
        fleet.ask(chat(text("same", 4_000)))
    replica = fleet.scheduler.snapshot().pools[0].replicas[0]
    assert replica.predicted_cached_tokens == pytest.approx(replica.actual_cached_tokens, rel=0.05)
    assert replica.actual_cached_tokens > 1_500
    assert replica.cache_confidence == pytest.approx(1.0, abs=0.05)


def test_first_rule_that_matches_decides_when_several_do() -> None:
    long = Rule(
        name="long",
        matches=(RuleMatch(min_input_tokens=1_000),),
        targets=(Target(pool="cheap"),),
    )
    rest = Rule(name="rest", targets=(Target(pool="good"),))
    table = RouteTable(
        pools={"good": GOOD, "cheap": CHEAP},
        routes={"assistant": Route(policy="assistant", rules=(long, rest))},
    )
    scheduler = Scheduler(table)
    for pool in ("good", "cheap"):
        scheduler.set_replicas(pool, addresses(pool, "a"), now=0.0)
    found = [scheduler.route(chat(text("x", size))) for size in (100, 8_000)]
    assert [rule.name for _, rule in filter(None, found)] == ["rest", "long"]
    assert scheduler.decide(chat(text("x", 8_000)), now=0.0).rule == "long"


def test_requests_of_a_removed_pool_are_counted_until_they_end() -> None:
    fleet = fleet_of(pool_entry("p"), pool_entry("q"))
    scheduler = fleet.scheduler
    request = chat("x", model="p")
    ticket = scheduler.dispatch(request, scheduler.decide(request, now=0.0), now=0.0)
    scheduler.set_table(table_of(pool_entry("q")))
    (gone,) = (pool for pool in scheduler.snapshot().pools if pool.name == "p")
    assert [(each.draining, each.in_flight) for each in gone.replicas] == [(True, 1)]
    # It comes back while that request is still there, and the replica knows it.
    scheduler.set_table(table_of(pool_entry("p"), pool_entry("q")))
    (back,) = (pool for pool in scheduler.snapshot().pools if pool.name == "p")
    assert 1 == sum(each.in_flight for each in back.replicas)
    assert not any(each.draining for each in back.replicas)
    scheduler.set_table(table_of(pool_entry("q")))
    scheduler.finish(ticket, now=1.0, ok=True)
    assert ["q"] == [pool.name for pool in scheduler.snapshot().pools]


# Silence


def test_replica_is_passed_over_when_its_streams_have_stopped() -> None:
    scheduler = scheduler_of("a", "b")
    request = chat(text("warm", 4_000))
    decision = scheduler.decide(request, now=0.0)
    assert decision.winner is not None
    silent = decision.winner.key
    ticket = scheduler.dispatch(request, decision, now=0.0)
    for now in (0.1, 0.2):
        scheduler.tokens(ticket, 1, now=now)

    def rejected(now: float) -> RejectReason | None:
        explained = scheduler.decide(request, now=now, explain=True).candidates
        return {each.key: each.rejected for each in explained}[silent]

    assert [None, RejectReason.SILENT] == [rejected(1.1), rejected(1.3)]
    winner = scheduler.decide(request, now=1.3).winner
    assert winner is not None
    assert other(silent) == winner.key
    # It speaks again, or has nothing more to say.
    scheduler.tokens(ticket, 1, now=1.4)
    assert rejected(1.5) is None
    scheduler.finish(ticket, now=1.6, ok=True)
    assert rejected(9.0) is None


def test_silent_replica_is_chosen_when_no_other_can_be() -> None:
    scheduler = scheduler_of("a", "b")
    request = chat("x")
    ticket = scheduler.dispatch(request, scheduler.decide(request, now=0.0, exclude={B}), now=0.0)
    for now in (0.1, 0.2):
        scheduler.tokens(ticket, 1, now=now)
    scheduler.failed(B, now=5.0, hard=True)
    winner = scheduler.decide(request, now=5.0).winner
    assert winner is not None
    assert A == winner.key


def test_silence_is_no_hesitation_when_long_prompts_are_read() -> None:
    scheduler = scheduler_of("a", "b")
    request = chat("x")
    ticket = scheduler.dispatch(request, scheduler.decide(request, now=0.0, exclude={B}), now=0.0)
    for now in (0.1, 0.2):
        scheduler.tokens(ticket, 1, now=now)
    long = chat(text("long", 200_000))
    scheduler.dispatch(long, scheduler.decide(long, now=0.1, exclude={B}), now=0.1)
    explained = scheduler.decide(request, now=2.0, explain=True).candidates
    assert {each.key: each.rejected for each in explained}[A] is None


def test_stream_in_its_middle_is_not_what_a_replica_is_tried_with() -> None:
    scheduler = scheduler_of("a", "b")
    request = chat("x")
    found = scheduler.route(request)
    assert found is not None
    within = (*found, "dense")
    scheduler.failed(A, now=0.0, hard=True)
    # Its ejection is over: any other request may try it.
    tried = {
        winner.key
        for number in range(20)
        if (winner := scheduler.decide(chat(text(number, 300)), now=2.0).winner) is not None
    }
    assert A in tried
    for number in range(20):
        again = chat(text(number, 300))
        decision = scheduler.decide(again, now=2.0, within=within, explain=True)
        assert decision.winner is not None
        assert B == decision.winner.key
        rejected = {each.key: each.rejected for each in decision.candidates}
        assert RejectReason.ON_TRIAL is rejected[A]
    # Rather that one than none.
    alone = scheduler.decide(request, now=2.0, within=within, exclude={B}).winner
    assert alone is not None
    assert A == alone.key
