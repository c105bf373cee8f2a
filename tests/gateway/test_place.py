from __future__ import annotations

import dataclasses

from pointsman_api.route_table import (
    LatencyObjective,
    Overload,
    OverloadAction,
    Resilience,
    Rule,
    Target,
)
from pointsman_serving.gateway.place import cost_tokens, place_of
from pointsman_serving.routing.place import Place
from pointsman_serving.routing.types import Api, Prompt, RouteRequest

KEY = ("policy", "default")
LANE = frozenset({"p", "q"})
RULE = Rule(
    name="default",
    targets=(Target(pool="p"), Target(pool="q")),
    overload=Overload(priority=3, max_queue_seconds=20.0, max_cold_start_seconds=200.0),
    resilience=Resilience(first_token_timeout_seconds=90.0),
)
REQUEST = RouteRequest(
    request_id="r",
    model="m",
    api=Api.CHAT,
    prompt=Prompt(blocks=(), total_bytes=400, estimated_tokens=100, root=1),
    fairness_id="t",
    arrived_at=5.0,
)
REJECTING = dataclasses.replace(
    RULE,
    overload=Overload(action=OverloadAction.REJECT),
    slo=LatencyObjective(ttft_seconds=2.0),
)


def test_place_is_what_the_rule_says_when_the_request_says_nothing() -> None:
    assert place_of(REQUEST, RULE, KEY, lane=LANE, now=7.0, again=False) == Place(
        rule=KEY,
        lane=LANE,
        priority=3,
        tenant="t",
        cost_tokens=100 + 256,
        deadline=25.0,
        arrived_at=5.0,
        queue_seconds=20.0,
        cold_seconds=200.0,
    )


def test_place_is_in_front_and_longer_when_the_request_was_let_through_before() -> None:
    place = place_of(REQUEST, RULE, KEY, lane=LANE, now=7.0, again=True)
    assert (place.again, place.queue_seconds) == (True, 90.0)


def test_place_is_in_the_lane_of_its_pool_when_only_that_may_be_chosen() -> None:
    bound = frozenset({"q"})
    assert place_of(REQUEST, RULE, KEY, lane=bound, now=7.0, again=True).lane == bound


def test_deadline_is_the_objective_when_there_is_one() -> None:
    stated = dataclasses.replace(REQUEST, ttft_slo_seconds=1.0)
    assert place_of(REQUEST, REJECTING, KEY, lane=LANE, now=7.0, again=False).deadline == 7.0
    assert place_of(stated, REJECTING, KEY, lane=LANE, now=7.0, again=False).deadline == 6.0
    assert place_of(stated, RULE, KEY, lane=LANE, now=7.0, again=False).deadline == 6.0


def test_waiting_has_an_end_when_the_rule_rejects_who_is_late() -> None:
    never = float("inf")
    assert place_of(REQUEST, REJECTING, KEY, lane=LANE, now=7.0, again=False).latest == 7.0
    assert place_of(REQUEST, REJECTING, KEY, lane=LANE, now=7.0, again=True).latest == never
    stated = dataclasses.replace(REQUEST, ttft_slo_seconds=1.0)
    assert place_of(stated, RULE, KEY, lane=LANE, now=7.0, again=False).latest == never


def test_cost_is_the_prompt_and_the_answer_when_it_is_bounded() -> None:
    assert cost_tokens(dataclasses.replace(REQUEST, max_output_tokens=50)) == 150
    assert cost_tokens(dataclasses.replace(REQUEST, api=Api.EMBEDDINGS)) == 100
    empty = Prompt(blocks=(), total_bytes=0, estimated_tokens=0, root=1)
    assert cost_tokens(dataclasses.replace(REQUEST, api=Api.EMBEDDINGS, prompt=empty)) == 1
