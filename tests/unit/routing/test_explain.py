from __future__ import annotations

import json

from pointsman_serving.routing.explain import explain
from tests.unit.routing.fleet import chat, fleet_of, pool_entry


def test_every_candidate_is_told_with_its_terms_as_json() -> None:
    fleet = fleet_of(pool_entry(), pool_entry("other"))
    fleet.scheduler.failed(next(iter(fleet.engines)), now=0.0, hard=True)
    decision = fleet.scheduler.decide(chat("hello"), now=0.0, explain=True)
    told = json.loads(json.dumps(explain(decision), allow_nan=False))
    assert told["outcome"] == "Chosen"
    assert told["policy"] == "assistant"
    assert told["rule"] == "default"
    assert told["winner"] == told["candidates"][0]
    assert len(told["candidates"]) == 4
    assert [each["rejected"] for each in told["candidates"]] == [None, None, None, "Ejected"]
    assert set(told["candidates"][0]) == {
        "pool",
        "replica",
        "quality",
        "predicted_ttft_seconds",
        "predicted_tpot_seconds",
        "predicted_latency_seconds",
        "predicted_cached_tokens",
        "predicted_cost_dollars",
        "in_flight",
        "score",
        "meets_slo",
        "rejected",
    }


def test_scores_fall_from_the_winner_on() -> None:
    fleet = fleet_of(pool_entry(), pool_entry("other", quality={"Default": 0.9}))
    decision = fleet.scheduler.decide(chat("hello"), now=0.0, explain=True)
    scores = [each.score for each in decision.candidates]
    assert scores == sorted(scores, reverse=True)
    assert decision.winner == decision.candidates[0]


def test_there_is_no_winner_when_nothing_was_chosen() -> None:
    decision = fleet_of(pool_entry()).scheduler.decide(
        chat("hello", model="missing"), now=0.0, explain=True
    )
    told = explain(decision)
    assert told["winner"] is None
    assert told["candidates"] == []
    assert told["outcome"] == "NoModel"


def test_candidates_are_left_out_when_nobody_asked_for_them() -> None:
    decision = fleet_of(pool_entry()).scheduler.decide(chat("hello"), now=0.0)
    assert decision.candidates == ()
    assert decision.reason.endswith("scores best of 2.")
