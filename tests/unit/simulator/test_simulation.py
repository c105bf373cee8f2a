from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from pointsman_serving.engines.timing import EngineProfile
from pointsman_serving.simulator.arm import (
    Action,
    Dispatch,
    Failed,
    Finished,
    FirstToken,
    FleetView,
    Migrate,
    Reject,
    Tokens,
)
from pointsman_serving.simulator.arms import ARMS, ArmContext
from pointsman_serving.simulator.fleet import (
    Added,
    Crashed,
    Group,
    Removed,
    Slowed,
    pooled,
    trace_profile,
)
from pointsman_serving.simulator.record import GiveUp
from pointsman_serving.simulator.request import SimRequest
from pointsman_serving.simulator.simulation import Simulation
from pointsman_serving.simulator.workloads.sessions import TOOL_AGENT, generate_sessions
from tests.unit.simulator.scripted import Scripted

# A step takes 10 ms and a prompt token 1 ms; a decoding sequence costs nothing more.
PLAIN = trace_profile(
    EngineProfile(
        iteration_seconds=0.01,
        prefill_token_seconds=0.001,
        attention_pair_seconds=0.0,
        decode_sequence_seconds=0.0,
        decode_context_token_seconds=0.0,
        max_batched_tokens=2_000,
        max_sequences=4,
    )
)


def request(
    number: int,
    at: float = 0.0,
    *,
    prompt: int = 1000,
    output: int = 11,
    blocks: Sequence[int] = (),
) -> SimRequest:
    return SimRequest(
        request_id=f"r{number}",
        arrival_seconds=at,
        prompt_tokens=prompt,
        output_tokens=output,
        blocks=tuple(blocks),
    )


def fleet(count: int = 1) -> list[Group]:
    return [Group(count=count, profile=PLAIN)]


def test_times_are_those_of_one_prompt_when_nothing_else_is_there() -> None:
    outcome = Simulation(fleet(), [Scripted()], [request(0, 5.0)]).run()

    (record,) = outcome.records
    assert record.dispatched_at == 5.0
    assert record.first_token_at == pytest.approx(5.0 + 0.01 + 1.0)
    assert record.finished_at == pytest.approx(5.0 + 1.01 + 10 * 0.01)
    assert (record.instance, record.output_tokens) == (0, 11)


def test_second_prompt_is_cached_when_the_first_had_its_blocks() -> None:
    requests = [request(0, blocks=[7]), request(1, 9.0, blocks=[7]), request(2, 9.0, blocks=[8])]

    outcome = Simulation(fleet(), [Scripted()], requests).run()

    assert [0, 512, 0] == [record.cached_tokens for record in outcome.records]


def test_arm_is_told_of_its_requests_in_order() -> None:
    arm = Scripted(tokens_every_seconds=0.05)
    first = request(0)

    Simulation(fleet(), [arm], [first]).run()

    assert ["FirstToken", "Finished"] == arm.kinds()
    assert FirstToken(first, 0, 0) == next(e for _, e in arm.told if isinstance(e, FirstToken))
    assert Finished(first, 0, 11) == arm.told[-1][1]
    counted = sum(event.new for _, event in arm.told if isinstance(event, Tokens))
    assert 5 <= counted <= 11


def test_gateway_is_told_of_its_own_requests_only_when_there_are_several() -> None:
    arms = [Scripted(), Scripted(), Scripted()]
    requests = [request(number, float(number)) for number in range(30)]

    outcome = Simulation(fleet(), arms, requests).run()

    assert {0, 1, 2} == {record.gateway for record in outcome.records}
    for gateway, arm in enumerate(arms):
        own = {each.request for each in outcome.records if each.gateway == gateway}
        assert own == {event.request for _, event in arm.told if isinstance(event, Finished)}


def test_views_are_old_when_metrics_are_late() -> None:
    seen: list[tuple[float, int, int, int]] = []

    def look(each: SimRequest, view: FleetView, now: float) -> int:
        (one,) = view.instances
        seen.append((now, one.running, one.pending_prefill_tokens, one.cached_tokens(each)))
        return 0

    requests = [
        request(0, 0.0, blocks=[1]),
        request(1, 0.5, blocks=[1]),
        request(2, 1.5, blocks=[1]),
    ]
    arm = Scripted(look)

    Simulation(fleet(), [arm], requests, lag_seconds=1.0).run()

    # The second one has just come at 0.5 s and shares the block that the first one fills.
    assert [(0.0, 0, 0, 0), (0.5, 0, 0, 0), (1.5, 1, 1000 + 488, 512)] == seen


def test_views_are_of_now_when_metrics_are_not_late() -> None:
    seen = []

    def look(each: SimRequest, view: FleetView, now: float) -> int:
        (one,) = view.instances
        seen.append((one.running, one.waiting, one.pending_prefill_tokens, one.used_kv_tokens))
        return 0

    requests = [request(0), request(1, 0.5), request(2, 0.6)]

    Simulation(fleet(), [Scripted(look)], requests).run()

    assert [(0, 0, 0, 0), (1, 0, 1000, 1024), (1, 1, 2000, 1024)] == seen


