from __future__ import annotations

from collections.abc import Sequence

from pointsman_serving.engines.timing import EngineProfile
from pointsman_serving.simulator.arm import Action, Dispatch, Finished, FirstToken
from pointsman_serving.simulator.fleet import Added, Crashed, Group, Removed, trace_profile
from pointsman_serving.simulator.ours import Pointsman
from pointsman_serving.simulator.request import BLOCK_TOKENS, SimRequest
from pointsman_serving.simulator.route_prompts import route_request
from pointsman_serving.simulator.simulation import Simulation
from pointsman_serving.simulator.workloads.sessions import MULTI_TURN, generate_sessions
from tests.unit.simulator.views import FixedFleet, FixedInstance

SLOW = trace_profile(EngineProfile(prefill_token_seconds=0.001, max_sequences=2))


def request(
    number: int, at: float, *, blocks: int = 2, first: int | None = None, output: int = 20
) -> SimRequest:
    base = 1000 * (number if first is None else first)
    return SimRequest(
        request_id=f"r{number}",
        arrival_seconds=at,
        prompt_tokens=blocks * BLOCK_TOKENS + 10,
        output_tokens=output,
        blocks=tuple(range(base, base + blocks)),
    )


def test_request_goes_where_its_prefix_is() -> None:
    requests = [
        request(0, 0.0),
        request(1, 0.1),
        request(2, 9.0, first=0),
        request(3, 9.1, first=1),
    ]

    records = Simulation([Group(count=4)], [Pointsman()], requests).run().records

    assert records[0].instance == records[2].instance
    assert records[1].instance == records[3].instance
    assert records[0].instance != records[1].instance
    assert [0, 0, 1024, 1024] == [record.cached_tokens for record in records]


def test_request_waits_in_the_gateway_until_there_is_room() -> None:
    # Two slots and one more, so that a freed one is not idle.
    requests = [request(number, 0.001 * number) for number in range(4)]

    records = Simulation([Group(count=1, profile=SLOW)], [Pointsman()], requests).run().records

    assert [0.0, 0.001, 0.002] == [record.dispatched_at for record in records[:3]]
    first_end = min(record.finished_at or 0.0 for record in records)
    assert first_end == records[3].dispatched_at


def test_request_is_turned_away_when_its_time_in_the_queue_ends() -> None:
    requests = [request(number, 0.001 * number, output=3000) for number in range(4)]

    records = (
        Simulation([Group(count=1, profile=SLOW)], [Pointsman(queue_seconds=5.0)], requests)
        .run()
        .records
    )

    assert 5.003 == records[3].rejected_at
    assert records[3].dispatched_at is None


def test_request_is_sent_elsewhere_when_its_instance_crashes() -> None:
    crash = Crashed(at_seconds=0.3, instance=0)
    requests = [request(number, 0.1) for number in range(2)]

    records = (
        Simulation([Group(count=2, profile=SLOW)], [Pointsman()], requests, events=[crash])
        .run()
        .records
    )

    assert [1, 1] == [record.instance for record in records]
    assert [1, 2] == sorted(record.dispatches for record in records)


def test_request_waits_for_an_instance_to_come_when_there_is_none() -> None:
    events = [Removed(at_seconds=1.0, instance=0), Added(at_seconds=20.0)]

    (record,) = (
        Simulation([Group(count=1)], [Pointsman()], [request(0, 5.0)], events=events).run().records
    )

    assert (20.0, 1) == (record.dispatched_at, record.instance)


def test_requests_are_refused_early_when_the_rule_rejects() -> None:
    # A prompt takes 3 s, so that one in 5 s is more than is there for it once it is learned.
    requests = [request(number, 1.0 * number, blocks=6) for number in range(40)]

    def rejected(arm: Pointsman) -> int:
        outcome = Simulation([Group(count=1, profile=SLOW)], [arm], requests).run()
        return sum(record.rejected_at is not None for record in outcome.records)

    assert 0 == rejected(Pointsman())
    assert rejected(Pointsman(reject=True)) > 10


def test_choices_are_the_same_when_the_seed_is() -> None:
    def choices() -> list[tuple[int, float | None]]:
        requests = generate_sessions(MULTI_TURN, count=300, rate=8.0, seed=2)
        arms = [Pointsman(seed=1), Pointsman(seed=1)]
        outcome = Simulation([Group(count=4)], arms, requests).run()
        return [(each.instance, each.finished_at) for each in outcome.records]

    assert choices() == choices()


def test_everything_is_given_back_when_all_requests_are_over() -> None:
    requests = generate_sessions(MULTI_TURN, count=300, rate=30.0, seed=2)
    arm = Pointsman()
    crash = Crashed(at_seconds=3.0, instance=1, back_after_seconds=2.0)

    Simulation([Group(count=4, profile=SLOW)], [arm], requests, events=[crash]).run()

    assert 0 == len(arm.queue)
    pools = arm.scheduler.snapshot().pools
    assert [0] == [sum(each.in_flight for each in pool.replicas) for pool in pools]


def blocks_of(request: SimRequest) -> list[tuple[int, int]]:
    routed = route_request(request, model="m", now=0.0, continues=False)
    return [(block.hash, block.end_bytes) for block in routed.prompt.blocks]


def test_gateways_blocks_are_shared_as_far_as_the_traces_are() -> None:
    one = request(0, 0.0, blocks=3)
    other = SimRequest(
        request_id="other",
        arrival_seconds=0.0,
        prompt_tokens=3 * BLOCK_TOKENS + 10,
        output_tokens=1,
        blocks=(*one.blocks[:2], 77),
    )

    shared = [
        mine[1] for mine, its in zip(blocks_of(one), blocks_of(other), strict=True) if mine == its
    ]

    assert 2 * BLOCK_TOKENS * 4 == max(shared)
    assert shared == [end for _, end in blocks_of(one)][: len(shared)]


def test_gateways_blocks_are_nobody_elses_when_the_trace_names_none() -> None:
    unnamed = [
        SimRequest(request_id=name, arrival_seconds=0.0, prompt_tokens=900, output_tokens=1)
        for name in ("a", "b")
    ]

    first, second = ({hash_ for hash_, _ in blocks_of(each)} for each in unnamed)
    assert first
    assert first.isdisjoint(second)


def test_load_that_others_cause_is_known_from_replies() -> None:
    fleet = FixedFleet([FixedInstance(index=0), FixedInstance(index=1)])
    arm = Pointsman()
    requests = [request(number, 0.0) for number in range(3)]
    first, second = (one_instance(arm.arrive(each, fleet, 0.0)) for each in requests[:2])
    assert {0, 1} == {first, second}

    # Both are free again; by turns the first would be next.
    fleet.instances[first].running = fleet.instances[first].waiting = 200
    for each, index in zip(requests, (first, second), strict=False):
        arm.event(FirstToken(each, index, 0), fleet, 1.0)
        arm.event(Finished(each, index, 20), fleet, 1.0)

    assert second == one_instance(arm.arrive(requests[2], fleet, 1.1))


def one_instance(actions: Sequence[Action]) -> int:
    (action,) = actions
    assert isinstance(action, Dispatch)
    return action.instance
