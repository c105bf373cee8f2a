"""The table of arms: names, parameters, and laws that hold for all of them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pointsman_serving.simulator.arms import ARMS, ArmContext, Family
from pointsman_serving.simulator.arms.clusters import ClusterTable, Profile
from pointsman_serving.simulator.arms.prediction import (
    TESTBED_TIERS,
    Prediction,
    PriorPredictor,
)
from pointsman_serving.simulator.arms.prefix_index import PrefixIndex
from pointsman_serving.simulator.arms.tuning import Choice, Range
from pointsman_serving.simulator.fleet import Added, Crashed, FleetEvent, Group, Removed
from pointsman_serving.simulator.request import SimRequest
from pointsman_serving.simulator.simulation import Simulation
from tests.unit.simulator.arms.test_basic import chosen, fleet
from tests.unit.simulator.views import request

POOLS = ("3b", "72b")
CONTEXT = ArmContext(
    seed=3,
    pools={pool: TESTBED_TIERS[pool] for pool in POOLS},
    predictor=PriorPredictor({"3b": Prediction(0.4, 90.0), "72b": Prediction(0.7, 110.0)}),
    clusters=ClusterTable(
        centres=[[0.0] * 1024], profiles=[{pool: Profile(0.5, 0.5) for pool in POOLS}]
    ),
)


def workload() -> list[SimRequest]:
    """120 requests of six conversations, twenty a second."""
    return [
        replace(
            request(number, prompt_tokens=512 * (2 + number % 9) + 7),
            arrival_seconds=0.05 * number,
            blocks=(0, *(100 * (1 + number % 6) + each for each in range(1 + number % 9))),
            quality_by_pool={"3b": 0.3, "72b": 0.6},
        )
        for number in range(120)
    ]


def placements(name: str, *, rejects: bool = False) -> list[tuple[int, float | None]]:
    """Where the requests go on four instances, and when they begin."""
    spec = ARMS[name].rejecting() if rejects else ARMS[name]
    groups = [Group(count=2, pool="3b"), Group(count=2, pool="72b")]
    outcome = Simulation(groups, [spec.make(CONTEXT)], workload()).run()
    return [(each.instance, each.first_token_at) for each in outcome.records]


@pytest.mark.parametrize("name", ARMS)
def test_arm_serves_every_request_alike_when_the_seed_is_the_same(name: str) -> None:
    first = placements(name)
    assert all(at is not None for _, at in first)
    assert first == placements(name)


@pytest.mark.parametrize("lag_seconds", [0.0, 1.0])
@pytest.mark.parametrize("name", ARMS)
def test_arm_loses_no_request_when_instances_come_and_go(name: str, lag_seconds: float) -> None:
    events: list[FleetEvent] = [
        Crashed(at_seconds=1.0, instance=0, back_after_seconds=2.0),
        Removed(at_seconds=2.0, instance=3),
        Added(at_seconds=2.5, group=1),
    ]
    groups = [Group(count=2, pool="3b"), Group(count=2, pool="72b")]
    spec = ARMS[name]
    # As they ship too: with trees of their own.
    own = {"own_tree": True} if "own_tree" in spec.defaults else {}
    for parameters in ({}, own):
        arms = [spec.make(CONTEXT, **parameters) for _ in range(2)]
        outcome = Simulation(groups, arms, workload(), events=events, lag_seconds=lag_seconds).run()
        assert all(each.finished_at is not None for each in outcome.records)
        assert {0, 1, 2, 4} >= {
            each.instance for each in outcome.records if each.request.arrival_seconds > 3.1
        }


@pytest.mark.parametrize("name", ["lmetric", "dualmap", "routebalance", "best-route-dualmap"])
def test_arm_behind_rejection_is_the_same_when_nothing_is_hopeless(name: str) -> None:
    assert placements(name) == placements(name, rejects=True)


@pytest.mark.parametrize("name", ARMS)
def test_arm_takes_every_tunable_when_a_tuner_sets_it(name: str) -> None:
    spec = ARMS[name]
    for tunable in spec.tunables:
        assert tunable.name in spec.defaults
        for share in (0.0, 0.5, 1.0):
            spec.make(CONTEXT, **{tunable.name: tunable.at(share)})


def test_published_defaults_are_what_the_sources_say() -> None:
    expected = {
        "sglang": {"cache_threshold": 0.3, "balance_abs_threshold": 64},
        "sglang-library": {"cache_threshold": 0.5, "balance_rel_threshold": 1.1},
        "dynamo": {"overlap_score_credit": 1.0, "router_temperature": 0.0, "queue_threshold": 16.0},
        "llm-d": {"queue_weight": 2.0, "kv_weight": 2.0, "prefix_weight": 3.0},
        "ray": {"imbalanced_threshold": float("inf"), "match_rate_threshold": 0.1},
        "aibrix": {"imbalance_abs_count": 8, "standard_deviation_factor": 1.0},
        "kubeai": {"mean_load_factor": 1.25, "replication": 256},
        "preble": {"window_seconds": 180.0, "high_load_threshold": 1.5},
        "routebalance": {"quality_weight": 1 / 3, "cost_weight": 1 / 3, "latency_weight": 1 / 3},
    }
    for name, values in expected.items():
        assert values == {key: ARMS[name].defaults[key] for key in values}


def test_spec_takes_the_seed_and_the_slo_when_the_rule_knows_them() -> None:
    assert ("seed", "ttft_slo_seconds") == ARMS["dualmap"].needs
    assert ("seed", "pools", "predictor") == ARMS["routebalance"].needs
    assert Family.BOUND is ARMS["oracle"].family


def test_spec_refuses_what_the_rule_does_not_have() -> None:
    with pytest.raises(ValueError, match=r"'lmetric' has no parameter 'k'.*'count_itself'"):
        ARMS["lmetric"].make(ArmContext(), k=1)
    with pytest.raises(ValueError, match="'routebalance' needs pools"):
        ARMS["routebalance"].make(ArmContext())
    with pytest.raises(ValueError, match="margin of arm"):
        ARMS["lmetric"].rejecting().make(ArmContext(), margin="high")


def test_rejecting_spec_adds_a_margin_when_a_rule_is_wrapped() -> None:
    spec = ARMS["lmetric"].rejecting()
    assert "lmetric+reject" == spec.name
    assert 1.0 == spec.defaults["margin"]
    assert ["count_itself", "margin"] == [each.name for each in spec.tunables]
    assert 0 == chosen(spec.make(ArmContext(), margin=2), fleet({}))


def test_range_spans_its_ends_when_asked_for_shares() -> None:
    linear = Range(name="a", low=0.0, high=2.0)
    assert [0.0, 1.0, 2.0] == [linear.at(share) for share in (-1.0, 0.5, 2.0)]
    factors = Range(name="b", low=1, high=100, logarithmic=True, whole=True)
    assert [1, 10, 100] == [factors.at(share) for share in (0.0, 0.5, 1.0)]
    assert [1, 2, 2] == [Choice(name="c", values=(1, 2)).at(share) for share in (0.0, 0.5, 1.0)]


def test_tunable_refuses_when_there_is_nothing_to_choose() -> None:
    with pytest.raises(ValueError, match="range of 'a' is 2 to 1"):
        Range(name="a", low=2, high=1)
    with pytest.raises(ValueError, match="range of 'a' is 0 to 1"):
        Range(name="a", low=0, high=1, logarithmic=True)
    with pytest.raises(ValueError, match="'b' has the values"):
        Choice(name="b", values=(1,))


def test_prefix_index_forgets_the_least_recent_when_it_is_full() -> None:
    index = PrefixIndex(most_tokens=1_024)
    index.insert([(1, 512), (2, 512)], 0)
    index.insert([(1, 512)], 0)
    index.insert([(3, 512)], 0)
    assert (1, 0, 1) == tuple(len(index.holders(block)) for block in (1, 2, 3))
    assert 1_024 == index.tokens(0)
    assert 1 == index.depth((1, 2))


def test_prefix_index_is_empty_when_all_are_removed() -> None:
    index = PrefixIndex()
    for instance in (0, 1):
        index.insert([(1, 512), (2, 100)], instance)
    assert [0, 1] == list(index.holders(2))
    index.remove(0)
    assert [1] == list(index.holders(2))
    index.remove(1)
    assert 0 == index.depth((1, 2))
    assert 0 == index.tokens(0) == index.tokens(1)