def test_requests_arrive_again_when_their_instance_crashes() -> None:
    arm = Scripted(lambda _, view, now: view.alive[0].index)
    first = request(0)

    outcome = Simulation(
        fleet(2), [arm], [first], events=[Crashed(at_seconds=0.5, instance=0)]
    ).run()

    (record,) = outcome.records
    assert ["InstanceRemoved", "Failed", "FirstToken", "Finished"] == arm.kinds()
    assert Failed(first, 0) == arm.told[1][1]
    assert (record.instance, record.dispatches) == (1, 2)
    assert record.first_token_at == pytest.approx(0.5 + 1.01)


def test_tokens_are_counted_anew_when_an_answer_begins_again() -> None:
    arm = Scripted(lambda _, view, now: view.alive[0].index, tokens_every_seconds=0.01)
    crash = Crashed(at_seconds=1.5, instance=0)

    Simulation(fleet(2), [arm], [request(0, output=101)], events=[crash]).run()

    counts = [0, 0]
    for _, event in arm.told:
        if isinstance(event, Tokens):
            counts[event.instance] += event.new
    assert counts[0] == pytest.approx(49, abs=2)
    assert counts[1] == pytest.approx(100, abs=2)


def test_instance_is_empty_when_it_comes_back() -> None:
    arm = Scripted(lambda _, view, now: view.alive[0].index)
    requests = [request(0, blocks=[1]), request(1, 9.0, blocks=[1])]
    crash = Crashed(at_seconds=5.0, instance=0, back_after_seconds=2.0)

    outcome = Simulation(fleet(), [arm], requests, events=[crash]).run()

    assert [0, 0] == [record.cached_tokens for record in outcome.records]
    assert ["InstanceRemoved", "InstanceAdded"] == arm.kinds()[2:4]


def test_instance_ends_what_it_has_when_it_is_removed() -> None:
    arm = Scripted(lambda _, view, now: view.alive[-1].index)
    requests = [request(0), request(1, 1.0)]
    events = [Removed(at_seconds=0.5, instance=1), Added(at_seconds=0.7)]

    outcome = Simulation(fleet(2), [arm], requests, events=events).run()

    assert [(1, 1), (2, 1)] == [(each.instance, each.dispatches) for each in outcome.records]
    assert all(record.finished_at is not None for record in outcome.records)


def test_steps_take_longer_when_an_instance_is_slowed() -> None:
    # Between the first token, at 1.01 s, and the end lie ten steps of 10 ms.
    slowed = Slowed(at_seconds=1.015, instance=0, slowness=5.0)

    outcome = Simulation(fleet(), [Scripted()], [request(0)], events=[slowed]).run()

    assert outcome.records[0].finished_at == pytest.approx(1.01 + 0.01 + 9 * 0.05)


def test_queued_request_moves_when_it_is_migrated() -> None:
    requests = [request(0, prompt=2000), request(1, 0.1), request(2, 0.2)]
    arm = Scripted()

    def move(each: SimRequest, view: FleetView, now: float) -> int:
        if now == 0.2:
            assert [requests[1]] == list(view.instances[0].queued())
        return 0

    class Moving(Scripted):
        def arrive(self, each: SimRequest, view: FleetView, now: float) -> Sequence[Action]:
            actions = [*super().arrive(each, view, now)]
            return [*actions, Migrate("r1", 1), Migrate("r0", 1)] if now == 0.2 else actions

    arm = Moving(move)

    outcome = Simulation(fleet(2), [arm], requests).run()

    assert [0, 1, 0] == [record.instance for record in outcome.records]
    assert 1 == outcome.migrations
    assert outcome.records[1].first_token_at == pytest.approx(0.2 + 1.01)


def test_rejected_request_never_has_a_token() -> None:
    class Rejecting(Scripted):
        def arrive(self, each: SimRequest, view: FleetView, now: float) -> Sequence[Action]:
            return (Reject(each),)

    outcome = Simulation(fleet(), [Rejecting()], [request(0, 3.0)]).run()

    assert 3.0 == outcome.records[0].rejected_at
    assert float("inf") == outcome.records[0].ttft_seconds


def test_held_request_goes_when_the_arm_is_woken() -> None:
    class Holding(Scripted):
        def arrive(self, each: SimRequest, view: FleetView, now: float) -> Sequence[Action]:
            self.held = each
            self.wake_at = now + 2.0
            return ()

        def wake(self, view: FleetView, now: float) -> Sequence[Action]:
            self.wake_at = None
            return (Dispatch(self.held, 0),)

    outcome = Simulation(fleet(), [Holding()], [request(0, 1.0)]).run()

    assert 3.0 == outcome.records[0].dispatched_at


def test_run_ends_when_a_request_is_kept_for_ever() -> None:
    arm = Scripted(lambda *_: None, tokens_every_seconds=0.1)

    outcome = Simulation(fleet(), [arm], [request(0)], sample_seconds=0.1).run()

    assert outcome.records[0].dispatched_at is None


def test_run_is_given_up_when_too_many_are_late() -> None:
    requests = [request(number, number * 0.1) for number in range(100)]
    limit = GiveUp(ttft_seconds=3.0, most_late=5)

    outcome = Simulation(fleet(), [Scripted()], requests, give_up=limit).run()

    assert outcome.gave_up
    late = [each for each in outcome.records if each.ttft_seconds >= 3.0 and each.first_token_at]
    assert 6 == len(late)


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda each, arm: (Dispatch(each, 9),), "instance 9, which does not live"),
        (lambda each, arm: (Dispatch(each, 0), Dispatch(each, 0)), "is dispatched again"),
        (lambda each, arm: (Dispatch(each, 0), Reject(each)), "is rejected; it is on instance 0"),
    ],
)
def test_mistake_of_an_arm_is_named(act: object, message: str) -> None:
    class Wrong(Scripted):
        def arrive(self, each: SimRequest, view: FleetView, now: float) -> Sequence[Action]:
            return act(each, self)  # type: ignore[operator, no-any-return]

    with pytest.raises(ValueError, match=message):
        Simulation(fleet(), [Wrong()], [request(0)]).run()


def test_arm_that_never_sleeps_is_named() -> None:
    class Restless(Scripted):
        def arrive(self, each: SimRequest, view: FleetView, now: float) -> Sequence[Action]:
            self.wake_at = now + 1.0
            return ()

    with pytest.raises(ValueError, match="must move wake_at on"):
        Simulation(fleet(), [Restless()], [request(0)]).run()


def test_event_of_an_instance_that_never_is_is_refused() -> None:
    with pytest.raises(ValueError, match="names instance 2; there are 0 to 1"):
        Simulation(fleet(2), [Scripted()], [], events=[Removed(at_seconds=1.0, instance=2)])


def test_equal_ids_are_refused() -> None:
    with pytest.raises(ValueError, match="two requests have one request_id"):
        Simulation(fleet(), [Scripted()], [request(0), request(0)])


@pytest.mark.parametrize("lag_seconds", [0.0, 0.7])
def test_outcome_is_the_same_when_the_arguments_are(lag_seconds: float) -> None:
    def run() -> list[tuple[int, float | None, float | None]]:
        requests = generate_sessions(TOOL_AGENT, count=300, rate=20.0, seed=4)
        arms = [ARMS["random"].make(ArmContext(seed=number)) for number in range(2)]
        events = [Crashed(at_seconds=3.0, instance=1, back_after_seconds=4.0)]
        outcome = Simulation(
            [Group(count=4)], arms, requests, seed=5, events=events, lag_seconds=lag_seconds
        ).run()
        return [(each.instance, each.first_token_at, each.finished_at) for each in outcome.records]

    assert run() == run()


def test_every_request_ends_once_whatever_happens_to_the_fleet() -> None:
    requests = generate_sessions(TOOL_AGENT, count=400, rate=20.0, seed=7)

    def choose(each: SimRequest, view: FleetView, now: float) -> int:
        assert [one.cached_tokens(each) for one in view.instances] == view.cached_tokens(each)
        return view.alive[each.prompt_tokens % len(view.alive)].index

    arm = Scripted(choose)
    events: list[Added | Crashed | Removed | Slowed] = [
        Crashed(at_seconds=2.0, instance=0, back_after_seconds=3.0),
        Slowed(at_seconds=4.0, instance=1, slowness=3.0),
        Removed(at_seconds=6.0, instance=2),
        Added(at_seconds=7.0),
        Crashed(at_seconds=8.0, instance=3),
    ]

    outcome = Simulation([Group(count=4)], [arm], requests, events=events).run()

    finished = [event.request for _, event in arm.told if isinstance(event, Finished)]
    assert sorted(each.request_id for each in requests) == sorted(
        each.request_id for each in finished
    )
    for record in outcome.records:
        assert record.output_tokens == record.request.output_tokens
        assert record.request.arrival_seconds <= (record.dispatched_at or 0.0)
        assert (record.first_token_at or 0.0) <= (record.finished_at or 0.0)


def test_pooled_machine_takes_a_share_of_the_time() -> None:
    alone = Simulation(fleet(), [Scripted()], [request(0)]).run()
    together = Simulation([pooled(fleet(4)[0])], [Scripted()], [request(0)]).run()

    expected = alone.records[0].e2e_seconds / 4
    assert together.records[0].e2e_seconds == pytest.approx(expected)


def test_group_is_refused_when_its_cache_has_other_blocks() -> None:
    with pytest.raises(ValueError, match=r"block_tokens of group 'pool' is 16 .* trace_profile"):
        Group(count=1, profile=replace(PLAIN, block_tokens=16))
